"""The report of a run: `write(workdir)` reads what the run left in its directory and writes report.html, one file that opens offline.

A report is `SECTIONS`, a list of small functions (run) -> html. A section computes what it shows here and is drawn by the macro of its name
in report.html.j2; to add one, write both and add a line to the list. A missing input gives a sentence in its section, never an error; a section of '' is
left out.
"""

import dataclasses
import datetime
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve

from hierjax.core import files
from hierjax.core.metrics import METRICS, registered_by_users
from hierjax.evaluate import bootstrap, metrics
from hierjax.report import charts, mistakes
from hierjax.report.charts import series
from hierjax.report.page import count, duration, listed, number, render, signed
from hierjax.report.runs import Run, finite, flat, get, read

DECODINGS = {
  'independent': (
    'independent',
    'every head answers for itself; the answers may contradict each other',
  ),
  'leaf': ('leaf', 'the classes above are read off the predicted finest class'),
  'joint': (
    'joint',
    'the valid path whose weighted sum of log probabilities over the heads is highest',
  ),
}
BASELINE = 'baseline'


def _value(decoding: dict | None, key: str):
  """A metric of one decoding: 'fpa', 'levels/LEVEL/top1' or 'consistency/PAIR', where a name may hold slashes of its own."""
  if not decoding:
    return None
  if key.startswith('levels/'):
    level, metric = key.removeprefix('levels/').rsplit('/', 1)
    return (decoding.get('levels', {}).get(level) or {}).get(metric)
  if key.startswith('consistency/'):
    return (decoding.get('consistency') or {}).get(key.removeprefix('consistency/'))
  return decoding.get(key)


def _flat_name(key: str) -> str:
  """The same key as metrics.per_example names it: LEVEL.top1, consistency.A-B, fpa."""
  if key.startswith('levels/'):
    return '.'.join(key.removeprefix('levels/').rsplit('/', 1))
  return key.replace('/', '.', 1) if key.startswith('consistency/') else key


def _baseline(run: Run, split: str) -> dict | None:
  """The baseline's numbers on a split: its single head with the ancestors read off."""
  decode = run.baseline.evals.get(split, {}).get('decode', {}) if run.baseline else {}
  return decode.get('leaf') or decode.get('independent')


# Sections.


def headline(run: Run) -> Markup:
  """What was trained, on what, and its best numbers in words."""
  config, info, evaluation = run.config, run.info, run.evaluation
  root = get(config, 'data.root') if get(config, 'data.source') != 'toy' else ''
  data = pathlib.PurePath(str(root)).name or str(root) if root else 'the drawn toy set'
  first = [str(get(config, 'model.backbone', 'A model'))]
  form = get(config, 'model.heads', 'parallel')
  kind = '' if form in ('flat', 'parallel') else f'{form} '
  if run.heads:
    first.append(
      f'with {f"one {kind}head" if len(run.heads) == 1 else f"{len(run.heads)} {kind}heads"} ({listed(run.heads)})'
    )
  examples = info.get('train_examples')
  first.append(
    f'trained on {count(examples)} images of {data}'
    if examples is not None
    else f'trained on {data}'
  )
  classes = info.get('classes') or (
    {level: run.taxonomy.num_classes(level) for level in run.levels} if run.taxonomy else {}
  )
  if classes:
    first.append(f'({listed(f"{count(classes[level])} {level}" for level in classes)} classes)')
  text = ' '.join(first)
  if run.train or run.val:
    last = max(run.train + run.val, key=lambda line: line['step'])
    text += (
      f' for {last["epoch"]:.3g} epochs'
      if finite(last.get('epoch'))
      else f' for {count(last["step"])} steps'
    )
  if finite(info.get('seconds')):
    text += f', in {duration(info["seconds"])}'
  if info.get('device'):
    text += f' on {info["device"]}'
  text += '.'
  tiles, second = [], ''
  if evaluation:
    split, decode, several, tuned = (
      run.splits[0],
      evaluation['decode'],
      evaluation.get('multi') or {},
      [],
    )
    if decode:
      best = 'joint' if 'joint' in decode else next(iter(decode))
      tiles = [
        (number(_value(decode[best], f'levels/{level}/top1')), level, f'top-1, {best}')
        for level in run.exclusive.levels
      ]
      tiles.append(
        (number(_value(decode[best], 'fpa')), 'full path', f'right at every level, {best}')
      )
      if 'independent' in decode and len(run.exclusive.heads) > 1:
        tiles.append(
          (
            number(decode['independent'].get('hvr')),
            'contradictions',
            'HVR of the independent heads',
          )
        )
      tuned.append('the weights of joint decoding')
    for level, found in several.items():
      tiles.append((number(found['map_macro']), level, 'mAP, the mean over its classes'))
      tiles.append((number(found['after']['f1_macro']), level, 'F1 at the tuned thresholds'))
    if several:
      tuned.append('the thresholds')
    views = evaluation.get('tta') or 1
    second = (
      f'These are {split} numbers: {count(evaluation.get("n", "an unknown number of"))} images of the split "{split}"'
      + (f', {views} views of each' if views > 1 else '')
      + '.'
    )
    if split == get(config, 'data.val', 'val'):
      second += f' The checkpoint was chosen on this split and {listed(tuned)} were tuned on it, so expect a little less on new images.'
  elif run.val:
    last = max(
      run.val,
      key=lambda line: (
        line.get(f'top1/{run.levels[-1]}', -math.inf) if run.levels else line['step']
      ),
    )
    found = [
      f'{level} {number(last[f"top1/{level}"])}' for level in run.levels if f'top1/{level}' in last
    ]
    second = f'No evaluation was found; during training the best val line, at step {count(last["step"])}, had top-1 {listed(found)}.'
  else:
    second = 'No evaluation was found, so there are no scores yet.'
  unfinished = not info.get('finished')
  return render(
    'headline', text=text, tiles=tiles, second=second, unfinished=unfinished, faults=run.faults
  )


def verdict(run: Run) -> Markup:
  """Did the hierarchy pay? The run against one plain head with the ancestors read off."""
  if not run.evaluation:
    return render('sentence', 'There is no evaluation of this run, so nothing can be compared.')
  if len(run.heads) == 1:
    kind = ' on an exclusive level' if get(run.config, 'data.multi') else ''
    return render(
      'sentence',
      f'This run has one head{kind} ({run.heads[0]}), so it is itself a plain baseline: the classes of the other levels '
      'are read off its predictions and every decoding gives the same answer. Train with more heads to compare.',
    )
  if run.baseline is None:
    return render('no_baseline')
  split, base = run.splits[0], _baseline(run, run.splits[0])
  if base is None:
    return render(
      'sentence',
      f'The baseline has no evaluation on {split}: run --mode=evaluate --split={split} '
      f'with --workdir={run.baseline.path}, then make this report again.',
    )
  decode = run.evaluation['decode']
  ours = decode.get('joint') or decode.get('leaf') or decode.get('independent')
  name = next(key for key in ('joint', 'leaf', 'independent') if decode.get(key))
  mismatches = _mismatches(run, split)
  intervals, basis = ({}, '') if mismatches else _intervals(run, split, name)
  finest = run.levels[-1]
  keys = {f'levels/{level}/top1': f'{level} accuracy' for level in reversed(run.levels)}
  keys |= {
    'fpa': 'full-path accuracy',
    'hvr': 'contradictions (HVR)',
    'severity': 'severity of mistakes',
    'ahd1': 'distance (AHD@1)',
  }
  rows = []
  for key, label in keys.items():
    metric = METRICS[key.rsplit('/', 1)[-1]]
    theirs, mine, loose = (
      _value(decoding, key) for decoding in (base, ours, decode.get('independent'))
    )
    difference = mine - theirs if finite(mine) and finite(theirs) else None
    low, high = intervals.get(_flat_name(key), (None, None))
    rows.append(
      {
        'label': label,
        'baseline': metric.text(theirs),
        'ours': metric.text(mine),
        'independent': metric.text(loose),
        'difference': metric.signed(difference),
        'interval': f'{metric.signed(low)} to {metric.signed(high)}'
        if finite(low) and low < high
        else '',
        'tone': _tone(metric.better, difference, low, high),
      }
    )
  answer, sentence = _answer(run, base, ours, name, intervals, mismatches)
  same_path = name != 'independent' and number(ours.get('fpa')) == number(
    _value(ours, f'levels/{finest}/top1')
  )
  return render(
    'verdict',
    answer=answer,
    sentence=sentence,
    rows=rows,
    name=name,
    basis=basis,
    split=split,
    finest=finest,
    same_path=same_path,
    differing=_differences(run),
    any_interval=any(row['interval'] for row in rows),
    heads=len(run.baseline.heads),
    independent=bool(decode.get('independent')) and name != 'independent',
  )


def _tone(better: int, difference, low, high) -> str:
  """'good' or 'bad' only where the interval leaves zero out."""
  if not better or not finite(difference) or not finite(low) or low <= 0 <= high:
    return ''
  return 'good' if difference * better > 0 else 'bad'


def _answer(
  run: Run, base: dict, ours: dict, name: str, intervals: dict, mismatches: list[str]
) -> tuple[str, str]:
  """The verdict in a word or two, and in plain sentences. Full-path accuracy decides: who wants one consistent answer gets that."""
  split = run.splits[0]
  if mismatches:
    return 'Not comparable.', f'The two runs were not measured alike: {"; ".join(mismatches)}.'
  mine, theirs = ours.get('fpa'), base.get('fpa')
  if not finite(mine) or not finite(theirs):
    return 'Unknown.', 'The full-path accuracy of one of the two runs is missing.'
  low, high = intervals.get('fpa', (None, None))
  sentence = (
    f'On {split}, {number(mine)} of the images are right at every level with {name} decoding, against {number(theirs)} '
    f'for the plain baseline: a difference of {signed(mine - theirs)} points'
  )
  if finite(low):
    sentence += f' (95% interval {signed(low)} to {signed(high)}).'
    answer = 'Yes.' if low > 0 else 'No.' if high < 0 else 'Not shown.'
    if answer == 'Not shown.':
      sentence += ' That is within what another draw of images could give.'
    if answer == 'No.':
      sentence += ' The plain model is better here.'
  else:
    sentence += '. Whether that is more than chance cannot be said without an interval.'
    answer = (
      'It seems so.' if mine > theirs else 'It seems not.' if mine < theirs else 'No difference.'
    )
  coarse = [
    (level, _value(ours, f'levels/{level}/top1'), _value(base, f'levels/{level}/top1'))
    for level in run.levels[:-1]
  ]
  changes = [f'{signed(a - b)} for {level}' for level, a, b in coarse if finite(a) and finite(b)]
  if changes:
    sentence += f' Above the finest level the accuracies differ, in points, by {listed(changes)}.'
  if finite(ours.get('severity')) and finite(base.get('severity')):
    change = round(ours['severity'], 2) - round(base['severity'], 2)
    low, high = intervals.get('severity', (change, change))
    word = (
      'about as severe'
      if not change or low <= 0 <= high
      else 'milder on average'
      if change < 0
      else 'more severe on average'
    )
    sentence += f' Its mistakes are {word} ({number(ours["severity"], False)} levels off against {number(base["severity"], False)}).'
  loose = run.evaluation['decode'].get('independent', {}).get('hvr')
  if finite(loose) and name != 'independent':
    sentence += (
      f' Read separately, the heads contradict each other on {number(loose)} of the images; '
      f'{name} decoding and the baseline cannot.'
    )
  return answer, sentence


def _mismatches(run: Run, split: str) -> list[str]:
  """Why the run and its baseline cannot be held side by side, in words."""
  a, b, reasons = run.evals[split], run.baseline.evals[split], []
  for key, word in (('n', 'images'), ('tta', 'views')):
    mine, theirs = a.get(key) or 1, b.get(key) or 1
    if mine != theirs:
      reasons.append(f'{count(mine)} {word} here and {count(theirs)} for the baseline')
  if run.taxonomy and run.baseline.taxonomy and run.taxonomy.hash() != run.baseline.taxonomy.hash():
    reasons.append('the taxonomies differ')
  return reasons


def _differences(run: Run) -> list[str]:
  """The options, the number of heads apart, in which a run and its baseline differ; a phase of the curriculum counts as one."""
  a, b = flat(run.config), flat(run.baseline.config)
  keys = sorted(
    key
    for key in a.keys() | b.keys()
    if a.get(key) != b.get(key) and not key.startswith(IMMATERIAL)
  )
  return list(dict.fromkeys(re.sub(r'^(curriculum\.[^.]*).*', r'\1', key) for key in keys))


IMMATERIAL = (
  'name',
  'baseline',
  'model.levels',
  'model.head',
  'data.workers',
  'data.threads',
  'train.log_steps',
)  # and what makes the baseline one


def _intervals(run: Run, split: str, name: str) -> tuple[dict[str, tuple[float, float]], str]:
  """95% intervals of run minus baseline per metric by a paired bootstrap over images, and on what they rest or why there are none."""
  a, b = run.predictions(split), run.baseline.predictions(split)
  if (
    run.taxonomy is None
    or a is None
    or b is None
    or f'pred_{name}' not in a
    or not {'pred_leaf', 'pred_independent'} & b.keys()
  ):
    return {}, f'No intervals: they need predictions_{split}.npz of both runs and the taxonomy.'
  order_a, order_b = np.argsort(a['files']), np.argsort(b['files'])
  if not np.array_equal(a['files'][order_a], b['files'][order_b]):
    return {}, 'No intervals: the two runs were evaluated on different files.'
  labels = a['labels'][order_a]
  ours = metrics.of_predictions(a[f'pred_{name}'][order_a], labels, run.taxonomy)
  theirs = metrics.of_predictions(
    (b['pred_leaf'] if 'pred_leaf' in b else b['pred_independent'])[order_b], labels, run.taxonomy
  )
  for values, told, who in (
    (ours, run.evals[split]['decode'][name], 'this run'),
    (theirs, _baseline(run, split), 'the baseline'),
  ):
    known = values['fpa'][~np.isnan(values['fpa'])]
    if (
      len(known) and abs(known.mean() - (_value(told, 'fpa') or 0)) > 1e-3
    ):  # stale predictions must not lend their interval
      return {}, f'No intervals: the predictions of {who} do not belong to its eval_{split}.json.'
  intervals = {
    key: interval
    for key in ours
    if (interval := bootstrap.paired_difference(theirs[key], ours[key]))
  }
  return (
    intervals,
    f'95% intervals: paired bootstrap over {count(len(labels))} images; they do not cover the luck of the seed.',
  )


def scores(run: Run) -> Markup:
  """The table per level and decoding, one per evaluated split, with the best of each row in bold."""
  if not run.evaluation:
    return render(
      'sentence',
      'No eval_SPLIT.json was found: run --mode=evaluate --split=val with this --workdir.',
    )
  tables = [_table(run, split) for split in run.splits]
  return render(
    'scores',
    tables=tables,
    decodings=DECODINGS,
    baseline=any(BASELINE in table['columns'] for table in tables),
  )


def labels(run: Run) -> Markup:
  """Multi levels: S4's tables of mAP and F1, whole and per class, before and after the thresholds were tuned."""
  tables = []
  for split in run.splits:
    evaluation = run.evals[split]
    for level, found in (evaluation.get('multi') or {}).items():
      whole = [
        (METRICS['map'].label, number(found['map_macro']), ''),
        (METRICS['micro_map'].label, number(found['map_micro']), ''),
      ]
      for key, name in (('f1', 'f1_macro'), ('micro_f1', 'f1_micro')):
        whole.append(
          (METRICS[key].label, *(number(found[when][name]) for when in ('before', 'after')))
        )
      classes = [
        (
          name,
          count(c['positives']),
          number(c['ap']),
          f'{c["threshold"]:.3f}',
          number(c['before']['f1']),
          number(c['after']['f1']),
          number(c['after']['precision']),
          number(c['after']['recall']),
        )
        for name, c in found['classes'].items()
      ]
      more, picture = (
        max(0, len(classes) - CLASSES),
        _precision_recall(
          run, split, level, found['classes'], f'Precision and recall {len(tables)}'
        ),
      )
      tables.append(
        {
          'split': split,
          'level': level,
          'n': evaluation.get('n'),
          'whole': whole,
          'classes': classes[:CLASSES],
          'more': more,
          'picture': picture,
        }
      )
  hvr = (run.evaluation or {}).get('hvr') or {}
  if not tables:
    return Markup('')
  t = run.taxonomy
  below = t is not None and bool(t.multi and t.exclusive) and bool((t.above >= 0).any())
  several = below or (t is not None and len(t.multi) > 1)
  return render(
    'labels',
    tables=tables,
    several=several,
    below=below,
    single=number(hvr.get('single')),
    decided=number(hvr.get('decided')),
  )


def _precision_recall(
  run: Run, split: str, level: str, classes: dict, title: str
) -> tuple[list, Markup] | None:
  """(legend, picture) of precision over recall for the DRAWN classes with the most images, with a dot where the tuned threshold lies; None without any."""
  found, tree = run.predictions(split), run.taxonomy
  if (
    not found
    or not {'multi_labels', 'multi_prob'} <= found.keys()
    or tree is None
    or level not in tree.columns
  ):
    return None
  y, prob = (found[name][:, tree.columns[level]] for name in ('multi_labels', 'multi_prob'))
  names, curves, dots = list(classes), [], []
  if y.shape != prob.shape or y.shape[1] != len(names):
    return None
  chosen = [
    c
    for c in np.argsort([-of['positives'] for of in classes.values()], kind='stable')[:DRAWN]
    if classes[names[c]]['positives']
  ]
  for k, c in enumerate(chosen):
    known, of = y[:, c] >= 0, classes[names[c]]['after']
    precision, recall, _ = precision_recall_curve(y[known, c], prob[known, c])
    curves.append(charts.Series(recall, precision, k, False, 1.0))
    if finite(of['precision']):
      dots.append(
        charts.Series(np.array([of['recall']]), np.array([of['precision']]), k, True, 1.0)
      )
  if not curves:
    return None
  chart = charts.Chart(
    title, 'recall', (*curves, *dots), (), (0, 1), percent=True, label='precision', extent=(0, 1.02)
  )
  return [(names[c], 'thick', k) for k, c in enumerate(chosen)], charts.draw(chart)


DRAWN = 12  # precision-recall curves in one picture
CLASSES = 500  # rows of the table of classes


WITH_INTERVAL = (
  '/top1',
  'fpa',
  'hvr',
  'severity',
  'ahd1',
)  # the rows that show theirs; more would drown the numbers


def _table(run: Run, split: str) -> dict:
  evaluation = run.evals[split]
  decode = {key: value for key, value in evaluation['decode'].items() if value}
  columns = {BASELINE: _baseline(run, split)} if _baseline(run, split) else {}
  columns |= {key: decode[key] for key in DECODINGS if key in decode} | decode
  intervals = dict(evaluation.get('intervals') or {})
  if run.baseline and split in run.baseline.evals:
    intervals[BASELINE] = (run.baseline.evals[split].get('intervals') or {}).get('leaf')
  unheaded = {level for level in run.levels if level not in run.heads}

  def rows(keys):
    made = []
    for key, label, metric in keys:
      values = [_value(column, key) for column in columns.values()]
      if not any(finite(value) for value in values):
        continue
      shown = [metric.text(value) for value in values]
      there = [value for value in values if finite(value)]
      best = metric.text(max(there) if metric.better > 0 else min(there)) if metric.better else None
      # Equal as printed is equal: all get the bold, and none where every column is the same.
      bold = [best is not None and text == best and len(set(shown)) > 1 for text in shown]
      found = [(intervals.get(name) or {}).get(_flat_name(key)) or {} for name in columns]
      ranges = [
        f'{metric.text(r["low"]).removesuffix("%")}–{metric.text(r["high"]).removesuffix("%")}'
        if (key.endswith(WITH_INTERVAL) or metric.function)
        and finite(r.get('low'))
        and r['low'] < r['high']
        else ''
        for r in found
      ]
      made.append({'label': label, 'key': key, 'cells': list(zip(shown, bold, ranges))})
    return made

  def per_level(metric):
    return rows(
      [
        (f'levels/{level}/{metric}', f'{level}*' if level in unheaded else level, METRICS[metric])
        for level in run.levels
      ]
    )

  pairs = dict.fromkeys(
    pair for column in columns.values() for pair in (column.get('consistency') or {})
  )
  groups = [
    (f'Accuracy, {METRICS[metric].label}', per_level(metric)) for metric in ('top1', 'top3', 'top5')
  ]
  groups.append(
    (
      'Whole path',
      rows(
        [(key, METRICS[key].label, METRICS[key]) for key in ('fpa', 'hvr', 'hvr_eq14')]
        + [(key, METRICS[key].label, METRICS[key]) for key in ('hp', 'hr', 'hf1', 'gap')]
      ),
    )
  )
  groups.append(
    (
      'Consistency of two levels',
      rows([(f'consistency/{pair}', pair, METRICS['consistency']) for pair in pairs]),
    )
  )
  groups.append(
    (
      'Size of mistakes, in levels',
      rows([(key, METRICS[key].label, METRICS[key]) for key in ('severity', 'ahd1', 'ahd5')]),
    )
  )
  groups.append(('Calibration error (ECE)', per_level('ece')))
  for metric in registered_by_users():
    if metric.scope == 'level':
      groups.append((metric.label, per_level(metric.name)))
    else:
      groups.append((metric.label, rows([(metric.name, metric.label, metric)])))
  return {
    'split': split,
    'n': evaluation.get('n', 'an unknown number of'),
    'unreadable': evaluation.get('unreadable') or 0,
    'tta': evaluation.get('tta') or 1,
    'columns': list(columns),
    'groups': [group for group in groups if group[1]],
    'unheaded': bool(unheaded),
    'weights': {
      level: f'{weight:.3g}'
      for level, weight in (evaluation.get('weights') or {}).items()
      if finite(weight)
    },
    'ranges': any(cell[2] for _, group in groups for row in group for cell in row['cells']),
  }


PAIRS = 12  # curves of gradients' cosines, the lowest on average


def curves(run: Run) -> Markup:
  """Loss, accuracy, learning rate and speed over the run, with the changes of phase marked; weights of the losses where they move."""
  if not run.train and not run.val:
    return render('sentence', 'No metrics.jsonl was found, so there are no curves.')
  axis = 'epoch' if all('epoch' in line for line in run.train + run.val) else 'step'
  starts = {}  # phase -> where it starts; run.json knows the step, the first line that was logged in it comes a little later
  for line in run.train:
    described = dict(enumerate(run.info.get('phases') or [])).get(line.get('phase')) or {}
    starts.setdefault(
      line.get('phase'), described.get('start', line['step']) * line[axis] / max(line['step'], 1)
    )
  phases = [_phase(run, phase, at, axis) for phase, at in starts.items()] if len(starts) > 1 else []
  marks = tuple(starts.values())[1:]
  at = [line[axis] for line in run.train + run.val]
  span = (min(0, *at), max(at)) if len(at) > 1 else (0, max(*at, 1))
  panels = []

  def panel(title, legend, *series, **options):
    if drawn := [one for one in series if len(one.x)]:
      chart = charts.Chart(title, axis, tuple(drawn), marks, span, **options)
      panels.append(
        {
          'title': title,
          'legend': legend if len(drawn) > 1 or len(legend) == 1 else [],
          'svg': charts.draw(chart),
        }
      )

  levels = [(level, 'thick', k) for k, level in enumerate(run.levels)]
  panel(
    'Loss',
    [('train', 'thin', 0), ('val', 'thick', 1)],
    series(run.train, axis, 'loss', 0, False),
    series(run.val, axis, 'loss', 1, True),
  )
  if len(run.heads) > 1:
    panel(
      'Training loss per level',
      levels,
      *(series(run.train, axis, f'loss/{level}', k, False, 1.0) for level, _, k in levels),
    )
  panel(
    'Accuracy per level',
    [*levels, ('train', 'thin', 'ink'), ('val', 'thick', 'ink')],
    *(series(run.train, axis, f'acc/{level}', k, False) for level, _, k in levels),
    *(series(run.val, axis, f'top1/{level}', k, True) for level, _, k in levels),
    percent=True,
  )
  panel(
    'mAP per level on val',
    levels,
    *(series(run.val, axis, f'map/{level}', k, True) for level, _, k in levels),
    percent=True,
  )
  panel(
    'F1 per level on val, at .5',
    levels,
    *(series(run.val, axis, f'f1/{level}', k, True) for level, _, k in levels),
    percent=True,
  )
  whole = {
    'fpa': 'full path, independent',
    'joint_fpa': 'full path, joint',
    'hvr': 'contradictions (HVR)',
  }
  panel(
    'Whole path on val',
    [(label, 'thick', k) for k, label in enumerate(whole.values())],
    *(series(run.val, axis, key, k, True) for k, key in enumerate(whole)),
    percent=True,
  )
  weights, cosines = _tasks(run, 'weight'), _tasks(run, 'cosine')
  if not any(np.ptp(values) > 1e-6 for values in weights.values()):
    weights = {}  # they stand still
  lowest = sorted(cosines, key=lambda pair: np.mean(cosines[pair]))[:PAIRS]
  tints = {name: k for k, name in enumerate(dict.fromkeys([*run.levels, *weights]))}
  panel(
    'Loss weights',
    [(name, 'thick', tints[name]) for name in weights],
    *(
      series(run.train, axis, f'weight/{name}', tints[name], False, 1.0, smooth=True)
      for name in weights
    ),
    label='weight',
  )
  panel(
    "Cosine of the tasks' gradients",
    [(pair, 'thick', k) for k, pair in enumerate(lowest)],
    *(
      series(run.train, axis, f'cosine/{pair}', k, False, 1.0, smooth=True)
      for k, pair in enumerate(lowest)
    ),
    label='cosine',
    extent=(-1, 1),
  )
  panel('Learning rate', [], series(run.train, axis, 'lr', 0, False, 1.0))
  panel('Images per second', [], series(run.train, axis, 'images_per_s', 0, False, 1.0))
  panel(
    'Share of the time spent waiting for data',
    [],
    series(run.train, axis, 'data_wait', 0, False, 1.0),
    percent=True,
  )
  memory = {'memory_gib': 'this process', 'device_memory_gib': 'its first device'}
  panel(
    'Peak memory in GiB',
    [(label, 'thick', k) for k, label in enumerate(memory.values())],
    *(series(run.train, axis, key, k, False, 1.0) for k, key in enumerate(memory)),
  )
  panel('Gradient norm', [], series(run.train, axis, 'grad_norm', 0, False, 1.0))
  return render(
    'curves',
    panels=panels,
    phases=phases,
    binned=len(run.train) > charts.POINTS,
    window=len(run.train) // charts.WINDOWS,
    smoothed=['loss weights'] * bool(weights) + ['cosines'] * bool(cosines),
    hidden=len(cosines) - len(lowest),
  )


def _tasks(run: Run, kind: str) -> dict[str, list[float]]:
  """NAME -> what was logged as KIND/NAME, the levels first."""
  found: dict[str, list[float]] = {}
  for line in run.train:
    for key, value in line.items():
      if key.startswith(f'{kind}/') and finite(value):
        found.setdefault(key.removeprefix(f'{kind}/'), []).append(value)
  return {
    name: found[name]
    for name in [
      *(level for level in run.levels if level in found),
      *(name for name in found if name not in run.levels),
    ]
  }


def _phase(run: Run, phase, at: float, axis: str) -> str:
  """A phase of the curriculum in words, its number counted from 1."""
  described = run.info.get('phases') or []
  index = phase if isinstance(phase, int) and 0 <= phase < len(described) else None
  text = f'Phase {phase + 1 if isinstance(phase, int) else phase}, '
  text += f'from {axis} {at:.3g}' if at > run.train[0][axis] else 'at the start'
  if index is None:
    return text + '.'
  levels, freeze = (
    listed(described[index].get(key) or ['nothing']) for key in ('levels', 'freeze')
  )
  return f'{text}: loss of {levels}; frozen: {freeze}.'


def calibration(run: Run) -> Markup:
  """How far a shown probability can be trusted: reliability diagrams, and the same in words."""
  if not run.evaluation:
    return render('sentence', 'There is no evaluation, so nothing is known about calibration.')
  split, notes, panels = run.splits[0], [], []
  predictions = run.predicted or {}
  names = [name for name in ('independent', 'joint') if run.evaluation['decode'].get(name)]
  for k, level in enumerate(run.levels):
    curves = []
    for name in names:
      if not finite(error := _value(run.evaluation['decode'][name], f'levels/{level}/ece')):
        continue
      note = {'level': level, 'decoding': name, 'ece': f'{100 * error:.1f}', 'how': ''}
      if f'prob_{name}' in predictions:
        known = predictions['labels'][:, k] >= 0
        if known.any():
          bins = metrics.reliability(
            predictions[f'prob_{name}'][known, k],
            (predictions[f'pred_{name}'] == predictions['labels'])[known, k],
          )
          curves.append((names.index(name), *bins))
          sure, right = (float(total.sum() / known.sum()) for total in bins[1:])
          how = 'too high' if sure > right + 0.01 else 'too low' if sure < right - 0.01 else 'fair'
          note |= {'sure': number(sure), 'right': number(right), 'how': how}
      notes.append(note)
    if curves:
      panels.append(
        {'title': level, 'svg': charts.reliability(f'Reliability diagram {k + 1}', curves)}
      )
  if not notes:
    return render('sentence', 'The evaluation holds no calibration error.')
  return render(
    'calibration',
    notes=notes,
    split=split,
    worst=max(notes, key=lambda note: float(note['ece'])),
    panels=panels,
    names=names,
    fewest=charts.FEWEST,
  )


def novelty(run: Run) -> Markup:
  """How well images of classes that training never saw are told, per level and node; '' where that was not asked for."""
  found = (run.evaluation or {}).get('novelty')
  if not found:
    return Markup('')
  rows, panels = [], []
  for level, of in found['levels'].items():
    rows.append(
      {
        'level': level,
        'score': of['score'],
        'novel': of['novel'],
        'chosen': number(of['left_out'].get(of['score'])),
        'cells': [
          METRICS[f'novel_{key}'].text(of[key])
          for key in ('auroc', 'softmax', 'known', 'parent', 'placed')
        ],
      }
    )
    if of['roc']:
      panels.append(
        {
          'title': level,
          'svg': charts.draw(
            charts.Chart(
              f'Novelty, ROC of {level}',
              'share of known images called new',
              (series([dict(zip('xy', at)) for at in of['roc']], 'x', 'y', 0, False, 1.0),),
              (),
              (0, 1),
              percent=True,
              extent=(0, 1),
            )
          ),
        }
      )
  nodes = [{**node, 'threshold': f'{node["threshold"]:.4g}'} for node in found['nodes']]
  tried = [
    (
      level,
      [
        (name, number(of['left_out'].get(name)), number(new.get(name)))
        for name in {**of['left_out'], **new}
      ],
    )
    for level, of in found['levels'].items()
    for new in [of['by_score'] or {}]
  ]
  return render(
    'novelty',
    rows=rows,
    panels=panels,
    nodes=nodes,
    tried=tried,
    split=run.splits[0],
    recall=number(found['recall']),
    kept=number(found['kept']),
    found=number(found.get('found')),
    known=found['known_images'],
    novel=found.get('novel_images', 0),
  )


MOMENTS = {
  'before': 'the old run, among its own classes',
  'start': 'migrated, before training',
  'now': 'now',
}


def _grown(run: Run) -> dict[str, list[dict]]:
  """{level: [{'name', 'kind', 'before', 'start', 'now'}]}, a row a class of a migrated run: (images that are right, all) of the first split, by the old run,
  before any training, and now."""
  found = {}
  for level, classes in run.migration['classes'].items():
    counts = {
      'start': run.start.per_class(level) if run.start else None,
      'now': run.per_class(level),
    }
    found[level] = [
      {
        'name': name,
        'kind': of['kind'],
        'before': (of['right'], of['images']),
        **{moment: (0, 0) if c is None else tuple(c[i].tolist()) for moment, c in counts.items()},
      }
      for i, (name, of) in enumerate(classes.items())
    ]
  return found


def _share(rows: list[dict], moment: str) -> float | None:
  right, images = (sum(row[moment][k] for row in rows) for k in (0, 1))
  return right / images if images else None


def _groups(rows: list[dict]) -> dict[str, list[dict]]:
  """All classes, the known and the new; what there is none of is left out."""
  groups = {
    'all': rows,
    'known': [row for row in rows if row['kind'] != 'new'],
    'new': [row for row in rows if row['kind'] == 'new'],
  }
  return {name: of for name, of in groups.items() if of}


def migrated(begun: Run, migration: dict) -> list[str]:
  """In lines: what a run makes of known and of new classes right after the migration."""
  lines = []
  for level, rows in _grown(dataclasses.replace(begun, migration=migration)).items():
    parts = [
      f'{name} {number(_share(of, "now"))}'
      + (f' (the old run {number(_share(of, "before"))})' if name == 'known' else '')
      for name, of in _groups(rows).items()
    ]
    lines.append(f'{begun.splits[0]}, {level}, untrained: ' + ', '.join(parts))
  return lines


def migration(run: Run) -> Markup:
  """A run on a changed taxonomy: each class before and after."""
  if not run.migration:
    return Markup('')
  tables = []
  for level, rows in reversed(_grown(run).items()):
    whole = [
      (
        name,
        len(of),
        [
          number(None if name == 'all' and moment == 'before' else _share(of, moment))
          for moment in MOMENTS
        ],
      )
      for name, of in _groups(rows).items()
    ]
    shares = [{moment: _share([row], moment) for moment in MOMENTS} for row in rows]
    first = [of['start'] if of['before'] is None else of['before'] for of in shares]
    points = [
      [
        (a, of['now'])
        for a, of, row in zip(first, shares, rows)
        if (row['kind'] == 'new') == new and finite(a) and finite(of['now'])
      ]
      for new in (False, True)
    ]
    change = [
      of['now'] - a if finite(a) and finite(of['now']) else math.inf for a, of in zip(first, shares)
    ]
    classes = [
      (
        rows[i]['name'],
        rows[i]['kind'],
        count(rows[i]['now'][1]),
        *(number(shares[i][moment]) for moment in MOMENTS),
        signed(change[i]) if finite(change[i]) else '–',
      )
      for i in sorted(range(len(rows)), key=change.__getitem__)
    ]
    picture = (
      charts.against(
        f'Before and now {len(tables)}', [(k, np.array(of)) for k, of in enumerate(points) if of]
      )
      if any(points)
      else None
    )
    tables.append(
      {
        'level': level,
        'whole': whole,
        'classes': classes[:CLASSES],
        'more': max(0, len(classes) - CLASSES),
        'picture': picture,
      }
    )
  changes = [
    (level, kind, texts[:SHOWN], max(0, len(texts) - SHOWN))
    for level, kinds in run.migration['changes'].items()
    for kind, texts in kinds.items()
    if texts
  ]
  return render(
    'migration',
    tables=tables,
    changes=changes,
    moments=list(MOMENTS.values()),
    split=run.splits[0] if run.splits else 'val',
    source=run.migration.get('from'),
    shots=run.migration.get('shots'),
  )


def taxonomy(run: Run) -> Markup:
  """The classes of each level and how the levels hang together."""
  whole = run.taxonomy
  if whole is None:
    return render('sentence', 'No taxonomy.csv was found.')
  if whole.multi and whole.exclusive:
    own, several = whole.exclusive, whole.several
    below = int((whole.above >= 0).any(1).sum())
    text = (
      f'An image has one class of {listed(own.levels)} and any number of {listed(several.levels)}. Of the latter, {count(below)} of '
      f'{count(len(whole.above))} lie below one of the former, the others may stand beside any. Content hash {whole.hash()[:16]}.'
    )
    return Markup('').join(
      [render('sentence', text), *(_tree(run, part, '') for part in (own, several))]
    )
  return _tree(run, whole, whole.hash())


def _tree(run: Run, tree, digest: str) -> Markup:
  """A taxonomy of one kind."""
  levels, finest = [], len(tree.levels) - 1
  for k, level in enumerate(tree.levels):
    sizes = np.bincount(tree.paths[:, k], minlength=tree.num_classes(level))
    levels.append(
      {
        'name': level,
        'classes': count(tree.num_classes(level)),
        'head': level in run.heads,
        'only': '' if k == finest else count(int((sizes == 1).sum())),
        'most': '' if k == finest else count(int(sizes.max())),
        'largest': '' if k == finest else tree.names[k][int(sizes.argmax())],
      }
    )
  pairs = []
  for a in range(len(tree.levels)):
    for b in range(a + 1, len(tree.levels)):
      coarse, fine = tree.levels[a], tree.levels[b]
      relation = tree.relation(coarse, fine)
      pairs.append(
        {
          'coarse': coarse,
          'fine': fine,
          'pairs': count(int(relation.sum())),
          'of': count(relation.size),
          'nests': tree.nests(fine, coarse),
        }
      )
  return render(
    'taxonomy',
    levels=levels,
    pairs=pairs,
    leaves=count(len(tree.paths)),
    finest=tree.levels[-1],
    early=int((tree.depth < len(tree.levels)).sum()),
    hash=digest,
  )


SHOWN = 500  # skipped files that are named in full


def data(run: Run) -> Markup:
  """The images of the run, those that could not be read, and the notes of the data source."""
  skipped = [str(file) for file in run.info.get('skipped') or []]
  unreadable = [
    (split, run.evals[split]['unreadable'])
    for split in run.splits
    if run.evals[split].get('unreadable')
  ]
  return render(
    'data',
    known=bool(run.info),
    train=run.info.get('train_examples'),
    val=run.info.get('val_examples'),
    unreadable=unreadable,
    skipped=skipped[:SHOWN],
    total=len(skipped),
    notes=[str(note) for note in run.info.get('notes') or []],
  )


def configuration(run: Run) -> Markup:
  groups: dict[str, list] = {}
  for key, value in flat(run.config).items():
    head, _, rest = key.rpartition('.')
    groups.setdefault(head, []).append((rest, json.dumps(value, ensure_ascii=False, default=str)))
  return render('configuration', groups=sorted(groups.items()))


def provenance(run: Run) -> Markup:
  """What is needed to make the run again."""
  info = run.info
  facts = {
    'seed': run.config.get('seed'),
    'seed of the split': get(run.config, 'data.split_seed'),
    'started': info.get('started'),
    'finished': info.get('finished'),
    'device': info.get('device'),
    'time': duration(info['seconds']) if info.get('seconds') else None,
    'parameters': count(info['params']) if info.get('params') else None,
    'taxonomy': run.taxonomy.hash()[:16] if run.taxonomy else None,
    'training state': (info.get('state_sha256') or '')[:16] or None,
  }
  return render(
    'provenance',
    command=info.get('command'),
    known=bool(info),
    versions=sorted((info.get('versions') or {}).items()),
    facts=[(label, str(value)) for label, value in facts.items() if value is not None],
  )


@dataclasses.dataclass(frozen=True)
class Section:
  id: str
  title: str
  make: Callable[[Run], Markup]


SECTIONS = [
  Section('verdict', 'Did the hierarchy pay?', verdict),
  Section('scores', 'Scores', scores),
  Section('migration', 'Before and after the taxonomy changed', migration),
  Section('labels', 'Scores of each class', labels),
  Section('curves', 'Curves', curves),
  Section('confusion', 'What is taken for what', mistakes.confusion),
  Section('worst', 'The worst confusions', mistakes.worst),
  Section('gallery', 'What each head saw', mistakes.gallery),
  Section('calibration', 'Can the probabilities be trusted?', calibration),
  Section('novelty', 'Is it something new?', novelty),
  Section('tree', 'Where in the tree it works', mistakes.tree),
  Section('features', 'The features', mistakes.features),
  Section('embedding', 'Features and prototypes', mistakes.embedding),
  Section('taxonomy', 'Taxonomy', taxonomy),
  Section('data', 'Data', data),
  Section('configuration', 'Configuration', configuration),
  Section('provenance', 'How it was made', provenance),
]


ONE_CLASS = (
  'verdict',
  'scores',
  'confusion',
  'worst',
  'gallery',
  'calibration',
  'tree',
  'features',
  'embedding',
)  # they tell of exclusive levels only


# The page.


def html(run: Run) -> str:
  """The whole page."""

  def made(section, make):
    try:
      seen = run.exclusive if section in ONE_CLASS else run
      return make(seen) if seen else Markup('')
    except Exception as error:  # a fault in drawing must not cost the run its other results
      logging.exception('report: the section %s could not be made', section)
      return render(
        'sentence', f'This section could not be made ({type(error).__name__}: {error}).'
      )

  name = str(run.config.get('name') or run.path.resolve().name)
  sections = [
    (section.id, section.title, body)
    for section in SECTIONS
    if (body := made(section.id, section.make))
  ]
  return str(
    render(
      'page',
      name=name,
      headline=made('headline', headline),
      sections=sections,
      date=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
    )
  )


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Writes WORKDIR/report.html and returns its path; UserError where WORKDIR is not the directory of a run."""
  run = read(workdir)
  return files.write(run.path / 'report.html', html(run))
