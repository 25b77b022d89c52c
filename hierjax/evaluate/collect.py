"""Evaluation: probabilities for every example of a split, padded and masked, then decoding and metrics."""

import contextlib
import functools
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from hierjax.core import files, parallel
from hierjax.core.errors import UserError
from hierjax.core.metrics import logged_names, lookup, resolve_best
from hierjax.data import pipeline, sources
from hierjax.data.sources import Examples
from hierjax.decide import paths as decode
from hierjax.evaluate import bootstrap, metrics
from hierjax.losses import multi
from hierjax.models import classifier, heads
from hierjax.taxonomy import Mixed, Taxonomy

EMBEDDED = 1000  # examples at most whose features are kept for the report's pictures of prototypes
TOP = 5  # choices of each head that are kept for every example


def eval_step(
  variables: Mapping, images: jax.Array, model: nn.Module, taxonomy: Taxonomy | Mixed | None = None
) -> tuple[dict[str, jax.Array], jax.Array]:
  """images [B, H, W, 3], [B, views, H, W, 3] or features [B, d] → ({level: probabilities [B, C], mean over the views}, features of the first view [B, d]).

  Those of multi levels do not sum to 1, and none exceeds that of a class above it, multi or exclusive.
  """
  views = images.shape[1] if images.ndim == 5 else 1
  x = rearrange(images, 'b v h w c -> (b v) h w c') if images.ndim == 5 else images
  logits, features = model.apply(variables, x)
  binary = taxonomy.multi if taxonomy else ()
  probs = {
    level: (jax.nn.sigmoid if level in binary else jax.nn.softmax)(l.astype(jnp.float32))
    for level, l in logits.items()
  }
  probs = {level: rearrange(p, '(b v) c -> b v c', v=views).mean(1) for level, p in probs.items()}
  if binary:
    probs |= multi.probabilities(probs, taxonomy)
  return probs, rearrange(features.astype(jnp.float32), '(b v) d -> b v d', v=views)[:, 0]


def stepper(model: nn.Module, mesh, taxonomy: Taxonomy | Mixed | None = None) -> Callable:
  """The compiled eval_step over the mesh. Make it once: every call of it reuses the compiled program."""
  r, d = parallel.replicated(mesh), parallel.split(mesh)
  return jax.jit(
    functools.partial(eval_step, model=model, taxonomy=taxonomy),
    in_shardings=(r, d),
    out_shardings=(d, d),
  )


class Outputs:
  """What the model says of a split, in the order of its examples; `index` leaves out what could not be read.

  probs {level: float64 [n, C]}, features [n, d] or None, labels [n, L], index [n], broken: names of the unreadable files,
  multi int8 [n, M] or None.
  """

  def __init__(self, probs, features, labels, index, broken, multi=None):
    self.probs, self.features, self.labels, self.index, self.broken, self.multi = (
      probs,
      features,
      labels,
      index,
      broken,
      multi,
    )


def collect(
  step: Callable,
  variables: Mapping,
  examples: Examples,
  c,
  mesh,
  views: int = 1,
  with_features: bool = False,
  batch_size: int = 0,
  progress: Callable[[int, int], None] | None = None,
  may_be_empty: bool = False,
) -> Outputs:
  """Runs `step` over all of `examples` and asserts that each was either counted or named as unreadable; UserError where that leaves none."""
  n, probs, features, index, mask, broken = len(examples.labels), [], [], [], [], set()
  batch_size = max(mesh.size, (batch_size or c.eval.batch_size) // views // mesh.size * mesh.size)
  batches = pipeline.eval_batches(
    examples,
    batch_size=batch_size,
    size=c.data.size,
    resize=c.data.resize,
    views=views,
    threads=c.data.threads,
    workers=c.data.workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  with contextlib.closing(batches):  # an interruption may come in the middle
    for i, batch in enumerate(batches):
      if c.data.strict and (batch['broken'] >= 0).any():
        name = examples.files[int(batch['broken'].max())]
        raise UserError(
          f'{name}: unreadable image in split {examples.name!r} (data.strict); without data.strict it is skipped and counted'
        )
      p, f = step(variables, parallel.put_batch({'x': batch['image']}, mesh)['x'])
      host = parallel.gather(
        (
          p,
          f if with_features else None,
          parallel.put_batch({k: batch[k] for k in ('index', 'mask', 'broken')}, mesh),
        )
      )
      probs.append(host[0])
      features.append(host[1])
      index.append(host[2]['index'])
      mask.append(host[2]['mask'])
      broken.update(host[2]['broken'][host[2]['broken'] >= 0].tolist())
      if progress:
        progress(min((i + 1) * batch_size, n), n)
  index, keep = np.concatenate(index), np.concatenate(mask) > 0
  order = np.argsort(index[keep], kind='stable')
  take = lambda parts: np.concatenate(parts)[keep][order]
  seen = index[keep][order]
  assert len(np.unique(seen)) == len(seen) and len(seen) + len(broken) == n, (
    f'split {examples.name}: {len(seen)} of {n} examples counted'
  )
  if not len(seen) and not may_be_empty:
    raise UserError(
      f'split {examples.name!r}: none of its {n} images can be read; the first is {examples.files[0]}'
    )
  out = {level: take([p[level] for p in probs]).astype(np.float64) for level in probs[0]}
  return Outputs(
    out,
    take(features) if with_features else None,
    examples.labels[seen],
    seen,
    sorted(examples.files[b] for b in broken),
    None if examples.multi is None else examples.multi[seen],
  )


def loss(outputs: Outputs, taxonomy: Taxonomy | Mixed, weights: Mapping[str, float]) -> float:
  """Weighted sum over the heads of the mean cross-entropy with hard labels, unknown ones left out; of multi levels the binary one, also over the classes."""
  total = 0.0
  for level, p in outputs.probs.items():
    if level in taxonomy.multi:
      y = outputs.multi[:, taxonomy.columns[level]]
      right = np.where(y == 1, p, 1 - p)[y >= 0]
      total += (
        weights[level] * float(-np.log(np.maximum(right, 1e-12)).mean()) if len(right) else 0.0
      )
      continue
    y = outputs.labels[:, taxonomy.index(level)]
    known = y >= 0
    if known.any():
      total += weights[level] * float(-np.log(np.maximum(p[known, y[known]], 1e-12)).mean())
  return total


def decodings(
  outputs: Outputs, taxonomy: Taxonomy | None, weights: Mapping[str, float] | None = None
) -> dict[str, decode.Decoded]:
  """The three decisions on exclusive levels, none without those; `weights` of the joint one default to 1 for each head."""
  if taxonomy is None:
    return {}
  probs = [outputs.probs.get(level) for level in taxonomy.levels]
  w = [(weights or {}).get(level, 1.0) for level in taxonomy.levels]
  return {
    'independent': decode.independent(probs, taxonomy),
    'leaf': decode.leaf(probs, taxonomy),
    'joint': decode.joint(probs, taxonomy, w),
  }


def fitting(decoded: Mapping[str, decode.Decoded], taxonomy: Taxonomy | Mixed) -> np.ndarray | bool:
  """The multi classes that may stand beside the joint decision, bool [N, M]; all where one kind of level is missing."""
  return taxonomy.fits(decoded['joint'].pred) if taxonomy.exclusive and taxonomy.several else True


def tune(outputs: Outputs, taxonomy: Taxonomy) -> dict[str, float]:
  """Weights of the joint decision that are best on these examples (val, never test)."""
  probs = [outputs.probs.get(level) for level in taxonomy.levels]
  return {
    level: float(w)
    for level, w in zip(taxonomy.levels, decode.tune(probs, outputs.labels, taxonomy))
  }


def summary(
  split: str,
  outputs: Outputs,
  taxonomy: Taxonomy | Mixed,
  tta: int,
  weights: Mapping[str, float],
  thresholds: Mapping[str, np.ndarray] | None = None,
) -> dict:
  """The JSON of `--mode=evaluate`."""
  t, heads = taxonomy.exclusive, [level for level in taxonomy.levels if level in outputs.probs]
  decoded = decodings(outputs, t, weights)
  out = {
    'split': split,
    'n': len(outputs.index),
    'unreadable': len(outputs.broken),
    'tta': tta,
    'heads': heads,
    'weights': dict(weights),
    'decode': {name: metrics.evaluate(d, outputs.labels, t, heads) for name, d in decoded.items()},
    'intervals': {
      name: bootstrap.intervals(metrics.per_example(d, outputs.labels, t))
      for name, d in decoded.items()
    },
  }
  if taxonomy.several:
    out |= multi.summary(
      outputs.probs, outputs.multi, thresholds, taxonomy.several, fitting(decoded, taxonomy)
    )
  return out


def write(
  workdir: pathlib.Path,
  result: Mapping,
  outputs: Outputs,
  taxonomy: Taxonomy | Mixed,
  examples: Examples,
) -> None:
  """DIR/eval_SPLIT.json, and DIR/predictions_SPLIT.npz: files, labels, the prediction [n, L] and its probability [n, L] of each decoding, and the first
  TOP choices of the head of column k: top_k [n, TOP] and their probabilities top_prob_k. Of multi levels multi_labels, multi_prob and the decision
  multi_pred, each [n, M].

  Of several processes the first one writes.
  """
  if not parallel.first():
    return
  files_read = np.array([examples.files[i] for i in outputs.index])
  labels = outputs.labels
  if not taxonomy.exclusive:  # the archive has a column for each level
    labels = np.full((len(labels), len(taxonomy.levels)), -1, np.int32)
  arrays = {'files': files_read, 'labels': labels}
  decoded, several = decodings(outputs, taxonomy.exclusive, result['weights']), taxonomy.several
  if several:
    thresholds = {
      level: np.array([c['threshold'] for c in found['classes'].values()])
      for level, found in result['multi'].items()
    }
    prob = multi.join(outputs.probs, several)
    decided = multi.decide(
      prob, multi.join(thresholds, several), several, fitting(decoded, taxonomy)
    )
    arrays |= {
      'multi_labels': outputs.multi,
      'multi_prob': prob.astype(np.float32),
      'multi_pred': decided,
    }
  for name, d in decoded.items():
    arrays[f'pred_{name}'] = d.pred
    arrays[f'prob_{name}'] = np.stack(
      [np.take_along_axis(p, d.pred[:, k : k + 1], 1)[:, 0] for k, p in enumerate(d.prob)], 1
    ).astype(np.float32)
  for level in taxonomy.exclusive.levels if decoded else ():
    if (p := outputs.probs.get(level)) is None:
      continue
    k, best = taxonomy.index(level), np.argsort(-p, axis=1, kind='stable')[:, :TOP]
    arrays[f'top_{k}'], arrays[f'top_prob_{k}'] = (
      best.astype(np.int32),
      np.take_along_axis(p, best, 1).astype(np.float32),
    )
  archive = io.BytesIO()
  np.savez_compressed(archive, **arrays)
  files.write(workdir / f'predictions_{result["split"]}.npz', archive.getvalue())
  files.write(workdir / f'eval_{result["split"]}.json', json.dumps(result, indent=2) + '\n')


def write_embedding(
  path: pathlib.Path,
  step: Callable,
  variables: Mapping,
  examples: Examples,
  c,
  mesh,
  taxonomy: Taxonomy | Mixed,
) -> None:
  """What the report draws of prototype heads: features [n, d] of at most EMBEDDED evenly chosen examples, their labels [n, L], and prototype_K [C, d] of
  each column K with a head. Nothing for other heads, and multi levels."""
  prototypes = {}
  for level, p in variables['params']['heads'].items():
    if 'prototypes' in p and level not in taxonomy.multi:
      rows = classifier.rows(c.model, taxonomy, level)  # of a class with several the mean is drawn
      sums = np.add.reduceat(np.asarray(p['prototypes']), heads.first_rows(rows))
      prototypes[f'prototype_{taxonomy.index(level)}'] = sums / np.array(rows, np.float32)[:, None]
  if not prototypes:
    return
  n = len(examples.labels)
  chosen = sources.subset(examples, np.linspace(0, n - 1, min(n, EMBEDDED)).round())
  out = collect(step, variables, chosen, c, mesh, with_features=True)
  if parallel.first():
    archive = io.BytesIO()
    np.savez_compressed(archive, features=out.features, labels=out.labels, **prototypes)
    files.write(path, archive.getvalue())


def best_metric(text: str, taxonomy: Taxonomy | Mixed, heads: Sequence[str]) -> str:
  """Resolve train.best to the name of a validation metric; see `core.metrics.resolve_best`."""
  levels = taxonomy.exclusive.levels if taxonomy.exclusive else ()
  return resolve_best(text, levels, [level for level in heads if level in levels], taxonomy.multi)


def flat(
  evaluation: Mapping, loss_value: float, heads: Sequence[str], tags: Sequence[str]
) -> dict[str, float]:
  """Pick from an evaluation the numbers that training logs and chooses checkpoints by.

  Args:
    evaluation: {'decode': {decision: metrics}, 'multi': {level: metrics}}.
    loss_value: the validation loss.
    heads: exclusive levels with a head.
    tags: tag levels.

  Returns:
    {name: value}; an undefined metric of tags is 0, another one is left out.
  """
  names = logged_names(heads, tags)
  values = {name: lookup(evaluation, name) for name in names}
  for name in names:
    if values[name] is None and name.rpartition('/')[2] in tags:
      values[name] = 0.0
  values['loss'] = loss_value
  return {name: value for name, value in values.items() if value is not None}
