"""Each row of configs/tables/hierarchy_pays.py trains, with half of the finest labels missing."""

import jax
import numpy as np
import pytest
import tiny

from configs.tables.hierarchy_pays import OPTIONS
from hierjax.core import parallel
from hierjax.train import optim, setup
from hierjax.train.step import train_step

# Those that differ from another one by weights alone compile the same again.
ROWS = [row for row in OPTIONS if not row.endswith(('_s1', '_levels'))]


@pytest.mark.parametrize('row', ROWS)
def test_the_loss_of_a_row_falls(row, tiny_backbone, one_device):
  """On drawn features, so that no backbone is compiled."""
  c = tiny.run_config(**OPTIONS[row], **{'data.unlabelled': 0.5, 'optim.lr': 0.03})
  run = setup.build(c)
  task, phase, state = run.task, run.phases[0], setup.initial_state(run)
  tx = optim.transformation(run.c, task.labels)
  labels = run.train.labels[:32]
  assert (labels[:, -1] < 0).any() and (labels[:, 0] >= 0).all()
  rng = np.random.default_rng(0)
  prototypes = rng.standard_normal((run.taxonomy.num_classes('make'), 16), 'f4')
  features = prototypes[labels[:, 0]] + 0.3 * rng.standard_normal((32, 16), 'f4')
  batch = parallel.put_train({'image': features, 'labels': labels}, {}, run.mesh)
  step = jax.jit(lambda state: train_step(state, batch, {}, task, phase, tx, run.mesh))
  losses = []
  for _ in range(12):
    state, out = step(state)
    losses.append({name: float(out[f'loss/{name}']) for name in task.names})
  assert np.isfinite([*losses[-1].values()]).all()
  for level in {*task.names} & {*run.levels}:
    assert losses[-1][level] < 0.9 * losses[0][level], level
