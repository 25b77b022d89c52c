"""An ONNX graph under construction: values with their layout in memory, nodes, constants.

Two things are put off until an operation needs them, so that few nodes move data: a transposition
(convolutions want channels first, the models have them last) and the repetition of a value along
axes of size 1 (ONNX's element-wise operations repeat by themselves).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The version of ONNX's operators that the graph is of, and that of the file's form.
OPSET, IR_VERSION = 20, 10
PRODUCER = 'hierjax'

Dim = Any  # an int, or a multiple of the batch size as jax.export writes it
Shape = tuple[Dim, ...]


class Value(NamedTuple):
  """A tensor.

  Attributes:
    source: its name in the graph, or a constant array, which is not transposed.
    shape: its sizes, of which those that are 1 may stand for repetition.
    layout: the axis that each axis in memory is.
  """

  source: str | np.ndarray
  shape: Shape
  layout: tuple[int, ...]

  @property
  def is_constant(self) -> bool:
    """Whether it is known when the graph is written."""
    return isinstance(self.source, np.ndarray)

  def axes(self, axes: Sequence[int]) -> list[int]:
    """Return where axes are in memory."""
    return [self.layout.index(a) for a in axes]


class Node(NamedTuple):
  """An operation: its name, inputs, outputs and attributes."""

  op: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: dict[str, Any]


def canonical(source: str | np.ndarray, shape: Shape) -> Value:
  """Make a value whose axes lie in memory in their order."""
  return Value(source, tuple(shape), tuple(range(len(shape))))


def constant(array: np.ndarray) -> Value:
  """Make a value of an array."""
  array = np.asarray(array)
  return canonical(array, array.shape)


class Graph:
  """A graph with one input, whose first axis is the batch.

  Attributes:
    batch: the symbol of the batch size in shapes.
  """

  def __init__(self, batch: Dim):
    """Start an empty graph."""
    self.batch, self._count = batch, 0
    self._nodes, self._constants, self._inputs, self._outputs = [], {}, [], []
    self._producers, self._transposed = {}, {}

  def input(self, name: str, dtype: np.dtype, shape: Shape) -> Value:
    """Add the input of the graph.

    Args:
      name: of the tensor.
      dtype: of its numbers.
      shape: with the symbolic batch size.
    """
    self._inputs.append((name, np.dtype(dtype), shape))
    return canonical(name, shape)

  def output(self, name: str, value: Value, dtype: np.dtype) -> None:
    """Add an output of the graph.

    Args:
      name: of the tensor.
      value: without repetitions.
      dtype: of its numbers.
    """
    self._nodes.append(Node('Identity', (self._name(self.stored(value)),), (name,), {}))
    self._outputs.append((name, np.dtype(dtype), value.shape))

  def add(self, op: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
    """Add a node with one output.

    Args:
      op: the operator.
      *inputs: names of tensors, and arrays.
      **attributes: of the operator.

    Returns:
      The name of its output.
    """
    return self.add_pair(op, *inputs, count=1, **attributes)[0]

  def add_pair(
    self, op: str, *inputs: str | np.ndarray, count: int = 2, **attributes: Any
  ) -> tuple[str, ...]:
    """Add a node with several outputs; see `add`.

    Args:
      op: the operator.
      *inputs: names of tensors, and arrays.
      count: of its outputs.
      **attributes: of the operator.
    """
    self._count += 1
    names = tuple(f'{op}_{self._count}_{i}' for i in range(count))
    node = Node(op, tuple(self._name(x) for x in inputs), names, attributes)
    self._nodes.append(node)
    self._producers[names[0]] = node
    return names

  def producer(self, value: Value) -> tuple[str, tuple[str | np.ndarray, ...], dict[str, Any]]:
    """Return operator, inputs (constants as arrays) and attributes of a value's node, or ''."""
    node = None if value.is_constant else self._producers.get(value.source)
    if node is None:
      return '', (), {}
    return node.op, tuple(self._constants.get(x, x) for x in node.inputs), node.attributes

  def stored(self, value: Value, layout: Sequence[int] | None = None) -> str | np.ndarray:
    """Return a value's name or array with its axes in memory as `layout` says."""
    layout = tuple(range(len(value.shape))) if layout is None else tuple(layout)
    moves = value.axes(layout)
    if moves == sorted(moves):
      return value.source
    if value.is_constant:
      return np.transpose(value.source, moves)
    key = value.source, tuple(moves)
    if key not in self._transposed:
      self._transposed[key] = self.add('Transpose', value.source, perm=moves)
    return self._transposed[key]

  def full(self, value: Value, shape: Shape) -> Value:
    """Repeat a value along axes of size 1 as a shape needs it."""
    if value.shape == tuple(shape):
      return value
    if value.is_constant and all(isinstance(n, int) for n in shape):
      return constant(np.broadcast_to(value.source, shape))
    sizes = self.sizes([shape[a] for a in value.layout])
    return Value(self.add('Expand', value.source, sizes), tuple(shape), value.layout)

  def sizes(self, shape: Sequence[Dim]) -> str | np.ndarray:
    """Return a shape as an int64 tensor."""
    if all(isinstance(n, int) for n in shape):
      return np.array(shape, np.int64)
    sizes = self.add('Shape', self._inputs[0][0], start=0, end=1)
    parts = []
    for n in shape:
      is_fixed = isinstance(n, int)
      factor = np.array([n if is_fixed else n // self.batch], np.int64)
      parts.append(factor if is_fixed else self.add('Mul', sizes, factor))
    return self.add('Concat', *parts, axis=0)

  @staticmethod
  def type_code(dtype: np.dtype) -> int:
    """Return the number by which ONNX names a type."""
    import onnx

    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

  def _name(self, source: str | np.ndarray) -> str:
    """The name of a tensor; an array becomes a constant of the graph."""
    if isinstance(source, str):
      return source
    self._count += 1
    name = f'constant_{self._count}'
    self._constants[name] = source
    return name

  def model(self, name: str, metadata: dict[str, str]) -> Any:
    """Make the `onnx.ModelProto` of all that the outputs need.

    Args:
      name: of the graph.
      metadata: text that the file carries.
    """
    import onnx
    from onnx import helper, numpy_helper

    needed, nodes = {output[0] for output in self._outputs}, []
    for node in reversed(self._nodes):
      if needed.intersection(node.outputs):
        needed.update(node.inputs)
        nodes.append(node)

    def describe(name, dtype, shape):
      sizes = [n if isinstance(n, int) else 'batch' for n in shape]
      return helper.make_tensor_value_info(name, self.type_code(dtype), sizes)

    graph = helper.make_graph(
      [helper.make_node(n.op, n.inputs, n.outputs, **n.attributes) for n in reversed(nodes)],
      name,
      [describe(*value) for value in self._inputs],
      [describe(*value) for value in self._outputs],
      [
        numpy_helper.from_array(np.ascontiguousarray(array), key)
        for key, array in self._constants.items()
        if key in needed
      ],
    )
    opset = [helper.make_opsetid('', OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    model.producer_name = PRODUCER
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model
