"""Bytes of the training state that each of several devices holds, by what they share out.

  python benchmarks/state_bytes.py --backbone=resnet50 --classes=family=1000,species=100000

Nothing is compiled or allocated: the sizes follow from the shapes and where train.state puts them.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from hierjax.core import config, parallel
from hierjax.data import sources
from hierjax.data.levels import restrict
from hierjax.models import classifier, counts
from hierjax.train import optim, state


def main():
  """Print a line for each value of the option."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--backbone', default='resnet50')
  parser.add_argument('--classes', default='class=100000', help='LEVEL=NUMBER,..., coarse to fine')
  parser.add_argument('--optimiser', default='adam')
  parser.add_argument('--devices', type=int, default=8)
  args = parser.parse_args()
  c = config.default()
  c.model.backbone, c.data.root = args.backbone, f'classes:{args.classes}'
  c.optim.name, c.train.steps, c.train.epochs = args.optimiser, 1, None
  data, levels = restrict(sources.load(c.data), c.model)
  shapes = counts.shapes(classifier.build(c, data.taxonomy, levels), c.data.size)
  params, batch_stats = shapes['params'], shapes.get('batch_stats', {})
  tx = optim.transformation(c, optim.labels(params, c.optim.rules))
  shapes_of_state = state.TrainState(
    step=jax.ShapeDtypeStruct((), np.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=jax.eval_shape(tx.init, params),
    ema={},
    plateau={},
    balancer={},
    monitor={},
  )
  n = args.devices
  for shard, of_classes in ((None, 1), ('optimizer', 1), ('all', 1), (None, n), ('optimizer', n)):
    mesh = jax.sharding.AbstractMesh(
      (n // of_classes, of_classes), (parallel.AXIS, parallel.CLASS_AXIS)
    )
    placed = state.shardings(shapes_of_state, mesh, shard)
    sizes = jax.tree.map(
      lambda x, sharding: int(np.prod(sharding.shard_shape(x.shape))) * x.dtype.itemsize,
      shapes_of_state,
      placed,
    )
    total = sum(jax.tree.leaves(sizes)) / 1e9
    print(f'train.shard={shard} train.class_devices={of_classes}: {total:.3f} GB a device')


if __name__ == '__main__':
  main()
