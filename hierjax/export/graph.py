"""An ONNX graph under construction: values with their layout in memory, nodes, constants.

Two things are put off until an operation needs them, so that few nodes move data: a transposition
(convolutions want channels first, the models have them last) and the repetition of a value along
axes of size 1 (ONNX's element-wise operations repeat by themselves).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# The version of ONNX's operators, and that of the file's form.
OPSET, IR_VERSION = 20, 10

# Sizes are ints, or multiples of the batch size as jax.export writes them.
Shape = tuple[Any, ...]
Source = str | np.ndarray


class Value(NamedTuple):
  """A tensor.

  Attributes:
    source: its name in the graph, or a constant array, which is not transposed.
    shape: its sizes, of which those that are 1 may stand for repetition.
    layout: the axis that each axis in memory is.
  """

  source: Source
  shape: Shape
  layout: tuple[int, ...]

  @property
  def is_constant(self) -> bool:
    """Whether it is known when the graph is written."""
    return isinstance(self.source, np.ndarray)


def canonical(source: Source, shape: Shape | None = None) -> Value:
  """Make a value whose axes lie in memory in their order; the shape of an array is its own."""
  shape = np.shape(source) if shape is None else tuple(shape)
  return Value(source, shape, tuple(range(len(shape))))


class Graph:
  """A graph with one input, whose first axis is the batch.

  Attributes:
    batch: the symbol of the batch size in shapes.
  """

  def __init__(self, batch: Any):
    """Start an empty graph."""
    self.batch, self._inputs, self._outputs = batch, [], []
    self._nodes, self._constants, self._producers, self._transposed = [], {}, {}, {}

  def input(self, name: str, dtype: np.dtype, shape: Shape) -> Value:
    """Add the input of the graph.

    Args:
      name: of the tensor.
      dtype: of its numbers.
      shape: with the symbolic batch size.
    """
    self._inputs.append((name, dtype, shape))
    return canonical(name, shape)

  def output(self, name: str, value: Value, dtype: np.dtype) -> None:
    """Add an output of the graph.

    Args:
      name: of the tensor.
      value: without repetitions.
      dtype: of its numbers.
    """
    self._nodes.append(('Identity', [self._name(self.stored(value))], [name], {}))
    self._outputs.append((name, dtype, value.shape))

  def add(self, op: str, *inputs: Source, outputs: int = 1, **attributes: Any) -> Any:
    """Add a node.

    Args:
      op: the operator.
      *inputs: names of tensors, and arrays.
      outputs: their number.
      **attributes: of the operator.

    Returns:
      The name of its output; of several, a list.
    """
    names = [f'{op}_{len(self._nodes)}_{i}' for i in range(outputs)]
    self._nodes.append((op, [self._name(x) for x in inputs], names, attributes))
    self._producers[names[0]] = op, inputs, attributes
    return names[0] if outputs == 1 else names

  def producer(self, value: Value) -> tuple[str, tuple[Source, ...], dict[str, Any]]:
    """Return operator, inputs and attributes of the node that makes a value, '' for none."""
    return ('', (), {}) if value.is_constant else self._producers.get(value.source, ('', (), {}))

  def stored(self, value: Value, layout: Sequence[int] | None = None) -> Source:
    """Return a value's name or array with its axes in memory in this order; None for theirs."""
    order = range(len(value.shape)) if layout is None else layout
    moves = [value.layout.index(axis) for axis in order]
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
      return canonical(np.broadcast_to(value.source, shape))
    sizes = self.sizes([shape[axis] for axis in value.layout])
    return Value(self.add('Expand', value.source, sizes), tuple(shape), value.layout)

  def sizes(self, shape: Sequence[Any]) -> Source:
    """Return a shape as an int64 tensor."""
    if all(isinstance(n, int) for n in shape):
      return np.array(shape, np.int64)
    batch, parts = self.add('Shape', self._inputs[0][0], start=0, end=1), []
    for n in shape:
      is_fixed = isinstance(n, int)
      factor = np.array([n if is_fixed else n // self.batch], np.int64)
      parts.append(factor if is_fixed else self.add('Mul', batch, factor))
    return self.add('Concat', *parts, axis=0)

  def sums(self, values: Source, classes: np.ndarray, count: int) -> Source:
    """Add up the columns of each class: float64 [N, M] to [N, count]; classes is int [M]."""
    return self.joined(values, classes, np.zeros((count, 1)), 'add')

  def joined(self, values: Source, classes: np.ndarray, start: np.ndarray, how: str) -> Source:
    """Join the columns of each class, [N, M] to [N, C].

    Args:
      values: [N, M].
      classes: int [M].
      start: [C, 1], what each class begins with.
      how: 'add' or 'max'.
    """
    start = self.full(canonical(start), (len(start), self.batch)).source
    rows = self.add('Transpose', values, perm=[1, 0])
    index = np.asarray(classes, np.int64)[:, None]
    joined = self.add('ScatterND', start, index, rows, reduction=how)
    return self.add('Transpose', joined, perm=[1, 0])

  def _name(self, source):
    """The name of a tensor; an array becomes a constant of the graph."""
    if isinstance(source, str):
      return source
    name = f'constant_{len(self._constants)}'
    self._constants[name] = source
    return name

  def model(self, metadata: dict[str, str]) -> Any:
    """Make the `onnx.ModelProto` of all that the outputs need, with text that the file carries."""
    import onnx
    from onnx import helper

    needed, nodes = {name for name, _, _ in self._outputs}, []
    for op, inputs, outputs, attributes in reversed(self._nodes):
      if needed.intersection(outputs):
        needed.update(inputs)
        nodes.insert(0, helper.make_node(op, inputs, outputs, **attributes))
    arrays = {name: x for name, x in self._constants.items() if name in needed}
    constants = [
      onnx.numpy_helper.from_array(np.ascontiguousarray(x), n) for n, x in arrays.items()
    ]
    inputs, outputs = (list(map(_described, values)) for values in (self._inputs, self._outputs))
    graph = helper.make_graph(nodes, 'hierjax', inputs, outputs, constants)
    opsets = [helper.make_opsetid('', OPSET)]
    model = helper.make_model(
      graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name='hierjax'
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


def type_code(dtype: np.dtype) -> int:
  """Return the number by which ONNX names a type."""
  import onnx

  return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _described(value):
  import onnx

  name, dtype, shape = value
  sizes = [n if isinstance(n, int) else 'batch' for n in shape]
  return onnx.helper.make_tensor_value_info(name, type_code(dtype), sizes)
