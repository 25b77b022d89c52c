"""Inference on the CPU: an exported model by onnxruntime against jax, and torch where it is.

python benchmarks/export_speed.py [--torch=PYTHON] [--seconds=3] [--models=NAME:SIZE,...]

The weights are drawn; all compute on all cores from uint8 images to features (torch: to ImageNet's
logits, channels_last, compiled where it compiles), in float32 but for one column. `cold` is a new
Python process from its start to the first answer of `hierjax.runtime`. Prints a table in Markdown
and the load of the machine. PYTHON has torch, torchvision and timm.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

MODELS = 'efficientnet_lite0:128,resnet50:224'
BATCHES = (1, 32)
TORCH_NAMES = {'efficientnet_lite0': 'tf_efficientnet_lite0'}
TORCH = """
import json, sys, time
import numpy as np, timm, torch
name, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
model = timm.create_model(name).eval().to(memory_format=torch.channels_last)
mean = torch.tensor((123.7, 116.3, 103.5))[:, None, None]
std = torch.tensor((58.4, 57.1, 57.4))[:, None, None]
def run(x):
  return model((x.permute(0, 3, 1, 2).float() - mean) / std)
rates = {}
for kind in ('eager', 'compiled'):
  call = run if kind == 'eager' else torch.compile(run)
  for batch in (1, 32):
    x = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    x = torch.from_numpy(x)
    try:
      with torch.inference_mode():
        call(x); call(x)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
          call(x); count += batch
      rates[f'{kind} {batch}'] = count / (time.perf_counter() - start)
    except Exception as e:
      print(kind, batch, type(e).__name__, str(e)[:200], file=sys.stderr)
print(json.dumps(rates))
"""
COLD = """
import sys, time
import numpy as np
from hierjax import runtime
model = runtime.load(sys.argv[1])
model.predict(np.zeros((300, 400, 3), np.uint8))
"""


def rate(call, images: np.ndarray, seconds: float) -> float:
  """Images a second of a function, after two calls that don't count."""
  call(images), call(images)
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    call(images)
    count += len(images)
  return count / (time.perf_counter() - start)


def untrained(name: str, size: int) -> types.SimpleNamespace:
  """What the export reads of a trained model, with drawn weights and 196 classes."""
  from hierjax import decide
  from hierjax.core import config
  from hierjax.models import classifier, initializers
  from hierjax.taxonomy import Taxonomy

  c = config.default()
  config.assign(c, 'model.backbone', name)
  config.assign(c, 'data.size', size)
  rows = [[f'make {i // 4}', f'model {i}'] for i in range(196)]
  taxonomy = Taxonomy.from_rows(['make', 'model'], rows)
  module = classifier.build(c, taxonomy, taxonomy.levels)
  return types.SimpleNamespace(
    c=c,
    taxonomy=taxonomy,
    levels=taxonomy.levels,
    classifier=module,
    variables=initializers.init(module, 0),
    rules=decide.default_rules(taxonomy),
    workdir=pathlib.Path('/nonexistent'),
    step=0,
  )


def write(trained, folder: pathlib.Path, model) -> None:
  """An artefact without its check, as that needs a run with data."""
  from hierjax.core import files
  from hierjax.evaluate import rules
  from hierjax.export import artefact, papers

  files.write(folder / 'model.onnx', model.SerializeToString())
  trained.taxonomy.to_csv(folder / 'taxonomy.csv')
  rules.write_rules(folder / 'decode.json', 'val', trained.rules, trained.taxonomy)
  artefact._seal(folder, papers.facts(trained, model, {}))


def cold_start(folder: pathlib.Path) -> float:
  """Seconds from the start of a process to its first answer, the best of three."""
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', COLD, str(folder)], check=True)
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def torch_rates(python: str, name: str, size: int, seconds: float) -> dict[str, float]:
  """Images a second of timm's model, by kind and batch."""
  command = [python, '-c', TORCH, TORCH_NAMES.get(name, name), str(size), str(seconds)]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  sys.stderr.write(result.stderr[-1500:])
  return json.loads(result.stdout) if result.returncode == 0 else {}


def measure(name: str, size: int, options: argparse.Namespace) -> list[str]:
  """The rows of the table for a model."""
  import jax

  from hierjax import runtime
  from hierjax.evaluate import collect
  from hierjax.export import int8, program

  trained = untrained(name, size)
  model = program.onnx_model(trained)
  with tempfile.TemporaryDirectory() as text:
    folder = pathlib.Path(text)
    write(trained, folder, model)
    exported = runtime.load(folder)
    noise = np.random.default_rng(1).integers(0, 256, (4, size, size, 3), np.uint8)
    write(trained, folder, int8.quantise(model, [noise]))
    in_int8 = runtime.load(folder)
    write(trained, folder, model)
    cold = cold_start(folder)
  step = jax.jit(
    lambda x: collect.eval_step(trained.variables, x, trained.classifier, trained.taxonomy)
  )
  torch = torch_rates(options.torch, name, size, options.seconds) if options.torch else {}
  rows = []
  for batch in BATCHES:
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    ours = rate(exported.run, images, options.seconds)
    by_jax = rate(lambda x: jax.block_until_ready(step(x)), images, options.seconds)
    others = [torch.get(f'{kind} {batch}') for kind in ('eager', 'compiled')]
    best = max(filter(None, others), default=None)
    by_int8 = rate(in_int8.run, images, options.seconds)
    cells = [f'{x:.1f}' if x else '–' for x in (ours, by_int8, by_jax, *others)]
    ratios = [
      f'{by_int8 / ours:.2f}',
      f'{ours / by_jax:.2f}',
      f'{ours / best:.2f}' if best else '–',
    ]
    rows.append(f'| {name} {size} px | {batch} | {" | ".join([*cells, *ratios])} | {cold:.2f} s |')
  return rows


def main() -> None:
  """Measure all models and print the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--torch', default='')
  parser.add_argument('--seconds', type=float, default=3.0)
  parser.add_argument('--models', default=MODELS)
  options = parser.parse_args()
  rows = []
  for word in options.models.split(','):
    name, _, size = word.partition(':')
    rows += measure(name, int(size), options)
  print(f'{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; images/s')
  heads = 'model', 'batch', 'onnxruntime', 'in int8', 'jax', 'torch eager', 'torch compiled'
  heads += 'int8 of float32', 'of jax', 'of torch', 'cold start'
  print(f'| {" | ".join(heads)} |')
  print('|---' * len(heads) + '|')
  print('\n'.join(rows))


if __name__ == '__main__':
  main()
