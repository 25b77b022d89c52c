"""A trained run on a taxonomy that has changed: what changed, and a run for the new one that keeps what the old one knew.

Every class of the new taxonomy comes from classes of the old one: by its name, or by a table of renames (`level,old,new`), where two old names with one new
one are a merge, and one old name with two new ones a split. Of the head's rows (of its last layer, or its prototypes)

  one source       keeps its row, bit for bit
  merged           keeps the rows of all its sources; its logit is their log-sum-exp, so that its probability is the sum of theirs (heads.folded)
  split in n       each part begins with the row of the whole, and log n less of bias, so that their probabilities add up to its own (prototypes have no bias:
                   each part has the logit of the whole)
  new              the mean of the rows of its siblings, the classes under the same parent (where there are none, of all classes); with a few images, a row
                   towards the mean of their features (`imprinted`)

Other parameters stay as they are. The optimiser starts anew.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import model as predict
from hierjax.core import files, parallel
from hierjax.core.errors import UserError, did_you_mean
from hierjax.data import sources
from hierjax.experiments.workdir import prepare
from hierjax.models import classifier, heads
from hierjax.report import runs
from hierjax.report.sections import migration
from hierjax.taxonomy import Taxonomy, close_matches, describe_difference, read_table, read_taxonomy
from hierjax.train import checkpoint, setup
from hierjax.train.state import to_parts

SEEN = 512  # training images at most whose mean feature is what an image of no class in particular looks like
KINDS = ('added', 'removed', 'renamed', 'moved', 'merged', 'split')


def read_renames(
  path: str | pathlib.Path, old: Taxonomy, new: Taxonomy
) -> dict[tuple[str, str], list[str]]:
  """{(level, old name): new names} of a CSV with the columns level, old, new. UserError 'FILE:ROW: ...' for names that the taxonomies lack."""
  columns, rows = read_table(path)
  if sorted(columns) != ['level', 'new', 'old']:
    raise UserError(f'{path}:1: the columns must be level, old and new, not {", ".join(columns)}')
  out: dict[tuple[str, str], list[str]] = {}
  for row, cells in rows:
    cell = dict(zip(columns, cells))
    for t, name, what in ((old, 'old', 'the old taxonomy'), (new, 'new', 'the new taxonomy')):
      if cell['level'] not in t.levels:
        raise UserError(
          f'{path}:{row}: {what} has no level {cell["level"]!r}{did_you_mean(cell["level"], t.levels)}; its levels are {", ".join(t.levels)}'
        )
      names = t.names[t.index(cell['level'])]
      if cell[name] not in names:
        close = close_matches(cell[name], names)
        raise UserError(
          f'{path}:{row}: {cell["level"]} {cell[name]!r} is not in {what}'
          + (f'; did you mean {close[0]!r}?' if close else '')
        )
    given = out.setdefault((cell['level'], cell['old']), [])
    if cell['new'] in given:
      raise UserError(f'{path}:{row}: repeats an earlier row')
    given.append(cell['new'])
  return out


def correspond(
  old: Taxonomy, new: Taxonomy, renames: Mapping[tuple[str, str], Sequence[str]]
) -> dict[str, list[tuple[int, ...]]]:
  """{level: for each class of the new taxonomy its sources, classes of the old one}, of the levels that both have."""
  out = {}
  for level in (level for level in new.levels if level in old.levels):
    ids = {name: i for i, name in enumerate(new.names[new.index(level)])}
    found: list[list[int]] = [[] for _ in ids]
    for i, name in enumerate(old.names[old.index(level)]):
      for target in renames.get((level, name), [name] if name in ids else []):
        found[ids[target]].append(i)
    out[level] = [tuple(s) for s in found]
  return out


def difference(
  old: Taxonomy, new: Taxonomy, renames: Mapping[tuple[str, str], Sequence[str]] | None = None
) -> dict[str, dict[str, list[str]]]:
  """{level: {kind of KINDS: texts}}: what has happened to the classes of each level that both have.

  A class has moved where it lies under a class that none of its old parents became.
  """
  all_sources, out = correspond(old, new, renames or {}), {}
  became = {
    level: np.zeros((len(found), old.num_classes(level)), bool)
    for level, found in all_sources.items()
  }  # [new, old]
  for level, found in all_sources.items():
    for c, s in enumerate(found):
      became[level][c, list(s)] = True
  for level, found in all_sources.items():
    names, before = new.names[new.index(level)], old.names[old.index(level)]
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    targets, coarser = (
      became[level].sum(0),
      [a for a in all_sources if a in new.levels[: new.index(level)]],
    )
    before_under, now_under = ({a: t.relation(level, a) for a in coarser} for t in (old, new))
    for c, s in enumerate(found):
      if not s:
        kinds['added'].append(names[c])
      elif len(s) > 1:
        kinds['merged'].append(f'{" + ".join(before[i] for i in s)} -> {names[c]}')
      elif targets[s[0]] == 1 and before[s[0]] != names[c]:
        kinds['renamed'].append(f'{before[s[0]]} -> {names[c]}')
      for above in coarser if s else ():
        parents, now = before_under[above][list(s)].any(0), now_under[above][c]
        if (now & ~became[above][:, parents].any(1)).any():
          was, at = (
            ' and '.join(t.names[t.index(above)][i] for i in np.flatnonzero(of))
            for t, of in ((old, parents), (new, now))
          )
          gone = ' (gone)' if not became[above][:, parents].any(0).all() else ''
          kinds['moved'].append(f'{names[c]}: {above} {was}{gone} -> {at}')
    for i, n in enumerate(targets):
      if n == 0:
        kinds['removed'].append(before[i])
      elif n > 1:
        kinds['split'].append(
          f'{before[i]} -> {" + ".join(names[c] for c in np.flatnonzero(became[level][:, i]))}'
        )
    out[level] = kinds
  return out


def told(found: Mapping[str, Mapping[str, Sequence[str]]], some: int = 10) -> str:
  """difference() in lines."""
  lines = []
  for level, kinds in found.items():
    said = [
      f'  {len(texts)} {kind}: {", ".join(texts[:some])}{", ..." if len(texts) > some else ""}'
      for kind, texts in kinds.items()
      if texts
    ]
    lines += [f'{level}:' + ('' if said else ' unchanged'), *said]
  return '\n'.join(lines)


def history(
  source: runs.Run, found: Mapping[str, Sequence[tuple[int, ...]]], new: Taxonomy
) -> dict[str, dict[str, dict]]:
  """{level: {class: {'kind': new, kept, renamed, merged or part, 'right', 'images': those of its sources on the old run's val, where it was evaluated}}}."""
  out: dict[str, dict[str, dict]] = {}
  for level, sources_of in found.items():
    parts = np.bincount(
      np.array([i for s in sources_of for i in s], int),
      minlength=source.taxonomy.num_classes(level),
    )
    counts, was, out[level] = (
      source.per_class(level),
      source.taxonomy.names[source.taxonomy.index(level)],
      {},
    )
    for name, s in zip(new.names[new.index(level)], sources_of):
      kind = (
        'new'
        if not s
        else 'merged'
        if len(s) > 1
        else 'part'
        if parts[s[0]] > 1
        else 'kept'
        if was[s[0]] == name
        else 'renamed'
      )
      right, images = (0, 0) if counts is None else counts[list(s)].sum(0).tolist()
      out[level][name] = {'kind': kind, 'right': right, 'images': images}
  return out


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where the rows of a level's new head come from."""

  rows: tuple[int, ...]  # of each new class
  source: np.ndarray  # int [R_new]: the old row, -1 = new
  shares: (
    np.ndarray
  )  # float32 [R_new]: what is taken off the bias, log of the number of parts of a split
  donors: dict[int, np.ndarray]  # new row -> the old rows whose mean it begins with


def plan(
  level: str,
  old: Taxonomy,
  new: Taxonomy,
  found: Sequence[tuple[int, ...]],
  old_rows: Sequence[int],
) -> Plan:
  """The rows of a level's head, where `found` is correspond()'s and each old class had so many rows."""
  first = heads.first_rows(old_rows)
  of = [np.arange(a, a + n) for a, n in zip(first, old_rows)]
  parts = np.bincount(np.array([i for s in found for i in s], int), minlength=len(old_rows))
  source, shares, rows, donors = [], [], [], {}
  for c, s in enumerate(found):
    taken = [r for i in s for r in of[i]]
    if not taken:
      donors[len(source)] = np.concatenate([of[i] for i in siblings(level, new, found, c)] or of)
    shares += [np.log(parts[i]) for i in s for _ in of[i]] or [0.0]
    source += taken or [-1]
    rows.append(max(1, len(taken)))
  return Plan(tuple(rows), np.array(source, int), np.array(shares, np.float32), donors)


def siblings(level: str, new: Taxonomy, found: Sequence[tuple[int, ...]], c: int) -> list[int]:
  """Old classes that have become classes with the same parent as class c of a level, by the closest level above where there are any."""
  for above in reversed(new.levels[: new.index(level)]):
    shares = new.relation(level, above)
    if out := sorted(
      {i for other in np.flatnonzero((shares & shares[c]).any(1)) for i in found[other]}
    ):
      return out
  return []


def carried(head: Mapping, plan: Plan) -> dict:
  """The parameters of a level's head with the rows of the plan; bit for bit, but for new rows and the biases of splits."""
  head = dict(head)
  if 'output' in head:
    return {**head, 'output': carried(head['output'], plan)}
  out = {}
  for name, x in head.items():
    axis, x = (x.ndim - 1 if name in ('kernel', 'bias') else 0), np.asarray(x)
    y = np.take(x, np.maximum(plan.source, 0), axis)
    for row, donors in plan.donors.items():
      mean = np.take(x, donors, axis).mean(axis)
      y[(slice(None),) * axis + (row,)] = mean
    out[name] = np.where(plan.shares > 0, y - plan.shares, y) if name == 'bias' else y
  return out


def imprinted(
  head: Mapping, row: int, others: np.ndarray, mean: np.ndarray, center: np.ndarray
) -> None:
  """Makes `row` of a level's head that of a class whose images have the mean feature [d], where those of all classes have `center`.

  A prototype is that mean as a unit vector. Of a linear head the row lies as far from the mean of the `others` as those do on average, towards the mean feature
  (after Qi et al. 2018, Low-Shot Learning with Imprinted Weights, arXiv:1712.07136), and the bias is such that half-way from the centre the class is as likely
  as the others are on average.
  """
  if 'prototypes' in head:
    head['prototypes'][row] = mean / np.linalg.norm(mean)
    return
  kernel, bias = head['kernel'], head['bias']
  average = kernel[:, others].mean(1)
  away = mean - center
  away *= np.linalg.norm(kernel[:, others] - average[:, None], axis=0).mean() / max(
    np.linalg.norm(away), 1e-12
  )
  kernel[:, row] = average + away
  bias[row] = bias[others].mean() - away @ (mean + center) / 2


def means(
  model: predict.Model,
  examples: sources.Examples,
  wanted: Mapping[str, Sequence[int]],
  taxonomy: Taxonomy,
  shots: int,
  seed: int,
) -> tuple[np.ndarray, dict[str, dict[int, np.ndarray]]]:
  """(mean feature [d] of the training images, {level: {class: mean feature of its first `shots` images in a shuffled order}}), by the old run's backbone."""
  order = np.random.default_rng(seed).permutation(len(examples.labels))
  labels = examples.labels[order]
  few = {
    (level, c): order[labels[:, taxonomy.index(level)] == c][:shots]
    for level, classes in wanted.items()
    for c in classes
  }
  chosen = np.unique(np.concatenate([order[:SEEN], *few.values()]))
  out = model.collect(
    sources.subset(
      dataclasses.replace(
        examples, labels=np.full((len(examples.labels), len(model.taxonomy.levels)), -1, np.int32)
      ),
      chosen,
    ),
    with_features=True,
  )
  feature = dict(zip(chosen[out.index].tolist(), np.asarray(out.features, np.float64)))
  found: dict[str, dict[int, np.ndarray]] = {level: {} for level in wanted}
  for (level, c), images in few.items():
    if there := [feature[i] for i in images.tolist() if i in feature]:
      found[level][c] = np.mean(there, 0)
  return np.mean([feature[i] for i in order[:SEEN].tolist() if i in feature], 0), found


def migrate(
  source: str | pathlib.Path,
  path: str,
  workdir: str | pathlib.Path,
  c: ConfigDict,
  renames: str = '',
  shots: int = 0,
) -> str:
  """Makes the run `workdir` for the taxonomy in file `path` from the trained run `source`, and returns what has changed, in lines, and what the new run
  makes of its val before any training, which is kept in WORKDIR/start.

  `c` is the old run's configuration with what the new one shall change (data, train, ...). `train.fit` goes on from there. UserError where the new taxonomy
  lacks a level that has a head, where the run is there already, and where a form of heads cannot be carried over.
  """
  source, workdir = pathlib.Path(source), pathlib.Path(workdir)
  if (workdir / 'config.json').exists():
    raise UserError(f'--workdir={workdir}: there is a run already; give another folder')
  model = predict.load(source)
  old, new = model.taxonomy, read_taxonomy(path)
  if old.multi:
    raise UserError(
      f'{source}: has multi levels ({", ".join(old.multi)}); only runs on exclusive levels can be carried over'
    )
  if gone := [level for level in model.levels if level not in new.levels]:
    raise UserError(
      f'{path}: has no level {", ".join(gone)}, which {source} has a head for; its levels are {", ".join(new.levels)}'
    )
  if new.levels[-1] != model.levels[-1]:
    new = new.coarsen(model.levels[-1])
  names = read_renames(renames, old, new) if renames else {}
  found, changes = correspond(old, new, names), difference(old, new, names)
  old_rows = {level: classifier.rows(model.c.model, old, level) for level in model.levels}
  plans = {level: plan(level, old, new, found[level], old_rows[level]) for level in model.levels}
  if model.c.model.heads == 'cascaded':
    read = (model.classifier.heads.order or model.levels)[:-1]
    if changed := [
      level for level in read if plans[level].source.tolist() != list(range(sum(old_rows[level])))
    ]:
      raise UserError(
        f'{source}: cascaded heads read the logits of {changed[0]}, whose classes have changed: such a run cannot be carried over'
      )
  if shots and model.c.model.heads not in ('flat', 'parallel', 'prototypes'):
    raise UserError(
      f'--shots={shots}: only flat, parallel and prototypes heads can start a class from images, not {model.c.model.heads}'
    )
  c.baseline, c.data.taxonomy = None, str(path)
  c.model.parts = tuple(
    (level, new.names[new.index(level)][k], n)
    for level, p in plans.items()
    for k, n in enumerate(p.rows)
    if n > 1
  )
  run = setup.build(c)
  if run.taxonomy.hash() != new.hash():
    held = (
      f'; the run holds out data.hold_out={";".join(c.data.hold_out)}, and --config.data.hold_out= puts that back'
      if c.data.hold_out
      else ''
    )
    raise UserError(
      f'{path}: the data have another taxonomy: {describe_difference(new, run.taxonomy)}{held}'
    )
  variables = jax.device_get(model.variables)
  made = {level: carried(variables['params']['heads'][level], p) for level, p in plans.items()}
  if shots:
    added = {level: [k for k, s in enumerate(found[level]) if not s] for level in model.levels}
    center, of = means(model, run.train, added, new, shots, c.seed)
    for level, classes in of.items():
      first, there = heads.first_rows(plans[level].rows), np.flatnonzero(plans[level].source >= 0)
      for k, mean in classes.items():
        imprinted(made[level], int(first[k]), there, mean, center)
  variables = {
    **variables,
    'params': {**variables['params'], 'heads': {**variables['params']['heads'], **made}},
  }
  state = setup.initial_state(run)
  state = state.replace(
    **parallel.put_replicated(variables, run.mesh),
    ema=parallel.put_replicated(variables, run.mesh) if state.ema else state.ema,
  )
  begun, classes = workdir / runs.START, history(runs.read(source, baseline=False), found, new)
  prepare(workdir, run)
  store = checkpoint.Checkpoints(workdir / 'checkpoints', run.best, writes=True)
  store.save(0, to_parts(state), None)
  store.wait()
  store.close()
  begun.mkdir()
  for name in ('config.json', 'taxonomy.csv'):
    shutil.copy(workdir / name, begun)
  shutil.copytree(workdir / 'checkpoints', begun / 'checkpoints')
  predict.load(begun).evaluate(run.c.data.val, examples=run.val, tune=True)
  known = {
    'from': str(source.absolute()),
    'step': model.step,
    'shots': shots,
    'changes': changes,
    'classes': classes,
  }
  files.write(workdir / 'migration.json', json.dumps(known, indent=2) + '\n')
  return '\n'.join([told(changes), *migration.summary(runs.read(begun, baseline=False), known)])
