"""hierjax's side of the comparison of HCAL's loss with torch's: the presets of configs/hcal.py,
through the heads and the objective that training runs."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from parity import seeded

from configs import hcal
from hierjax.core import config
from hierjax.losses import balancers, build
from hierjax.losses.terms import Teacher
from hierjax.models import heads
from hierjax.taxonomy import Taxonomy
from hierjax.train import optim
from hierjax.train.objective import Task, objective

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def golden(folder=GOLDEN):
  return json.loads((pathlib.Path(folder) / 'hcal.json').read_text())


def evaluate(name, options=None, **changes):
  """Pins of a case of seeded.HCAL, as in hcal.json; changes are options that differ from the
  preset's."""
  case = seeded.HCAL[name]
  c = hcal.get_config(f'{case["reading"]},{"aircraft" if case["levels"] == 3 else "cifar100"}')
  c.loss.positives = case['positives']
  assert c.model.head.noise == seeded.hcal_noise(name)
  for path, value in changes.items():
    config.assign(c, path, value)
  features, labels, paths, prototypes, noise = seeded.hcal(name)
  levels = tuple('abc'[: paths.shape[1]])
  t = Taxonomy.from_rows(
    levels, [[f'{level}{i}' for level, i in zip(levels, path)] for path in paths]
  )
  module = heads.Prototypes(
    tuple((level, t.num_classes(level)) for level in levels),
    ((),) * len(levels),
    temperature=c.model.head.temperature,
    dot_product=c.model.head.dot_product,
  )
  task = Task(
    model=module,
    losses=build.build(c, t, levels, labels),
    weights=dict.fromkeys(levels, 1.0),
    class_weights=None,
    balancer=None,
    balance_at='features',
    labels=None,
    momentum=None,
    schedule=None,
    clip=None,
    ema=None,
    micro_batches=1,
    seed=0,
  )
  phase = optim.Phase(0, 1, (), levels)
  labels, noise = jnp.asarray(labels, jnp.int32), jax.tree.map(jnp.float32, noise)

  def total(features, prototypes):
    # the noise is an argument, not drawn; the heads make the sums unit vectors
    moved = [heads.normalized(p) + n for p, n in zip(prototypes, noise)]

    def head(x, is_training):
      pairs = zip(levels, moved if is_training else prototypes)
      return module.apply({'params': {level: {'prototypes': p} for level, p in pairs}}, x, False)

    x = heads.normalized(features) if c.model.normalize else features
    shares, _ = objective(head, x, labels, task, phase, Teacher({}, {}))
    each = jnp.stack([shares[level] for level in levels])
    weights, _, _ = balancers.awa(c.balance.gamma).update(each, {})
    return (weights * each).sum(), {'losses': each, 'weights': weights}

  @functools.partial(jax.jit, compiler_options=options)
  def everything(features, prototypes):
    alone = jax.jacrev(lambda x: total(x, prototypes)[1]['losses'])(features)
    return *jax.value_and_grad(total, (0, 1), has_aux=True)(features, prototypes), alone

  (value, result), (by_features, by_prototypes), alone = everything(
    *jax.tree.map(jnp.float32, (features, prototypes))
  )
  result |= {
    'total': value,
    'features': by_features,
    **{f'prototypes {k}': x for k, x in enumerate(by_prototypes)},
    **{f'features {k}': x for k, x in enumerate(alone)},
  }
  return {k: seeded.pin(x) for k, x in result.items()}


def difference(name, expected, options=None, **changes):
  """Worst relative difference of a case from its pins."""
  result = evaluate(name, options, **changes)
  return max(seeded.difference(result[k], w) for k, w in expected.items())
