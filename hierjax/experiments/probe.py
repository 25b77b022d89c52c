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
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import model
from hierjax.core import config, files
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.evaluate import bootstrap, collect, metrics, rules
from hierjax.experiments import probe_features, probe_grid
from hierjax.experiments.fit import baseline_config
from hierjax.experiments.probe_features import Features
from hierjax.experiments.probe_grid import Choice, Setting
from hierjax.experiments.workdir import current_time, disk_errors, prepare
from hierjax.train import checkpoint, setup
from hierjax.train.state import to_parts

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

  The folder becomes a run that predicts, is evaluated and reported, and that --mode=train
  fine-tunes from there; WORKDIR/baseline is the run of the flat head. probe.json has all settings,
  WORKDIR/features the features.

  Args:
    c: the config; heads, losses and optimiser of it are not read.
    workdir: the folder.
    progress: called with a line now and then.

  Returns:
    The content of probe.json.

  Raises:
    UserError: a mistake in the options or the data, or a full disk.
  """
  workdir, seconds = pathlib.Path(workdir), {}
  with disk_errors(workdir):
    clock = time.monotonic()
    run = _build(c)
    for note in run.notes:
      progress(f'note: {note}')
    store = workdir / 'features'
    train = probe_features.compute(run, run.train, c.probe.views, store, progress)
    val = probe_features.compute(run, run.val, c.eval.tta, store, progress)
    seconds['features'], clock = time.monotonic() - clock, time.monotonic()
    names = [run.train.files[i] for i in train.index]
    data = probe_grid.Data.make(train.values, run.train.labels[train.index], names, c)
    settings = probe_grid.search(c, run.c, run.taxonomy, data, progress)
    seconds['search'], clock = time.monotonic() - clock, time.monotonic()
    flat = next(setting for setting in settings if setting.recipe.name == 'flat')
    choices = {}
    for name, setting in (('best', settings[0]), ('flat', flat)):
      choice = probe_grid.fit_choice(setting, run.c, run.taxonomy, data)
      folder = workdir if name == 'best' else workdir / 'baseline'
      choices[name] = setting, choice, _save(folder, run, setting, choice, val)
    seconds['fit and val'] = time.monotonic() - clock
    result = _summary(c, run, settings, choices)
    result['seconds'] = {name: round(value, 1) for name, value in seconds.items()}
    result['computed_features'] = train.computed + val.computed
    files.write(workdir / 'probe.json', json.dumps(result, indent=2) + '\n')
    return result


def _build(c: ConfigDict) -> setup.Setup:
  """The data, and the backbone of model.pretrained or of a trained run, with a head a level."""
  base, trained = baseline_config(c), None
  if c.probe.run:
    trained = model.load(c.probe.run)
    levels, base.plugins = base.model.levels, trained.c.plugins
    base.model = copy.deepcopy(trained.c.model)
    base.model.levels, base.model.parts = levels, ()
    base.model.head = config.default().model.head
  base.model.heads, base.model.dropout = 'parallel', 0.0
  run = setup.build(base)
  if run.taxonomy.multi:
    raise UserError(
      f'--mode=probe is for exclusive levels; the data have {", ".join(run.taxonomy.multi)} as '
      'multi levels'
    )
  if trained:
    variables = jax.device_get(trained.variables)
    note = f'the backbone is that of {c.probe.run}, step {trained.step}'
    return _with_variables(run, variables, run.variables['params']['heads'], note)
  if not c.model.pretrained:
    note = 'the backbone has random weights; --config.model.pretrained or --config.probe.run gives'
    return dataclasses.replace(run, notes=(*run.notes, f'{note} others'))
  return run


def _with_variables(
  run: setup.Setup, variables: Mapping, heads: Mapping, *notes: str
) -> setup.Setup:
  """A setup with another backbone's variables and with these heads."""
  variables = {**variables, 'params': {**variables['params'], 'heads': heads}}
  return dataclasses.replace(run, variables=variables, notes=(*run.notes, *notes))


def _save(
  workdir: pathlib.Path, probed: setup.Setup, setting: Setting, choice: Choice, val: Features
) -> Judged:
  """Write a run with the heads of a choice, and judge it on the validation split."""
  run = setup.build(setting.recipe.config(probed.c, setting.share))
  run = _with_variables(run, probed.variables, choice.heads)
  prepare(workdir, run)
  store = checkpoint.Checkpoints(workdir / 'checkpoints', run.best, writes=True)
  store.save(0, to_parts(setup.initial_state(run)), None)
  store.wait()
  store.close()
  rules.write_rules(
    workdir / 'decode.json', run.c.data.train, {'exclusive': choice.weights}, run.taxonomy
  )
  files.write(workdir / 'run.json', json.dumps(_record(run, val), indent=2) + '\n')
  trained = model.load(workdir)
  outputs = _outputs(trained, run.val, val)
  result = trained.evaluate(run.c.data.val, run.val, outputs=outputs)
  decision = trained.decide(outputs.probs)['exclusive']['joint']
  values = metrics.of_predictions(decision.pred, outputs.labels, run.taxonomy)
  return Judged(result['decode']['joint'], values)


def _record(run: setup.Setup, val: Features) -> dict:
  """What run.json says of a run that was not trained step by step."""
  return {
    'command': shlex.join(sys.argv),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'finished': current_time(),
    'params': run.num_params,
    'heads': list(run.levels),
    'classes': {level: run.taxonomy.num_classes(level) for level in run.taxonomy.levels},
    'train_examples': len(run.train.labels),
    'val_examples': len(run.val.labels),
    'skipped': val.broken,
    'notes': [*run.notes, 'linear heads, fitted to the features of the frozen backbone'],
    'step': 0,
  }


def _outputs(trained: model.Model, examples: sources.Examples, val: Features) -> collect.Outputs:
  """The outputs for features, the mean over the views."""
  views, by_view = val.values.shape[1], []
  for view in range(views):
    view_examples = sources.with_features(examples, val.values[:, view], val.index)
    by_view.append(
      collect.collect(
        trained.eval_step,
        trained.variables,
        view_examples,
        trained.c,
        trained.mesh,
        with_features=True,
      )
    )
  probs = {
    level: sum(outputs.probs[level] for outputs in by_view) / views for level in by_view[0].probs
  }
  return dataclasses.replace(by_view[0], probs=probs, index=val.index, broken=val.broken)


def _summary(
  c: ConfigDict, run: setup.Setup, settings: Sequence[Setting], choices: Mapping[str, tuple]
) -> dict:
  """The content of probe.json but for the times; choices are {name: (Setting, Choice, Judged)}."""
  (best, choice, judged), (flat, _, flat_judged) = choices['best'], choices['flat']
  levels, rows = run.taxonomy.levels, {}
  keys = {
    **{level: f'{level}.top1' for level in levels},
    'full path': 'fpa',
    'severity': 'severity',
  }
  for name, key in keys.items():
    a, b = (bootstrap.nanmean(x.values[key]) for x in (flat_judged, judged))
    interval = bootstrap.paired_difference(flat_judged.values[key], judged.values[key])
    rows[name] = {'flat': a, 'choice': b, 'interval': interval and list(interval)}
  count = sum(setting.is_complete for setting in settings)
  reason = (
    f'the highest full-path accuracy, {best.full_path:.4f} on average over {c.probe.folds} folds '
    f'of {c.data.train}, of {count} settings that all folds tried ({len(settings)} were tried by '
    f'the first); the best flat head has {flat.full_path:.4f}. {BIAS_NOTE}'
  )
  return {
    'choice': best.describe(),
    'flat': flat.describe(),
    'reason': reason,
    'temperatures': choice.temperatures,
    'weights': choice.weights,
    'val': rows,
    'val_images': len(judged.values['fpa']),
    'ece': {
      name: {level: x.evaluation['levels'][level]['ece'] for level in levels}
      for name, x in (('flat', flat_judged), ('choice', judged))
    },
    'settings': [_setting(setting, levels) for setting in settings],
  }


def _setting(setting: Setting, levels: Sequence[str]) -> dict:
  """A setting and its cross-validation, mean and standard deviation over the folds."""
  accuracy = setting.accuracy[~np.isnan(setting.accuracy[:, -1])]
  out = {
    'name': setting.describe(),
    'options': {**setting.recipe.overrides},
    'finest': setting.share,
    'decay': setting.decay,
    'folds': len(accuracy),
  }
  for k, name in enumerate((*levels, 'full path')):
    deviation = float(accuracy[:, k].std(ddof=1)) if len(accuracy) > 1 else None
    out[name] = {'mean': float(accuracy[:, k].mean()), 'deviation': deviation}
  return out


def table(result: Mapping, limit: int = 12) -> str:
  """Return what probe.json holds as a table for people.

  Args:
    result: its content.
    limit: settings to list.
  """
  names = [name for name in result['val'] if name != 'severity']
  lines = ['cross-validation on the training part'.ljust(46) + ''.join(f'{n:>16}' for n in names)]
  for setting in result['settings'][:limit]:
    cells = [_cell(setting[name]) for name in names]
    lines.append(setting['name'].ljust(46) + ''.join(f'{cell:>16}' for cell in cells))
  more = len(result['settings']) - limit
  lines += [f'... and {more} more in probe.json'] if more > 0 else []
  lines += ['', f'choice: {result["choice"]}: {result["reason"]}', '']
  lines.append(f'val, {result["val_images"]} images'.ljust(30) + 'flat    choice  difference (95%)')
  for name, row in result['val'].items():
    if row['flat'] is None or row['choice'] is None:
      continue
    text = f'{name:<30}{row["flat"]:.4f}  {row["choice"]:.4f}  '
    text += f'{row["choice"] - row["flat"]:+.4f}'
    if row['interval']:
      text += f' ({row["interval"][0]:+.4f} to {row["interval"][1]:+.4f})'
    lines.append(text)
  lines.append(f'flat: {result["flat"]}')
  return '\n'.join(lines)


def _cell(value: Mapping) -> str:
  deviation = '' if value['deviation'] is None else f' ({value["deviation"]:.4f})'
  return f'{value["mean"]:.4f}{deviation}'
