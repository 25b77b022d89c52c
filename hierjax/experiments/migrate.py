"""Carrying a trained run over to a taxonomy that has changed.

Every class of the new taxonomy comes from classes of the old one: by its name, or by a table of
renames (level,old,new), where two old names with one new one are a merge, and one old name with two
new ones a split. `migrate_heads` says what that means for the heads. Other parameters stay as they
are; the optimiser starts anew.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import model
from hierjax.core import files, json_files, parallel
from hierjax.core.errors import UserError, did_you_mean
from hierjax.data import split_record, taxonomies
from hierjax.data.findings import Findings
from hierjax.experiments import migrate_heads, run_lock
from hierjax.experiments.workdir import save_untrained
from hierjax.models import adapting, classifier
from hierjax.report import runs
from hierjax.report.sections import migration
from hierjax.taxonomy import Taxonomy, close_matches, describe_difference, read_table
from hierjax.train import setup

KINDS = ('added', 'removed', 'renamed', 'moved', 'merged', 'split')
# The forms of heads, linear in the features or prototypes, that can start a class from images.
FROM_IMAGES = ('flat', 'parallel', 'prototypes')
# (level, old name) → new names
Renames = Mapping[tuple[str, str], Sequence[str]]
# level → for each class of the new taxonomy the classes of the old one that it comes from
Sources = Mapping[str, Sequence[tuple[int, ...]]]


def read_renames(
  path: str | pathlib.Path, old: Taxonomy, new: Taxonomy
) -> dict[tuple[str, str], list[str]]:
  """Read a table of renames.

  Args:
    path: a CSV with the columns level, old, new.
    old: the old taxonomy.
    new: the new taxonomy.

  Returns:
    (level, old name) → new names.

  Raises:
    UserError: 'FILE:ROW: ...' for a level or a class that the taxonomies do not have.
  """
  columns, rows, _ = read_table(path)
  if sorted(columns) != ['level', 'new', 'old']:
    raise UserError(f'{path}:1: the columns must be level, old and new, not {", ".join(columns)}')
  renames: dict[tuple[str, str], list[str]] = {}
  for number, cells in rows:
    cell = dict(zip(columns, cells))
    for taxonomy, word in ((old, 'old'), (new, 'new')):
      names = taxonomy.aliases.get(cell['level'], {})
      cell[word] = names.get(cell[word], cell[word])
      _check_class(f'{path}:{number}', taxonomy, word, cell['level'], cell[word])
    targets = renames.setdefault((cell['level'], cell['old']), [])
    if cell['new'] in targets:
      raise UserError(f'{path}:{number}: repeats an earlier row')
    targets.append(cell['new'])
  return renames


def _check_class(where: str, taxonomy: Taxonomy, word: str, level: str, name: str) -> None:
  if level not in taxonomy.levels:
    raise UserError(
      f'{where}: the {word} taxonomy has no level {level!r}{did_you_mean(level, taxonomy.levels)};'
      f' its levels are {", ".join(taxonomy.levels)}'
    )
  names = taxonomy.names[taxonomy.index(level)]
  if name not in names:
    close = close_matches(name, names)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise UserError(f'{where}: {level} {name!r} is not in the {word} taxonomy{hint}')


def correspond(old: Taxonomy, new: Taxonomy, renames: Renames) -> dict[str, list[tuple[int, ...]]]:
  """Return the sources of each class of the new taxonomy, for the levels that both have.

  Args:
    old: the old taxonomy.
    new: the new taxonomy.
    renames: of classes, {} for none.
  """
  result = {}
  for level in new.levels:
    if level not in old.levels:
      continue
    ids = {name: i for i, name in enumerate(new.names[new.index(level)])}
    sources: list[list[int]] = [[] for _ in ids]
    for i, name in enumerate(old.names[old.index(level)]):
      # an alias of a class of the new taxonomy is a name that it had
      same = name if name in ids else new.aliases.get(level, {}).get(name)
      for target in renames.get((level, name), [same] if same else []):
        sources[ids[target]].append(i)
    result[level] = [tuple(classes) for classes in sources]
  return result


def class_changes(
  old: Taxonomy, new: Taxonomy, renames: Renames | None = None
) -> dict[str, dict[str, list[str]]]:
  """Return what has happened to the classes of each level that both taxonomies have.

  A class has moved where it lies under a class that none of its old parents became.

  Args:
    old: the old taxonomy.
    new: the new taxonomy.
    renames: of classes, None for none.

  Returns:
    {level: {kind of KINDS: texts}}.
  """
  sources, became = correspond(old, new, renames or {}), {}
  for level, of_level in sources.items():
    became[level] = [[] for _ in range(old.num_classes(level))]
    for c, classes in enumerate(of_level):
      for i in classes:
        became[level][i].append(c)
  result = {}
  for level, of_level in sources.items():
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    names, old_names = new.names[new.index(level)], old.names[old.index(level)]
    for name, classes in zip(names, of_level):
      if not classes:
        kinds['added'].append(name)
      elif len(classes) > 1:
        kinds['merged'].append(f'{" + ".join(old_names[i] for i in classes)} -> {name}')
      elif len(became[level][classes[0]]) == 1 and old_names[classes[0]] != name:
        kinds['renamed'].append(f'{old_names[classes[0]]} -> {name}')
    kinds['moved'] = _moves(old, new, level, of_level, became)
    for old_name, new_classes in zip(old_names, became[level]):
      if not new_classes:
        kinds['removed'].append(old_name)
      elif len(new_classes) > 1:
        kinds['split'].append(f'{old_name} -> {" + ".join(names[c] for c in new_classes)}')
    result[level] = kinds
  return result


def _moves(
  old: Taxonomy,
  new: Taxonomy,
  level: str,
  sources: Sequence[tuple[int, ...]],
  became: Mapping[str, Sequence[Sequence[int]]],
) -> list[str]:
  """The classes of a level that have moved; `became` has the new classes of each old one."""
  texts = []
  names = new.names[new.index(level)]
  coarser_levels = [above for above in became if above in new.levels[: new.index(level)]]
  old_parents = {above: old.related(level, above) for above in coarser_levels}
  new_parents = {above: new.related(level, above) for above in coarser_levels}
  for c, classes in enumerate(sources):
    for above in coarser_levels if classes else ():
      before = sorted({i for old_class in classes for i in old_parents[above][old_class]})
      after = new_parents[above][c]
      if {i for parent in before for i in became[above][parent]}.issuperset(after):
        continue
      suffix = '' if all(became[above][parent] for parent in before) else ' (gone)'
      before_text, after_text = _joined(old, above, before), _joined(new, above, after)
      texts.append(f'{names[c]}: {above} {before_text}{suffix} -> {after_text}')
  return texts


def _joined(taxonomy: Taxonomy, level: str, classes: Sequence[int]) -> str:
  names = taxonomy.names[taxonomy.index(level)]
  return ' and '.join(names[i] for i in classes)


def describe(changes: Mapping[str, Mapping[str, Sequence[str]]], limit: int = 10) -> str:
  """Return changes as lines of text.

  Args:
    changes: as `class_changes` returns them.
    limit: classes in a line at most.
  """
  lines = []
  for level, kinds in changes.items():
    of_level = []
    for kind, texts in kinds.items():
      if texts:
        ending = ', ...' if len(texts) > limit else ''
        of_level.append(f'  {len(texts)} {kind}: {", ".join(texts[:limit])}{ending}')
    lines += [f'{level}:' + ('' if of_level else ' unchanged'), *of_level]
  return '\n'.join(lines)


def history(source: runs.Run, sources: Sources, new: Taxonomy) -> dict[str, dict[str, dict]]:
  """Return what became of the classes, and how well the old run knew them.

  Args:
    source: the old run.
    sources: of the new classes.
    new: the new taxonomy.

  Returns:
    {level: {class: {'kind': new, kept, renamed, merged or part; 'right', 'images': counts of its
    sources on the old run's val, 0 where it was not evaluated}}}.
  """
  result: dict[str, dict[str, dict]] = {}
  for level, of_level in sources.items():
    all_sources = np.array([i for classes in of_level for i in classes], int)
    parts = np.bincount(all_sources, minlength=source.taxonomy.num_classes(level))
    old_names = source.taxonomy.names[source.taxonomy.index(level)]
    counts = migration.class_counts(source, level, len(old_names))
    result[level] = {}
    for name, classes in zip(new.names[new.index(level)], of_level):
      right, images = (sum(counts[i][k] for i in classes) for k in (0, 1))
      kind = _kind(name, classes, parts, old_names)
      result[level][name] = {'kind': kind, 'right': right, 'images': images}
  return result


def _kind(name: str, classes: Sequence[int], parts: np.ndarray, old_names: Sequence[str]) -> str:
  if not classes:
    return 'new'
  if len(classes) > 1:
    return 'merged'
  if parts[classes[0]] > 1:
    return 'part'
  return 'kept' if old_names[classes[0]] == name else 'renamed'


def migrate(
  source: str | pathlib.Path,
  path: str,
  workdir: str | pathlib.Path,
  c: ConfigDict,
  renames: str = '',
  shots: int | None = None,
) -> str:
  """Make a run for a new taxonomy from a trained one; training continues it.

  Args:
    source: folder of the trained run.
    path: CSV of the new taxonomy.
    workdir: folder of the new run.
    c: config of the trained run, with what the new one shall change (data, train, ...).
    renames: CSV of renames, '' for none.
    shots: new classes start from so many of their images, None: from all, 0: from their siblings.

  Returns:
    What has changed, and how good the run is before training (kept in WORKDIR/start), as text.

  Raises:
    UserError: the new taxonomy lacks a level that has a head, the folder holds a run, or the form
      of heads cannot be carried over.
  """
  source, workdir = pathlib.Path(source), pathlib.Path(workdir)
  _check_new(workdir)
  trained = model.load(source)
  old, new = trained.taxonomy, _new_taxonomy(trained, source, path)
  read = read_renames(renames, old, new) if renames else {}
  sources, changes = correspond(old, new, read), class_changes(old, new, read)
  plans = {}
  for level in trained.levels:
    rows = classifier.rows(trained.c.model, old, level)
    plans[level] = migrate_heads.plan(level, old, new, sources[level], rows)
  _check_heads(trained, source, plans, shots)
  shots = shots if trained.c.model.heads in FROM_IMAGES else 0
  c.baseline, c.baseline_seeds, c.data.taxonomy = None, 1, str(path)
  c.model.parts = tuple(
    (level, new.names[new.index(level)][k], n)
    for level, plan in plans.items()
    for k, n in enumerate(plan.rows)
    if n > 1
  )
  record = split_record.read(source)
  run = setup.build(c, record=record and record._replace(takes_new=True))
  _check_data(run, new, path)
  variables = _variables(trained, run, plans, sources, shots)
  history_record = {
    'from': str(source.absolute()),
    'step': trained.step,
    'shots': shots,
    'changes': changes,
    'classes': history(runs.read(source, baseline=False), sources, new),
  }
  with run_lock.RunLock(workdir):
    _save_start(run, variables, workdir, history_record)
  start = runs.read(workdir / runs.START, baseline=False)
  lines = _describe_split(source, trained.c.data.train, run, record)
  return '\n'.join([describe(changes), *migration.summary(start, history_record), *lines])


def _describe_split(
  source: pathlib.Path, train: str, run: setup.Setup, record: split_record.Record | None
) -> list[str]:
  """What has become of the split of the old run, and the images of the new val that trained it."""
  if record is None:
    return split_record.notes(source, run.data, None)
  n = sum(len(examples.files) for examples in run.data.undiminished.splits.values())
  lines = [
    f'split: {n - len(run.data.new)} images are in that of {source}, {len(run.data.new)} new'
  ]
  in_training = record.training_files(train, run.val)
  if in_training:
    lines.append(
      f'warning: {len(in_training)} of the {len(run.val.files)} images of {run.val.name} are '
      f'training images of {source}, so that figures on it flatter: '
      f'{split_record.listed(in_training)}'
    )
  return lines


def _check_new(workdir: pathlib.Path) -> None:
  if (workdir / 'config.json').exists():
    raise UserError(f'--workdir={workdir}: there is a run already; give another folder')


def _new_taxonomy(trained: model.Model, source: pathlib.Path, path: str) -> Taxonomy:
  """The taxonomy in a CSV, down to the finest level that has a head."""
  new = taxonomies.read(path, (), Findings(), trained.c.data.homonyms)[0]
  if trained.taxonomy.multi:
    raise UserError(
      f'{source}: has multi levels ({", ".join(trained.taxonomy.multi)}); only runs on exclusive '
      'levels can be carried over'
    )
  missing = [level for level in trained.levels if level not in new.levels]
  if missing:
    raise UserError(
      f'{path}: has no level {", ".join(missing)}, which {source} has a head for; its levels are '
      f'{", ".join(new.levels)}'
    )
  return new if new.levels[-1] == trained.levels[-1] else new.coarsen(trained.levels[-1])


def _check_heads(
  trained: model.Model,
  source: pathlib.Path,
  plans: Mapping[str, migrate_heads.Plan],
  shots: int | None,
) -> None:
  form = trained.c.model.heads
  if hasattr(trained.classifier.heads, 'taxonomy'):
    raise UserError(
      f'{source}: {form} heads compute levels from each other: such a run cannot be carried over'
    )
  if shots and form not in FROM_IMAGES:
    raise UserError(
      f'--shots={shots}: only {", ".join(FROM_IMAGES)} heads can start a class from images, not '
      f'{form}'
    )
  order = (trained.classifier.heads.order or trained.levels) if form == 'cascaded' else ()
  for level in order[:-1]:
    n = sum(classifier.rows(trained.c.model, trained.taxonomy, level))
    if plans[level].source.tolist() != list(range(n)):
      raise UserError(
        f'{source}: cascaded heads read the logits of {level}, whose classes have changed: such a '
        'run cannot be carried over'
      )


def _check_data(run: setup.Setup, new: Taxonomy, path: str) -> None:
  if run.taxonomy.hash() == new.hash():
    return
  hint, hold_out = '', ';'.join(run.c.data.hold_out)
  if hold_out:
    hint = f'; the run holds out data.hold_out={hold_out}, and --config.data.hold_out= undoes that'
  difference = describe_difference(new, run.taxonomy)
  raise UserError(f'{path}: the data have another taxonomy: {difference}{hint}')


def _variables(
  trained: model.Model,
  run: setup.Setup,
  plans: Mapping[str, migrate_heads.Plan],
  sources: Sources,
  shots: int | None,
) -> dict:
  """The variables of the trained run with heads for the new taxonomy."""
  variables = jax.device_get(trained.variables)
  old_heads = variables['params']['heads']
  new_heads = {level: migrate_heads.carry_over(old_heads[level], p) for level, p in plans.items()}
  classes = {}
  for level in trained.levels if shots != 0 else ():
    classes[level] = [k for k, of_class in enumerate(sources[level]) if not of_class]
  if any(classes.values()):
    images = migrate_heads.sample(trained, run.train, classes, run.taxonomy, shots, run.c.seed)
    for level, new in classes.items():
      y = images.y[:, run.taxonomy.index(level)]
      migrate_heads.start_new(new_heads[level], plans[level].rows, new, images.x, y)
  params = {**variables['params'], 'heads': {**old_heads, **new_heads}}
  return adapting.with_updates({**variables, 'params': params}, run.variables)


def _save_start(
  run: setup.Setup, variables: dict, workdir: pathlib.Path, history_record: Mapping
) -> None:
  """Save the run at step 0, evaluate a copy of it in WORKDIR/start, and write migration.json."""
  _check_new(workdir)
  state = setup.initial_state(run)
  ema = parallel.put_replicated(variables, run.mesh) if state.ema else state.ema
  state = state.replace(**parallel.put_replicated(variables, run.mesh), ema=ema)
  save_untrained(workdir, run, state)
  start = workdir / runs.START
  start.mkdir()
  for name in ('config.json', 'taxonomy.csv', split_record.FILE):
    shutil.copy(workdir / name, start)
  shutil.copytree(workdir / 'checkpoints', start / 'checkpoints')
  model.load(start).evaluate(run.c.data.val, examples=run.val, tune=True)
  files.write(workdir / 'migration.json', json_files.dump(history_record, indent=2) + '\n')
