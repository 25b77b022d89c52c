"""Weights and images that the torch side and this side both make from names alone. numpy only: the
torch environment imports it too.

Torch's names and layouts, because they are what the two sides share. The scales keep activations
near 1 through 152 layers and let every block matter.
"""

import hashlib

import numpy as np

FORWARD = (
  2,
  64,
  75,
  # images, height, width: even and odd sizes on the way down, so that padding and flooring show; H
  # != W, so that a swap does
)
TRAIN = (4, 64, 75)
LITE0 = (2, 160, 192)
# (height, width) where a backbone, or its weights under a scheme's names, takes not every size;
# HCAL's does not reduce a large one
SIZES = {
  'resnet18_32px': (32, 37),
  'maxvit_t': (224, 224),
  'vit_b_16': (224, 224),
  'swin_t/timm': (224, 224),
  **dict.fromkeys(('small_siglip', 'small_clip', 'small_quickgelu', 'small_deit3'), (64, 64)),
  **dict.fromkeys(('small_dinov3', 'small_dinov3_plus', 'small_qk_norm'), (64, 64)),
  **dict.fromkeys(('small_swinv2', 'small_swinv2_to16'), (64, 75)),
  **dict.fromkeys(('small_dinov2', 'small_reg4', 'small_eva02', 'small_eva02_base'), (56, 56)),
}
# The second size, at which gradients are compared, where the first is the only one for which
# position embeddings are not interpolated: one side is shorter, one longer.
TRAIN_SIZES = {
  name: (48, 80) if side == 64 else (42, 70)
  for name, (side, _) in SIZES.items()
  if name.startswith('small')
}

# HCAL's loss (S2) as its authors' code has it and as the paper does, with one or both positives
# of equation 6
HCAL = {
  'code, 2 levels': {'levels': 2, 'reading': 'code', 'positives': 'perturbed'},
  'code, 3 levels': {'levels': 3, 'reading': 'code', 'positives': 'perturbed'},
  'paper, 2 levels': {'levels': 2, 'reading': 'paper', 'positives': 'perturbed'},
  'paper, 3 levels': {'levels': 3, 'reading': 'paper', 'positives': 'perturbed'},
  'paper, 3 levels, both positives': {'levels': 3, 'reading': 'paper', 'positives': 'both'},
}


def size(name, default, scheme=''):
  """(images, height, width) that a backbone is compared on."""
  if default is TRAIN and name in TRAIN_SIZES:
    return (default[0], *TRAIN_SIZES[name])
  return (default[0], *SIZES.get(f'{name}/{scheme}', SIZES.get(name, default[1:])))


def rng(*names):
  return np.random.default_rng(list(hashlib.sha256('/'.join(names).encode()).digest()))


def tensor(key, shape):
  """float32 weights for torch's `key` of `shape`."""
  r, leaf = rng(key), key.rpartition('.')[2].removeprefix('in_proj_')

  def uniform(low, high):
    return (low + (high - low) * r.random(shape, np.float32)).astype(np.float32)

  if leaf in ('gamma', 'layer_scale'):
    return uniform(0.1, 1.0)
  if leaf == 'running_var':
    return uniform(0.5, 1.5)
  if leaf == 'logit_scale':
    return uniform(1, 6)  # Swin V2 cuts at ln 100
  if leaf == 'weight' and len(shape) == 1:
    return uniform(0.5, 1.0)
  if leaf == 'weight':
    return uniform(-1, 1) * np.float32(np.sqrt(6 / np.prod(shape[1:])))  # variance 2 / fan_in
  return uniform(-0.2, 0.2)  # bias, running_mean


def images(size, name='images'):
  """float32 [n, height, width, 3], normalised (about ±2), smooth with some grain."""
  r, (n, h, w) = rng(name), size
  coarse = r.standard_normal((n, h // 8 + 2, w // 8 + 2, 3)).repeat(8, 1).repeat(8, 2)[:, :h, :w]
  return (coarse + 0.3 * r.standard_normal((n, h, w, 3))).astype(np.float32)


def pixels(size):
  """uint8 [n, height, width, 3]"""
  return np.clip(127 + 60 * images(size, 'pixels'), 0, 255).astype(np.uint8)


def hcal_noise(name):
  """How far a prototype's coordinates are moved: the paper's best, or what the code has, for
  CIFAR-100 and (three levels) for Aircraft."""
  if HCAL[name]['reading'] == 'paper':
    return 0.05
  return 0.01 if HCAL[name]['levels'] == 2 else 0.0


def hcal(name):
  """Of a case of HCAL, coarse to fine: features float64 [B, d], labels int [B, L], paths [leaf, L],
  and of each level prototypes and noise [C, d].

  The last class of each of the two finer levels has no example.
  """
  r, n = rng('hcal', name), HCAL[name]['levels']
  paths = np.array(
    [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 1, 4], [1, 2, 5], [1, 2, 6], [1, 3, 7]]
  )[:, 3 - n :]
  labels, shapes = paths[r.integers(7, size=14)], [(m + 1, 16) for m in paths.max(0)]
  epsilon = hcal_noise(name)
  return (
    r.standard_normal((14, 16)),
    labels,
    paths,
    [0.01 * r.standard_normal(s) for s in shapes],
    [r.uniform(-epsilon, epsilon, s) for s in shapes],
  )


def direction(name, n, d):
  """float64 [n, d]: the scalar that is differentiated is sum(features * direction). One direction
  for all images would leave next to no gradient:
  batch norm holds the mean over the batch fixed."""
  return rng('direction', name).standard_normal((n, d))


def pin(x, count=32):
  """What is kept of an array: its norm and `count` evenly spaced entries of it, flattened in
  torch's layout."""
  x = np.asarray(x, np.float64).ravel()
  position = np.linspace(0, x.size - 1, min(count, x.size)).round().astype(int)
  return {
    'norm': float(f'{np.linalg.norm(x):.9g}'),
    'entries': [float(f'{v:.9g}') for v in x[position]],
  }


def difference(ours, golden):
  """Return the largest difference of two pins, relative to the largest entry or to the norm."""
  a, b = np.array(ours['entries']), np.array(golden['entries'])
  if a.shape != b.shape or not np.isfinite(a).all():
    return float('inf')
  return float(
    max(
      np.abs(a - b).max() / max(np.abs(b).max(), 1e-30),
      abs(ours['norm'] - golden['norm']) / max(golden['norm'], 1e-30),
    )
  )


def linear(shape):
  """A kernel's shape, that of a 1x1 convolution as of a linear layer: timm has the one or the other
  by the size of a net."""
  return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def names_digest(shapes):
  """sha256 over sorted names and shapes {torch's key: shape}: whether two state dicts have the
  same entries."""
  return hashlib.sha256(
    ''.join(f'{k}{list(map(int, s))}\n' for k, s in sorted(shapes.items())).encode()
  ).hexdigest()[:16]
