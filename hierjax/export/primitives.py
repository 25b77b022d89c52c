"""The translation of jax's primitives to ONNX, a small function for each.

A translation is called with the graph, the equation and the values that it reads, and returns the
value that it computes, or a list of several. What depends on constants alone is computed at once
and stands in the graph as a number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from hierjax.core.errors import UserError
from hierjax.export.graph import Graph, Shape, Value, canonical, type_code

# Of equations that hold another program, the parameter that it is.
PROGRAMS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
# primitive=operators that make it of each element, one after the other
ELEMENTWISE = dict(
  pair.split('=')
  for pair in (
    'sub=Sub div=Div pow=Pow eq=Equal ne=Equal,Not lt=Less le=LessOrEqual gt=Greater '
    'ge=GreaterOrEqual and=And or=Or not=Not exp=Exp log=Log neg=Neg abs=Abs floor=Floor '
    'sqrt=Sqrt rsqrt=Sqrt,Reciprocal tanh=Tanh erf=Erf logistic=Sigmoid stop_gradient=Identity '
    'sign=Sign copy=Identity'
  ).split()
)
REDUCTIONS = {'reduce_sum': 'ReduceSum', 'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin'}
SCATTERS = {'scatter': 'none', 'scatter-add': 'add', 'scatter-max': 'max', 'scatter-min': 'min'}
TRANSLATIONS: dict[str, Callable[..., Value | list[Value]]] = {}


def translate(graph: Graph, program: core.ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
  """Add a program, traced for a symbolic batch size, to a graph.

  Args:
    graph: the graph.
    program: the program.
    inputs: what it reads.

  Returns:
    What it computes.

  Raises:
    UserError: a primitive has no translation, or not with these parameters.
  """
  values = dict(zip(program.jaxpr.constvars, map(canonical, map(np.asarray, program.consts))))
  values.update(zip(program.jaxpr.invars, inputs))

  def read(variable):
    is_number = isinstance(variable, core.Literal)
    return canonical(np.asarray(variable.val)) if is_number else values[variable]

  for equation in program.jaxpr.eqns:
    results = _add(graph, equation, [read(v) for v in equation.invars])
    values.update(zip(equation.outvars, results))
  return [read(v) for v in program.jaxpr.outvars]


def _add(graph, equation, values):
  name, params = equation.primitive.name, equation.params
  program = next((params[key] for key in PROGRAMS if key in params), None)
  if program is not None:
    is_closed = isinstance(program, core.ClosedJaxpr)
    return translate(graph, program if is_closed else core.ClosedJaxpr(program, ()), values)
  sizes = [n for v in (*equation.invars, *equation.outvars) for n in v.aval.shape]
  is_fixed = all(isinstance(n, int) for n in (*sizes, params.get('dim', 0)))
  if is_fixed and all(v.is_constant for v in values):
    arrays = [graph.full(v, x.aval.shape).source for v, x in zip(values, equation.invars)]
    arrays = [jax.numpy.asarray(a, x.aval.dtype) for a, x in zip(arrays, equation.invars)]
    results = equation.primitive.bind(*arrays, **params)
    results = results if equation.primitive.multiple_results else [results]
    return [canonical(np.asarray(x)) for x in results]
  if name in ELEMENTWISE:
    return [_each(graph, ELEMENTWISE[name], *values)]
  if name not in TRANSLATIONS:
    raise _missing(equation, 'hierjax.export.primitives.translates adds one')
  results = TRANSLATIONS[name](graph, equation, *values)
  return results if isinstance(results, list) else [results]


def _missing(equation, text):
  name = equation.primitive.name
  return UserError(f'export: {name!r} of jax has no translation to ONNX: {text}')


def translates(*names: str) -> Callable[[Callable], Callable]:
  """Register a function as the translation of the primitives that `jax.make_jaxpr` prints so."""

  def register(function):
    TRANSLATIONS.update(dict.fromkeys(names, function))
    return function

  return register


def _operand(graph: Graph, equation: Any, x: Value, place: int = 0) -> Value:
  """An operand with all of its repetitions."""
  return graph.full(x, equation.invars[place].aval.shape)


def _result(equation: Any, name: str, layout: Sequence[int] | None = None) -> Value:
  shape = equation.outvars[0].aval.shape
  return canonical(name, shape) if layout is None else Value(name, shape, tuple(layout))


# Operations on each element


def _layout(values: Sequence[Value]) -> tuple[int, ...]:
  """The layout that moves few of some values."""
  rank = max(len(v.shape) for v in values)
  layouts = [v.layout for v in values if not v.is_constant and len(v.shape) == rank]
  return next((x for x in layouts if x != tuple(range(rank))), tuple(range(rank)))


def _each(graph: Graph, ops: str, *values: Value, **attributes) -> Value:
  layout = _layout(values)
  sizes = zip(*(v.shape for v in values if len(v.shape) == len(layout)))
  shape = tuple(next((n for n in column if n != 1), 1) for column in sizes)
  sources = [graph.stored(v, layout if v.shape else ()) for v in values]
  for op in ops.split(','):
    sources = [graph.add(op, *sources, **attributes)]
  return Value(sources[0], shape, layout)


@translates('square', 'integer_pow', 'select_n', 'convert_element_type', 'is_finite')
def _of_elements(graph, equation, x, *others):
  name, params = equation.primitive.name, equation.params
  if name == 'square':
    return _each(graph, 'Mul', x, x)
  if name == 'integer_pow':
    return _each(graph, 'Pow', x, canonical(np.array(params['y'], equation.invars[0].aval.dtype)))
  if name == 'select_n':
    return _each(graph, 'Where', x, *reversed(others))
  if name == 'convert_element_type':
    return _each(graph, 'Cast', x, to=type_code(params['new_dtype']))
  # infinity less infinity is NaN, which equals nothing
  difference = _each(graph, 'Sub', x, x)
  return _each(graph, 'Equal', difference, difference)


@translates('max', 'min')
def _limit(graph, equation, x, y):
  is_max = equation.primitive.name == 'max'
  for value, other in ((x, y), (y, x)):
    op, inputs, _ = graph.producer(value)
    if is_max and other.is_constant and not other.source.any():
      return _each(graph, 'Relu', value)
    if not is_max and op == 'Relu' and other.is_constant and other.source.size == 1:
      limit = other.source.reshape(())
      return value._replace(source=graph.add('Clip', inputs[0], np.zeros_like(limit), limit))
  return _each(graph, 'Max' if is_max else 'Min', x, y)


@translates('add', 'add_any', 'mul')
def _add_or_mul(graph, equation, x, y):
  """Add or multiply; after a convolution, into its kernel and bias, as batch norm does."""
  is_mul = equation.primitive.name == 'mul'
  for value, other in ((x, y), (y, x)):
    op, inputs, attributes = graph.producer(value)
    if op != 'Conv' or not other.is_constant or not isinstance(inputs[1], np.ndarray):
      continue
    numbers = graph.stored(other, value.layout) if other.shape else other.source
    if not other.shape or numbers.size == numbers.shape[1]:
      kernel, *bias = inputs[1:]
      numbers = np.broadcast_to(numbers.reshape(-1), kernel.shape[:1])
      bias = bias[0] if bias else np.zeros_like(numbers)
      factor, term = (numbers, 0) if is_mul else (np.ones_like(numbers), numbers)
      scaled = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
      name = graph.add('Conv', inputs[0], scaled, bias * factor + term, **attributes)
      return value._replace(source=name)
  return _each(graph, 'Mul' if is_mul else 'Add', x, y)


# Shapes


@translates('dim_as_value')
def _dim_as_value(graph, equation):
  size = graph.add('Squeeze', graph.sizes([equation.params['dim']]))
  return canonical(graph.add('Cast', size, to=type_code(np.int32)), ())


def _reshaped(graph: Graph, x: Value, shape: Shape) -> Value:
  """A value in another shape; its last axes stay as they lie in memory where none changes."""
  if x.is_constant:
    return canonical(graph.stored(x).reshape(shape))
  rank, change = len(x.shape), len(shape) - len(x.shape)
  pairs = enumerate(zip(reversed(x.shape), reversed(shape)))
  first = rank - next((i for i, (n, m) in pairs if n != m), min(rank, len(shape)))
  layout = x.layout if x.layout[:first] == tuple(range(first)) else tuple(range(rank))
  source = graph.stored(x, layout)
  layout = (*range(first + change), *(axis + change for axis in layout[first:]))
  in_memory = [shape[axis] for axis in layout]
  sizes = [n if isinstance(n, int) else -1 for n in in_memory]
  sizes = np.array(sizes, np.int64) if sizes.count(-1) < 2 else graph.sizes(in_memory)
  return Value(graph.add('Reshape', source, sizes), tuple(shape), layout)


@translates('broadcast_in_dim', 'reshape', 'squeeze', 'expand_dims')
def _reshape(graph, equation, x, *_):
  shape = equation.outvars[0].aval.shape
  if equation.primitive.name != 'broadcast_in_dim':
    return _reshaped(graph, _operand(graph, equation, x), shape)
  sizes = [1] * len(shape)
  for axis, n in zip(equation.params['broadcast_dimensions'], x.shape):
    sizes[axis] = n
  return _reshaped(graph, x, sizes)


@translates('transpose')
def _transpose(graph, equation, x):
  permutation = equation.params['permutation']
  if x.is_constant:
    return canonical(np.transpose(x.source, permutation))
  shape = tuple(x.shape[a] for a in permutation)
  return Value(x.source, shape, tuple(permutation.index(a) for a in x.layout))


@translates('concatenate', 'stack')
def _concatenate(graph, equation, *values):
  values, params = [_operand(graph, equation, v, i) for i, v in enumerate(values)], equation.params
  axis = params.get('axis', params.get('dimension'))
  if equation.primitive.name == 'stack':
    shape = values[0].shape
    values = [_reshaped(graph, v, (*shape[:axis], 1, *shape[axis:])) for v in values]
  layout = _layout(values)
  sources = [graph.stored(v, layout) for v in values]
  name = graph.add('Concat', *sources, axis=layout.index(axis))
  return _result(equation, name, layout)


@translates('pad')
def _pad(graph, equation, x, value):
  x, config = _operand(graph, equation, x), equation.params['padding_config']
  if any(interior for _, _, interior in config):
    raise _missing(equation, 'it pads between elements')
  ends = [config[a][side] for side in (0, 1) for a in x.layout]
  name = graph.add('Pad', x.source, np.array(ends, np.int64), value.source)
  return _result(equation, name, x.layout)


@translates('slice', 'rev')
def _slice(graph, equation, x):
  x, params = _operand(graph, equation, x), equation.params
  if equation.primitive.name == 'rev':
    parts = [(-1, np.iinfo(np.int64).min, axis, -1) for axis in params['dimensions']]
    return _sliced(graph, x, parts, x.shape)
  starts, stops = params['start_indices'], params['limit_indices']
  steps = params['strides'] or (1,) * len(starts)
  parts = zip(starts, stops, range(len(starts)), steps)
  return _sliced(graph, x, parts, equation.outvars[0].aval.shape)


@translates('split')
def _split(graph, equation, x):
  x, axis, start, results = _operand(graph, equation, x), equation.params['axis'], 0, []
  for size, variable in zip(equation.params['sizes'], equation.outvars):
    results.append(_sliced(graph, x, [(start, start + size, axis, 1)], variable.aval.shape))
    start += size
  return results


def _sliced(graph, x, parts, shape):
  """The parts (start, stop, axis, step) of a value."""
  parts = [part for part in parts if part != (0, x.shape[part[2]], part[2], 1)]
  if not parts:
    return x
  starts, stops, axes, steps = zip(*parts)
  places = [x.layout.index(axis) for axis in axes]
  arrays = [np.array(v, np.int64) for v in (starts, stops, places, steps)]
  return Value(graph.add('Slice', x.source, *arrays), tuple(shape), x.layout)


@translates(*REDUCTIONS)
def _reduce(graph, equation, x):
  x, axes = _operand(graph, equation, x), equation.params['axes']
  places = np.array(sorted(x.layout.index(a) for a in axes), np.int64)
  name = graph.add(REDUCTIONS[equation.primitive.name], x.source, places, keepdims=0)
  remaining = [a for a in x.layout if a not in axes]
  return _result(equation, name, [sorted(remaining).index(a) for a in remaining])


# Maps and products


@translates('conv_general_dilated')
def _conv(graph, equation, x, kernel):
  params = equation.params
  numbers, pads = params['dimension_numbers'], params['padding']
  # an axis of one place has nothing between its places
  spread = [n for a, n in zip(numbers.lhs_spec[2:], params['lhs_dilation']) if x.shape[a] != 1]
  if {*spread, params['batch_group_count']} - {1}:
    raise _missing(equation, 'it is a transposed convolution')
  name = graph.add(
    'Conv',
    graph.stored(_operand(graph, equation, x), numbers.lhs_spec),
    graph.stored(_operand(graph, equation, kernel, 1), numbers.rhs_spec),
    strides=list(params['window_strides']),
    pads=[low for low, _ in pads] + [high for _, high in pads],
    dilations=list(params['rhs_dilation']),
    group=params['feature_group_count'],
  )
  return _result(equation, name, numbers.out_spec)


@translates('reduce_window_max', 'reduce_window_sum')
def _pool(graph, equation, x):
  params, layout = equation.params, (0, 3, 1, 2)
  window, pads, steps = (params[k] for k in ('window_dimensions', 'padding', 'window_strides'))
  is_map = len(window) == 4 and (window[0], window[3]) == (1, 1)
  if not is_map or {*params['base_dilation'], *params['window_dilation']} != {1}:
    raise _missing(equation, f'windows of {window}')
  is_sum = equation.primitive.name == 'reduce_window_sum'
  name = graph.add(
    'AveragePool' if is_sum else 'MaxPool',
    graph.stored(_operand(graph, equation, x), layout),
    kernel_shape=list(window[1:3]),
    strides=list(steps[1:3]),
    pads=[low for low, _ in pads[1:3]] + [high for _, high in pads[1:3]],
    **({'count_include_pad': 1} if is_sum else {}),
  )
  if is_sum:
    name = graph.add('Mul', name, np.array(np.prod(window), equation.invars[0].aval.dtype))
  return _result(equation, name, layout)


@translates('dot_general')
def _dot(graph, equation, x, y):
  ((x_sums, y_sums), (x_batch, y_batch)) = equation.params['dimension_numbers']
  x, y = _operand(graph, equation, x), _operand(graph, equation, y, 1)
  x_free = [a for a in range(len(x.shape)) if a not in (*x_sums, *x_batch)]
  y_free = [a for a in range(len(y.shape)) if a not in (*y_sums, *y_batch)]
  if len(x_sums) != 1 or len(y_free) != 1 or (len(x_free) != 1 and x_batch):
    raise _missing(equation, 'it is no product of matrices')
  left = graph.stored(x, (*x_batch, *x_free, *x_sums))
  right = graph.stored(y, (*y_batch, *y_sums, *y_free))
  return _result(equation, graph.add('MatMul', left, right))


# Look-up and sums by constant indices


def _index(graph, equation, indices, sizes):
  """Constant indices int64 [..., len(sizes)], which must lie within the sizes of their axes."""
  if not indices.is_constant:
    raise _missing(equation, 'its indices are computed')
  index = _operand(graph, equation, indices, 1).source.astype(np.int64)
  if (index < 0).any() or (index >= sizes).any():
    raise _missing(equation, 'an index is out of bounds')
  return index


@translates('gather')
def _gather(graph, equation, x, indices):
  numbers, sizes = equation.params['dimension_numbers'], equation.params['slice_sizes']
  axes, inner = numbers.start_index_map, numbers.collapsed_slice_dims
  x = _operand(graph, equation, x)
  index = _index(graph, equation, indices, [x.shape[a] for a in axes])
  starts = {a: index[..., axes.index(a)] for a in axes}
  others = [a for a in range(len(sizes)) if a not in inner]
  if not {*inner} <= {*axes} or any(np.ptp(starts.get(a, [0])) for a in others):
    raise _missing(equation, 'its parts begin at several places')
  # of the other axes, the same part of each row: a slice
  begin = {a: int(np.ravel(starts.get(a, 0))[0]) for a in others}
  shape = [n if a in begin else x.shape[a] for a, n in enumerate(sizes)]
  x = _sliced(graph, x, [(k, k + sizes[a], a, 1) for a, k in begin.items()], shape)
  if not inner:
    return x
  places = np.stack([starts[a] for a in inner], -1)
  name = graph.add('GatherND', graph.stored(x, (*inner, *others)), places)
  rank = len(equation.outvars[0].aval.shape)
  new = [a for a in range(rank) if a not in numbers.offset_dims]
  return _result(equation, name, (*new, *numbers.offset_dims))


@translates(*SCATTERS)
def _scatter(graph, equation, x, indices, updates):
  numbers, mode = equation.params['dimension_numbers'], SCATTERS[equation.primitive.name]
  x, updates = _operand(graph, equation, x), _operand(graph, equation, updates, 2)
  axes, windows = numbers.scatter_dims_to_operand_dims, numbers.update_window_dims
  inserted = numbers.inserted_window_dims
  index = _index(graph, equation, indices, [x.shape[a] for a in axes])
  if index.ndim == 1 and mode == 'add':
    # the gradient of a part of an array: zeros around it
    shape = list(updates.shape)
    for axis in inserted:
      shape.insert(axis, 1)
    part = _reshaped(graph, updates, shape)
    begin = dict(zip(axes, index.tolist()))
    ends = [
      (begin[a], x.shape[a] - begin[a] - shape[a]) if a in begin else (0, 0) for a in part.layout
    ]
    name = graph.add('Pad', part.source, np.array(ends, np.int64).T.ravel())
    return _each(graph, 'Add', x, Value(name, x.shape, part.layout))
  others = [a for a in range(len(x.shape)) if a not in axes]
  are_rows = [x.shape[a] for a in others] == [updates.shape[a] for a in windows]
  if sorted(axes) != list(inserted) or not are_rows:
    raise _missing(equation, 'it changes parts of rows')
  rows = [a for a in range(len(updates.shape)) if a not in windows]
  parts, layout = graph.stored(updates, (*rows, *windows)), (*axes, *others)
  name = graph.add('ScatterND', graph.stored(x, layout), index, parts, reduction=mode)
  return _result(equation, name, layout)
