"""Probe mode: linear heads on a frozen backbone, heads and loss chosen on the training part alone.

The features of all images are computed once and stored. A grid of heads, losses and weight decays
is judged by cross-validation on the training split; the best is fitted on all of it and becomes an
ordinary run, beside it the flat head as its baseline. The validation split is only looked at then.
"""

import copy
import dataclasses
import json
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hierjax import model
from hierjax.core import config, files
from hierjax.core.errors import UserError
from hierjax.decide.decisions import Rules
from hierjax.evaluate import bootstrap, metrics, rules
from hierjax.experiments import probe_features, probe_grid, probe_nearest, run_lock
from hierjax.experiments.fit import baseline_config
from hierjax.experiments.probe_features import Features
from hierjax.experiments.probe_grid import Recipe, Setting
from hierjax.experiments.workdir import current_time, disk_errors, save_untrained
from hierjax.models import registry
from hierjax.train import setup

BIAS_NOTE = (
  'the cross-validated accuracy of the best of many settings is too high for new images; it only '
  'chooses, and val, which took no part, judges'
)


class Judged(NamedTuple):
  """A run on the validation split: its joint decision's metrics, and the values per example."""

  evaluation: Mapping
  values: Mapping[str, np.ndarray]


def probe(
  c: ConfigDict, workdir: str | pathlib.Path, progress: Callable[[str], None] = print
) -> dict:
  """Fit the best linear heads of a grid to the features of a frozen backbone.

  The folder becomes a run that predicts, is evaluated and reported, and that hierjax train
  fine-tunes from there; WORKDIR/baseline is the run of the flat head. probe.json has all settings.

  Args:
    c: the config; its heads, losses, optimiser and augmentation are not read.
    workdir: the folder.
    progress: called with a line now and then.

  Returns:
    The content of probe.json.

  Raises:
    UserError: a mistake in the options or the data, or a full disk.
  """
  workdir, seconds = pathlib.Path(workdir), {}
  with disk_errors(workdir), run_lock.RunLock(workdir):
    clock = time.monotonic()
    _check_folder(workdir)
    run = build(c)
    for note in run.notes:
      progress(f'note: {note}')
    store = probe_features.folder(c)
    train = probe_features.compute(run, run.train, c.probe.views, store, progress)
    val = probe_features.compute(run, run.val, c.eval.tta, store, progress)
    seconds['features'], clock = time.monotonic() - clock, time.monotonic()
    fit = _search if c.probe.head == 'linear' else _nearest
    result = fit(c, workdir, run, train, val, progress)
    seconds['heads'] = time.monotonic() - clock
    result['seconds'] = {name: round(value, 1) for name, value in seconds.items()}
    result['computed_features'] = train.computed + val.computed
    files.write(workdir / 'probe.json', json.dumps(result, indent=2) + '\n')
    return result


def _search(c, workdir, run, train, val, progress) -> dict:
  """Choose a linear head, save it and the best flat one as runs, and judge both on val."""
  names = [run.train.files[i] for i in train.index]
  data = probe_grid.Data.make(train.values, run.train.labels[train.index], names, c)
  grid = probe_grid.Grid(c, run.c, run.taxonomy, data)
  settings = grid.search(progress)
  flat = next(setting for setting in settings if setting.recipe.name == 'flat')
  best = probe_grid.choose(settings, grid.gains_at_full_size)
  choices = {}
  for name, setting in (('choice', best), ('flat', flat)):
    choice = grid.fit(setting)
    folder = workdir if name == 'choice' else workdir / 'baseline'
    judged = _save(folder, run, setting.recipe, choice.heads, choice.rules, val)
    choices[name] = setting, choice, judged
  return _summary(c, run, settings, choices)


def _nearest(c, workdir, run, train, val, progress) -> dict:
  """Judge a head without training on val; that of class means is saved as a run."""
  taxonomy = run.taxonomy
  bank = probe_nearest.Bank.make(train.values, run.train.labels[train.index])
  if c.probe.head == 'ncm':
    form = 'parallel' if len(taxonomy.levels) > 1 else 'flat'
    recipe = probe_grid.Recipe(form, form, {'model.heads': form}, None)
    heads = probe_nearest.class_means(bank, taxonomy)
    rules = probe_nearest.fit_rules(bank, taxonomy, None)
    values = _save(workdir, run, recipe, heads, rules, val).values
  else:
    rules = probe_nearest.fit_rules(bank, taxonomy, c.probe.neighbours)
    pred = probe_nearest.predict(bank, val.values, taxonomy, c.probe.neighbours, rules)
    values = metrics.of_predictions(pred, run.val.labels[val.index], taxonomy)
  names = (*(f'{level}.top1' for level in taxonomy.levels), 'fpa', 'severity')
  return {
    'head': c.probe.head,
    'train_images': len(train.index),
    'val_images': len(val.index),
    'val': {name: {'choice': bootstrap.nanmean(values[name])} for name in names},
  }


def _check_folder(workdir: pathlib.Path) -> None:
  """Refuse a folder in which a run has been trained, be it from a probe."""
  steps = {path.name for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()}
  if steps and (steps != {'0'} or not (workdir / 'probe.json').exists()):
    raise UserError(f'--workdir={workdir}: there is a trained run already; give another folder')


def build(c: ConfigDict) -> setup.Setup:
  """Build the data, and the backbone of model.pretrained or of a run, with a head a level."""
  base, trained = baseline_config(c), None
  if c.probe.run:
    trained = model.load(c.probe.run)
    levels = base.model.levels
    base.plugins = trained.c.plugins
    base.model = copy.deepcopy(trained.c.model)
    base.model.levels = levels
    base.model.parts, base.model.pretrained = (), None
    base.model.head = config.default().model.head
  base.model.heads, base.model.dropout = 'parallel', 0.0
  run = setup.build(base)
  if run.taxonomy.multi:
    raise UserError(
      f'hierjax probe is for exclusive levels; the data have {", ".join(run.taxonomy.multi)} as '
      'multi levels'
    )
  if trained:
    variables = jax.device_get(trained.variables)
    note = f'the backbone is that of {c.probe.run}, step {trained.step}'
    return _with_variables(run, variables, run.variables['params']['heads'], note)
  if not c.model.pretrained:
    note = 'the backbone has random weights; --config.model.pretrained or --config.probe.run gives'
    return dataclasses.replace(run, notes=(*run.notes, f'{note} others'))
  size = registry.BACKBONES[c.model.backbone].size
  if c.data.size < size:
    note = f'the weights are of images of {size} px, whose features may tell more than those of'
    return dataclasses.replace(run, notes=(*run.notes, f'{note} {c.data.size} px'))
  return run


def _with_variables(
  run: setup.Setup, variables: Mapping, heads: Mapping, *notes: str
) -> setup.Setup:
  """Return a setup with another backbone's variables and with these heads."""
  variables = {**variables, 'params': {**variables['params'], 'heads': heads}}
  return dataclasses.replace(run, variables=variables, notes=(*run.notes, *notes))


def _save(
  workdir: pathlib.Path,
  probed: setup.Setup,
  recipe: Recipe,
  heads: Mapping,
  fitted: Rules,
  val: Features,
) -> Judged:
  """Write a run with these heads and rules, and judge it on the validation split."""
  run = setup.build(recipe.config(probed.c))
  run = _with_variables(run, probed.variables, heads)
  workdir.mkdir(exist_ok=True)
  # of an earlier probe, whose choice may have been another
  shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)
  save_untrained(workdir, run, setup.initial_state(run))
  rules.write_rules(workdir / 'decode.json', run.c.data.train, fitted, run.taxonomy)
  files.write(workdir / 'run.json', json.dumps(_record(run, val.broken), indent=2) + '\n')
  judge, examples = _of_features(model.load(workdir), val), val.examples(run.val)
  result = judge.evaluate(run.c.data.val, examples)
  outputs = judge.collect_decided(examples)
  decision = outputs.decide(run.taxonomy, judge.rules)['exclusive']['joint']
  values = metrics.of_predictions(decision.pred, outputs.labels, run.taxonomy)
  return Judged(result['decode']['joint'], values)


def _record(run: setup.Setup, broken: Sequence[str]) -> dict:
  """Return what run.json says of a run that was not trained step by step."""
  return {
    'command': shlex.join(sys.argv),
    'finished': current_time(),
    'params': run.num_params,
    'heads': list(run.levels),
    'train_examples': len(run.train.labels),
    'val_examples': len(run.val.labels),
    'skipped': list(broken),
    'notes': [*run.notes, 'linear heads, fitted to the features of the frozen backbone'],
    'step': 0,
  }


def _of_features(trained: model.Model, val: Features) -> model.Model:
  """Return a model that reads the features of all views of an image, one after the other."""
  judge, views, step = copy.copy(trained), val.values.shape[1], trained.eval_step

  def mean_over_views(variables, rows):
    by_view = [step(variables, view) for view in jnp.split(rows, views, 1)]
    probs = jax.tree.map(lambda *parts: sum(parts) / views, *(probs for probs, _ in by_view))
    return probs, by_view[0][1]

  judge.eval_step = mean_over_views
  return judge


def _summary(
  c: ConfigDict, run: setup.Setup, settings: Sequence[Setting], choices: Mapping[str, tuple]
) -> dict:
  """Write what probe.json holds but for the times; choices: {name: (Setting, Choice, Judged)}."""
  (best, choice, judged), (flat, _, flat_judged) = choices['choice'], choices['flat']
  levels, val = run.taxonomy.levels, {}
  for name in (*(f'{level}.top1' for level in levels), 'fpa', 'severity'):
    a, b = flat_judged.values[name], judged.values[name]
    interval = bootstrap.paired_difference(a, b)
    means = {'flat': bootstrap.nanmean(a), 'choice': bootstrap.nanmean(b)}
    val[name] = means | {'interval': list(interval) if interval else None}
  count = sum(setting.is_complete for setting in settings)
  reason = (
    f'the highest full-path accuracy on average over {c.probe.folds} folds of {c.data.train}, '
    f'{settings[0].full_path:.4f}, of {count} settings that all folds tried ({len(settings)} were '
    f'tried by the first); the best flat head has {flat.full_path:.4f}. {BIAS_NOTE}'
  )
  if best is flat:
    reason = (
      f'no setting is clearly better than the best flat head ({flat.full_path:.4f}) in full-path '
      f'accuracy over {c.probe.folds} folds of {c.data.train}; the highest is {settings[0].name}, '
      f'{settings[0].full_path:.4f}, of {count} that all folds tried; such a gain may be chance, '
      'or shrink with the images of all folds'
    )
  if best.decay in (min(c.probe.decays), max(c.probe.decays)):
    reason += '. Its decay is at an end of probe.decays: further ones may be better'
  return {
    'choice': best.name,
    'flat': flat.name,
    'reason': reason,
    'weights': dict(choice.rules['exclusive'].weights),
    'temperature': choice.rules['exclusive'].temperature,
    'val_images': len(judged.values['fpa']),
    'val': val,
    'ece': {
      level: {name: x[2].evaluation['levels'][level]['ece'] for name, x in choices.items()}
      for level in levels
    },
    'settings': [_setting(setting, levels) for setting in settings],
  }


def _setting(setting: Setting, levels: Sequence[str]) -> dict:
  """Describe a setting by its cross-validation, mean and deviation over the folds."""
  folds = setting.accuracy[~np.isnan(setting.accuracy[:, -1])]
  names = (*(f'{level}.top1' for level in levels), 'fpa')
  deviations = folds.std(0, ddof=1).tolist() if len(folds) > 1 else [None] * len(names)
  return {
    'name': setting.name,
    'options': dict(setting.recipe.options),
    'finest': setting.recipe.share,
    'decay': setting.decay,
    'folds': len(folds),
    'mean': dict(zip(names, folds.mean(0).tolist())),
    'deviation': dict(zip(names, deviations)),
  }


def table(result: Mapping, limit: int = 12) -> str:
  """Return what probe.json holds as a table for people, with its first settings.

  Args:
    result: its content.
    limit: settings to list.
  """
  val_images = f'val, {result["val_images"]} images'
  if 'head' in result:
    lines = [f'{result["head"]} of {result["train_images"]} images; {val_images}']
    for name, row in result['val'].items():
      if row['choice'] is not None:
        lines.append(f'{name:<24}{row["choice"]:.4f}')
    return '\n'.join(lines)
  settings = result['settings']
  lines = ['mean accuracy in cross-validation on the training part, (deviation)']
  lines.append(' ' * 36 + ''.join(f'{name:>18}' for name in settings[0]['mean']))
  for setting in settings[:limit]:
    line = f'{setting["name"]:<36}'
    for name, mean in setting['mean'].items():
      deviation = setting['deviation'][name]
      cell = f'{mean:.4f}'
      if deviation is not None:
        cell += f' ({deviation:.4f})'
      line += f'{cell:>18}'
    lines.append(line)
  lines += [f'... all {len(settings)} settings: probe.json', '']
  lines += [f'choice: {result["choice"]}: {result["reason"]}', f'flat: {result["flat"]}', '']
  lines.append(f'{val_images:<24}flat    choice  difference (95%)')
  for name, row in result['val'].items():
    flat, choice = row['flat'], row['choice']
    if flat is None or choice is None:
      continue
    difference = f'{choice - flat:+.4f}'
    if row['interval']:
      low, high = row['interval']
      difference += f' ({low:+.4f} to {high:+.4f})'
    lines.append(f'{name:<24}{flat:.4f}  {choice:.4f}  {difference}')
  return '\n'.join(lines)
