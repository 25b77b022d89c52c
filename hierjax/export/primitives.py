"""The translation of jax's primitives to ONNX, a small function for each.

A translation is called with the graph, the equation and the values that it reads, and returns the
value that it computes. What depends on constants alone is computed at once and stands in the graph
as a number.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.extend import core

from hierjax.core.errors import UserError
from hierjax.export.graph import Graph, Shape, Value, canonical, constant

TRANSLATIONS: dict[str, Callable[..., Value]] = {}
# Of equations that hold another program, the parameter that it is.
PROGRAMS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
# primitive: the operators that make it, one after the other
ELEMENTWISE = dict(
  row.split(': ')
  for row in (
    'sub: Sub, div: Div, pow: Pow, eq: Equal, ne: Equal Not, lt: Less, le: LessOrEqual, '
    'gt: Greater, ge: GreaterOrEqual, and: And, or: Or, not: Not, exp: Exp, log: Log, neg: Neg, '
    'abs: Abs, floor: Floor, sqrt: Sqrt, rsqrt: Sqrt Reciprocal, tanh: Tanh, erf: Erf, '
    'logistic: Sigmoid, stop_gradient: Identity, copy: Identity'
  ).split(', ')
)
REDUCTIONS = {'reduce_sum': 'ReduceSum', 'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin'}
SCATTERS = {'scatter': 'none', 'scatter-add': 'add', 'scatter_max': 'max', 'scatter_min': 'min'}


def translate(graph: Graph, program: core.ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
  """Add a program to a graph.

  Args:
    graph: the graph.
    program: traced for a symbolic batch size.
    inputs: what it reads.

  Returns:
    What it computes.

  Raises:
    UserError: a primitive has no translation, or not for these parameters.
  """
  return _add_program(graph, program.jaxpr, program.consts, inputs)


def _add_program(graph, jaxpr, consts, inputs):
  values = dict(zip(jaxpr.constvars, map(constant, consts)))
  values.update(zip(jaxpr.invars, inputs))

  def read(variable):
    return constant(variable.val) if isinstance(variable, core.Literal) else values[variable]

  for equation in jaxpr.eqns:
    results = _add_equation(graph, equation, [read(v) for v in equation.invars])
    values.update(zip(equation.outvars, results))
  return [read(v) for v in jaxpr.outvars]


def _add_equation(graph, equation, values):
  name, params = equation.primitive.name, equation.params
  program = next((params[key] for key in PROGRAMS if key in params), None)
  if program is not None:
    inner, consts = getattr(program, 'jaxpr', program), getattr(program, 'consts', ())
    return _add_program(graph, inner, consts, values)
  sizes = [n for v in (*equation.invars, *equation.outvars) for n in v.aval.shape]
  is_fixed = all(isinstance(n, int) for n in (*sizes, params.get('dim', 0)))
  if is_fixed and all(v.is_constant for v in values):
    return _evaluated(graph, equation, values)
  if name not in TRANSLATIONS:
    raise _missing(equation, 'by hierjax.export.primitives.translates you can add one')
  return [TRANSLATIONS[name](graph, equation, *values)]


def _missing(equation, text):
  name = equation.primitive.name
  return UserError(f'export: {name!r} of jax has no translation to ONNX: {text}')


def _evaluated(graph, equation, values):
  arrays = [graph.full(v, x.aval.shape).source for v, x in zip(values, equation.invars)]
  arrays = [jax.numpy.asarray(a, x.aval.dtype) for a, x in zip(arrays, equation.invars)]
  results = equation.primitive.bind(*arrays, **equation.params)
  return map(constant, results if equation.primitive.multiple_results else [results])


def translates(*names: str) -> Callable[[Callable], Callable]:
  """Register a function as the translation of primitives.

  Args:
    *names: of the primitives, as `jax.make_jaxpr` prints them.
  """

  def register(function):
    TRANSLATIONS.update(dict.fromkeys(names, function))
    return function

  return register


def _full(graph: Graph, equation, x: Value, place: int = 0) -> Value:
  """An operand with all of its repetitions."""
  return graph.full(x, equation.invars[place].aval.shape)


def _result(equation, name: str, layout: Sequence[int] | None = None) -> Value:
  shape = equation.outvars[0].aval.shape
  return canonical(name, shape) if layout is None else Value(name, shape, tuple(layout))


# Operations on each element


def _layout(values: Sequence[Value]) -> tuple[int, ...]:
  """The layout that moves few of some values."""
  rank = max(len(v.shape) for v in values)
  layouts = [v.layout for v in values if not v.is_constant and len(v.shape) == rank]
  return next((x for x in layouts if x != tuple(range(rank))), tuple(range(rank)))


def _elementwise(graph: Graph, ops: str, *values: Value, **attributes) -> Value:
  layout = _layout(values)
  sizes = zip(*(v.shape for v in values if len(v.shape) == len(layout)))
  shape = tuple(next((n for n in column if n != 1), 1) for column in sizes)
  op, *others = ops.split()
  name = graph.add(op, *(graph.stored(v, layout if v.shape else ()) for v in values), **attributes)
  for op in others:
    name = graph.add(op, name)
  return Value(name, shape, layout)


for _name, _ops in ELEMENTWISE.items():
  TRANSLATIONS[_name] = functools.partial(
    lambda graph, _, *x, ops: _elementwise(graph, ops, *x), ops=_ops
  )


@translates('square')
def _square(graph, equation, x):
  return _elementwise(graph, 'Mul', x, x)


@translates('integer_pow')
def _integer_pow(graph, equation, x):
  exponent = np.array(equation.params['y'], equation.invars[0].aval.dtype)
  return _elementwise(graph, 'Pow', x, constant(exponent))


@translates('is_finite')
def _is_finite(graph, equation, x):
  # infinity less infinity is NaN, which equals nothing
  difference = _elementwise(graph, 'Sub', x, x)
  return _elementwise(graph, 'Equal', difference, difference)


@translates('select_n')
def _select(graph, equation, is_second, first, second):
  return _elementwise(graph, 'Where', is_second, second, first)


@translates('convert_element_type')
def _convert(graph, equation, x):
  return _elementwise(graph, 'Cast', x, to=graph.type_code(equation.params['new_dtype']))


@translates('max')
def _max(graph, equation, x, y):
  for value, other in ((x, y), (y, x)):
    if other.is_constant and not other.source.any():
      return _elementwise(graph, 'Relu', value)
  return _elementwise(graph, 'Max', x, y)


@translates('min')
def _min(graph, equation, x, y):
  for value, other in ((x, y), (y, x)):
    op, inputs, _ = graph.producer(value)
    if op == 'Relu' and other.is_constant and other.source.size == 1:
      limit = other.source.reshape(())
      return value._replace(source=graph.add('Clip', inputs[0], np.zeros_like(limit), limit))
  return _elementwise(graph, 'Min', x, y)


@translates('add', 'mul')
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
  return _elementwise(graph, 'Mul' if is_mul else 'Add', x, y)


# Shapes


@translates('dim_as_value')
def _dim_as_value(graph, equation):
  size = graph.add('Squeeze', graph.sizes([equation.params['dim']]))
  return canonical(graph.add('Cast', size, to=graph.type_code(np.int32)), ())


def _reshaped(graph: Graph, x: Value, shape: Shape) -> Value:
  source = graph.stored(x)
  if x.is_constant:
    return constant(source.reshape(shape))
  sizes = [n if isinstance(n, int) else -1 for n in shape]
  sizes = np.array(sizes, np.int64) if sizes.count(-1) < 2 else graph.sizes(shape)
  return canonical(graph.add('Reshape', source, sizes), shape)


@translates('broadcast_in_dim')
def _broadcast(graph, equation, x, *_):
  shape = [1] * len(equation.outvars[0].aval.shape)
  for axis, n in zip(equation.params['broadcast_dimensions'], x.shape):
    shape[axis] = n
  return _reshaped(graph, x, shape)


@translates('reshape', 'squeeze', 'expand_dims')
def _reshape(graph, equation, x, *_):
  return _reshaped(graph, _full(graph, equation, x), equation.outvars[0].aval.shape)


@translates('transpose')
def _transpose(graph, equation, x):
  permutation = equation.params['permutation']
  if x.is_constant:
    return constant(np.transpose(x.source, permutation))
  shape = tuple(x.shape[a] for a in permutation)
  return Value(x.source, shape, tuple(permutation.index(a) for a in x.layout))


@translates('concatenate')
def _concatenate(graph, equation, *values):
  values = [_full(graph, equation, v, i) for i, v in enumerate(values)]
  layout = _layout(values)
  sources = [graph.stored(v, layout) for v in values]
  name = graph.add('Concat', *sources, axis=layout.index(equation.params['dimension']))
  return _result(equation, name, layout)


@translates('pad')
def _pad(graph, equation, x, value):
  x, config = _full(graph, equation, x), equation.params['padding_config']
  if any(interior for _, _, interior in config):
    raise _missing(equation, 'it pads between elements')
  ends = [config[a][side] for side in (0, 1) for a in x.layout]
  name = graph.add('Pad', x.source, np.array(ends, np.int64), value.source)
  return _result(equation, name, x.layout)


@translates('slice')
def _slice(graph, equation, x):
  x, params = _full(graph, equation, x), equation.params
  starts, stops = params['start_indices'], params['limit_indices']
  steps = params['strides'] or (1,) * len(starts)
  parts = zip(starts, stops, range(len(starts)), steps, strict=True)
  parts = [p for p in parts if p != (0, x.shape[p[2]], p[2], 1)]
  return _sliced(graph, x, parts, equation.outvars[0].aval.shape)


@translates('rev')
def _reverse(graph, equation, x):
  end = np.iinfo(np.int64).min
  parts = [(-1, end, axis, -1) for axis in equation.params['dimensions']]
  return _sliced(graph, _full(graph, equation, x), parts, x.shape)


def _sliced(graph, x, parts, shape):
  """The parts (start, stop, axis, step) of a value."""
  if not parts:
    return x
  starts, stops, axes, steps = zip(*parts)
  arrays = [np.array(v, np.int64) for v in (starts, stops, x.axes(axes), steps)]
  return Value(graph.add('Slice', x.source, *arrays), tuple(shape), x.layout)


# Reductions


@translates(*REDUCTIONS)
def _reduce(graph, equation, x):
  x, axes = _full(graph, equation, x), equation.params['axes']
  places = np.array(sorted(x.axes(axes)), np.int64)
  name = graph.add(REDUCTIONS[equation.primitive.name], x.source, places, keepdims=0)
  remaining = [a for a in x.layout if a not in axes]
  return _result(equation, name, [sorted(remaining).index(a) for a in remaining])


# Maps


@translates('conv_general_dilated')
def _conv(graph, equation, x, kernel):
  params = equation.params
  numbers, pads = params['dimension_numbers'], params['padding']
  if {*params['lhs_dilation'], params['batch_group_count']} != {1}:
    raise _missing(equation, 'it is a transposed convolution')
  name = graph.add(
    'Conv',
    graph.stored(_full(graph, equation, x), numbers.lhs_spec),
    graph.stored(_full(graph, equation, kernel, 1), numbers.rhs_spec),
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
    graph.stored(_full(graph, equation, x), layout),
    kernel_shape=list(window[1:3]),
    strides=list(steps[1:3]),
    pads=[low for low, _ in pads[1:3]] + [high for _, high in pads[1:3]],
    **({'count_include_pad': 1} if is_sum else {}),
  )
  if is_sum:
    name = graph.add('Mul', name, np.array(np.prod(window), equation.invars[0].aval.dtype))
  return _result(equation, name, layout)


# Products


@translates('dot_general')
def _dot(graph, equation, x, y):
  ((x_sums, y_sums), (x_batch, y_batch)) = equation.params['dimension_numbers']
  x, y = _full(graph, equation, x), _full(graph, equation, y, 1)
  x_rest = [a for a in range(len(x.shape)) if a not in (*x_sums, *x_batch)]
  y_rest = [a for a in range(len(y.shape)) if a not in (*y_sums, *y_batch)]
  if len(x_sums) == len(y_rest) == 1 and (len(x_rest) == 1 or not x_batch):
    left = graph.stored(x, (*x_batch, *x_rest, *x_sums))
    right = graph.stored(y, (*y_batch, *y_sums, *y_rest))
    return _result(equation, graph.add('MatMul', left, right))
  raise _missing(equation, 'it sums over several axes')


# Look-up and sums by constant indices


def _by_index(graph, equation, x, indices, axes, inner, parts):
  """Constant indices [..., len(axes)], and the layout with the indexed axes in front.

  Refused are indices that are computed, and parts of the axes that are not indexed.
  """
  others = [a for a in range(len(x.shape)) if a not in axes]
  are_rows = sorted(axes) == list(inner) and [x.shape[a] for a in others] == list(parts)
  if not indices.is_constant or not are_rows:
    raise _missing(equation, 'it looks up by computed indices, or parts of rows')
  index = graph.full(indices, equation.invars[1].aval.shape).source.astype(np.int64)
  if (index < 0).any() or (index >= [x.shape[a] for a in axes]).any():
    raise _missing(equation, 'an index is out of bounds')
  return index, (*axes, *others)


@translates('gather')
def _gather(graph, equation, x, indices):
  numbers, x = equation.params['dimension_numbers'], _full(graph, equation, x)
  axes, inner = numbers.start_index_map, numbers.collapsed_slice_dims
  sizes, shape = equation.params['slice_sizes'], equation.outvars[0].aval.shape
  if indices.is_constant and len(numbers.offset_dims) == len(shape):
    # a slice, as jax writes it where a size is symbolic
    starts = dict(zip(axes, indices.source.tolist()))
    ends = [(starts.get(a, 0), starts.get(a, 0) + n, a, 1) for a, n in enumerate(sizes)]
    part = _sliced(graph, x, [end for end in ends if sizes[end[2]] != x.shape[end[2]]], sizes)
    return _reshaped(graph, part, shape) if inner else part
  parts = [n for a, n in enumerate(sizes) if a not in axes]
  index, layout = _by_index(graph, equation, x, indices, axes, inner, parts)
  name = graph.add('GatherND', graph.stored(x, layout), index)
  new = [a for a in range(len(shape)) if a not in numbers.offset_dims]
  return _result(equation, name, (*new, *numbers.offset_dims))


@translates(*SCATTERS)
def _scatter(graph, equation, x, indices, updates):
  numbers = equation.params['dimension_numbers']
  x, updates = _full(graph, equation, x), _full(graph, equation, updates, 2)
  axes, inner = numbers.scatter_dims_to_operand_dims, numbers.inserted_window_dims
  windows = numbers.update_window_dims
  parts = [updates.shape[a] for a in windows]
  index, layout = _by_index(graph, equation, x, indices, axes, inner, parts)
  rows = [a for a in range(len(updates.shape)) if a not in windows]
  sources = graph.stored(x, layout), index, graph.stored(updates, (*rows, *windows))
  name = graph.add('ScatterND', *sources, reduction=SCATTERS[equation.primitive.name])
  return _result(equation, name, layout)
