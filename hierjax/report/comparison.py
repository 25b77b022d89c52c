"""Comparison of runs, or of recipes by several seeds: one page, its numbers as JSON and CSV."""

import csv
import functools
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core import files, json_files
from hierjax.core.errors import UserError
from hierjax.core.metrics import METRICS
from hierjax.evaluate import bootstrap, metrics
from hierjax.report import formats, page, runs
from hierjax.report.runs import Run
from hierjax.report.sections import verdict

# Classes that are listed as won and as lost; all are in the CSV.
CLASSES = 12
# What may differ between runs that are compared, and is no option of the recipe.
IMMATERIAL = ('seed', 'baseline', 'name', 'data.workers', 'data.threads', 'log.')
FACTS = ('params', 'train_examples', 'step', 'seconds')


class Method(NamedTuple):
  """A recipe: its runs, one a seed, and their values per example in common, {name: [N]} each."""

  name: str
  folder: str
  runs: tuple[Run, ...]
  values: tuple[Mapping[str, np.ndarray], ...]

  def mean(self, key: str) -> float | None:
    """The mean over the seeds of a value per example."""
    means = [bootstrap.nanmean(values[key]) for values in self.values]
    return None if None in means else float(np.mean(means))


def write(
  folders: Sequence[str], workdir: str | os.PathLike, split: str = ''
) -> tuple[pathlib.Path, list[str]]:
  """Compare runs with the first of them; write compare.html, compare.json and compare.csv.

  Args:
    folders: runs, or folders of runs that differ in their seed only, called seedN.
    workdir: where to write.
    split: which split; by default the first one of the first run.

  Returns:
    The path of the page, and a sentence for each run but the first.

  Raises:
    UserError: a folder is no run or not evaluated, or taxonomies or labels differ.
  """
  numbers = compare(folders, split)
  out = pathlib.Path(workdir)
  out.mkdir(parents=True, exist_ok=True)
  contents = json_files.dump(formats.plain(numbers), indent=1)
  files.write(out / 'compare.json', contents + '\n')
  files.write(out / 'compare.csv', _csv(numbers))
  return files.write(out / 'compare.html', page.comparison(**numbers)), numbers['sentences']


def compare(folders: Sequence[str], split: str = '') -> dict:
  """Compute what the page shows; see `write`."""
  recipes = {folder: _runs_of(folder) for folder in folders}
  first = next(iter(recipes.values()))[0]
  split = split or (first.splits[0] if first.splits else 'val')
  flat_runs = [run for seeds in recipes.values() for run in seeds]
  decision, arrays = _predictions(flat_runs, split)
  common = functools.reduce(np.intersect1d, [a['files'] for a in arrays])
  if not len(common):
    raise UserError(f'the runs have no image of {split} in common')
  table, values, labels, predicted = first.taxonomy.table('exclusive'), [], None, []
  for run, run_arrays in zip(flat_runs, arrays):
    order = np.argsort(run_arrays['files'], kind='stable')
    rows = order[np.searchsorted(run_arrays['files'][order], common)]
    own_labels, pred = (run_arrays[key][rows] for key in ('labels', f'pred_{decision}'))
    labels = own_labels if labels is None else labels
    if not np.array_equal(labels, own_labels):
      i = int((labels != own_labels).any(1).argmax())
      raise UserError(f'{run.path}: {common[i]} has other labels there than in {first.path}')
    values.append(metrics.of_predictions(pred, labels, table))
    predicted.append(pred[:, -1])
  names, methods, start = _names(list(recipes)), [], 0
  for name, (folder, seeds) in zip(names, recipes.items()):
    part = slice(start, start + len(seeds))
    methods.append(Method(name, folder, tuple(seeds), tuple(values[part])))
    start += len(seeds)
  rows = {m.name: _rows(methods[0], m, first) for m in methods[1:]}
  classes = _classes(table.names[-1], labels[:, -1], methods, predicted)
  return {
    'split': split,
    'images': len(common),
    'all_images': max(len(a['files']) for a in arrays),
    'decision': decision,
    'reference': names[0],
    'methods': [_facts(method) for method in methods],
    'metrics': rows,
    'sentences': [_sentence(names[0], m, rows[m.name]['fpa']) for m in methods[1:]],
    'classes': classes,
    'changes': {name: _changes(classes, names[0], name) for name in names[1:]},
    'options': _options(methods),
    'level': table.levels[-1],
  }


def _runs_of(folder: str) -> list[Run]:
  """The run in a folder and its further seeds, or the runs in its folders seedN."""
  path = pathlib.Path(folder)
  if (path / 'config.json').is_file():
    run = runs.read(path, baseline=False, seeds=True)
    return [run, *run.seeds]
  inner = sorted(path.glob('seed[0-9]*'), key=lambda p: (len(p.name), p.name))
  seeds = [runs.read(p, baseline=False) for p in inner if (p / 'config.json').is_file()]
  if not seeds:
    raise UserError(f'{folder}: neither a run (config.json) nor a folder of runs seed0, seed1, ...')
  return seeds


def _predictions(all_runs: Sequence[Run], split: str) -> tuple[str, list[dict[str, np.ndarray]]]:
  """The decision that all have, and the predictions of each run."""
  arrays = []
  for run in all_runs:
    if run.taxonomy is None or run.taxonomy.block('exclusive') is None:
      raise UserError(f'{run.path}: has no taxonomy of exclusive levels to compare by')
    if run.taxonomy.hash() != all_runs[0].taxonomy.hash():
      raise UserError(f'{run.path}: has another taxonomy than {all_runs[0].path}')
    arrays.append(run.predictions(split))
    if not arrays[-1]:
      raise UserError(
        f'{run.path}: has no predictions on {split}; hierjax evaluate --workdir={run.path} '
        f'--split={split} makes them'
      )
  for decision in ('joint', 'leaf', 'independent'):
    if all(f'pred_{decision}' in a for a in arrays):
      return decision, arrays
  raise UserError(f'the runs have no decision rule on {split} in common')


def _names(folders: Sequence[str]) -> list[str]:
  """The shortest ends of the paths that tell the folders apart."""
  parts = [pathlib.Path(folder).resolve().parts for folder in folders]
  for length in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(p[-length:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  raise UserError(f'{folders[0]}: is named twice')


def _rows(reference: Method, method: Method, run: Run) -> dict[str, verdict.Row]:
  """The metrics of both, with the interval of the difference over as many seeds as both have."""
  n, rows = min(len(reference.values), len(method.values)), {}
  for name, label in verdict.labels_of(run.exclusive).items():
    metric, _, level = name.partition('/')
    key = f'{level}.{metric}' if level else metric
    arrays = [[values[key] for values in m.values[:n]] for m in (method, reference)]
    interval = bootstrap.difference(*arrays, METRICS[metric].is_percent)
    rows[name] = verdict.Row(name, label, reference.mean(key), method.mean(key), None, interval)
  return rows


def _sentence(reference: str, method: Method, fpa: verdict.Row) -> str:
  """What the difference in full-path accuracy says."""
  if fpa.difference is None or fpa.interval is None:
    return f'{method.name} and {reference} have no full-path accuracy to compare.'
  word = {'good': 'is better than', 'bad': 'is worse than', '': 'is not clearly different from'}
  difference, seeds = fpa.interval, fpa.interval.seeds
  low, high = fpa.metric.signed(difference.low), fpa.metric.signed(difference.high)
  text = f'{method.name} {word[fpa.tone]} {reference}: whole path {fpa.metric.text(fpa.value)} '
  text += (
    f'against {fpa.metric.text(fpa.baseline)}; difference {fpa.metric.signed(difference.mean)}'
  )
  text += f' points ({low} to {high}, 95% over images and {seeds} seed{"s" * (seeds > 1)} of each'
  assumed = f'{100 * bootstrap.SEED_DEVIATION:.1f}'
  text += f', assuming {assumed} points from seed to seed)' * difference.is_assumed
  return text + ')' * (not difference.is_assumed) + '.'


def _classes(names, labels, methods, predicted) -> list[dict]:
  """Images of each finest class, and the share that is right by each method."""
  size, is_labelled = len(names), labels >= 0
  total, shares, start = np.bincount(labels[is_labelled], minlength=size), {}, 0
  for method in methods:
    right = np.zeros(size)
    for pred in predicted[start : start + len(method.runs)]:
      right += np.bincount(labels[is_labelled & (pred == labels)], minlength=size)
    shares[method.name] = right / np.maximum(total, 1) / len(method.runs)
    start += len(method.runs)
  return [
    {
      'class': names[c],
      'images': int(total[c]),
      'right': {name: float(share[c]) for name, share in shares.items()},
    }
    for c in np.flatnonzero(total).tolist()
  ]


def _changes(classes: Sequence[dict], reference: str, name: str) -> list[dict]:
  """The classes with the most images won, on average over the seeds, then those that lost most."""
  won = [c | {'won': c['images'] * (c['right'][name] - c['right'][reference])} for c in classes]
  won.sort(key=lambda c: (-c['won'], c['class']))
  best = [c for c in won[:CLASSES] if c['won'] > 1e-9]
  return best + [c for c in won[-CLASSES:] if c['won'] < -1e-9]


def _facts(method: Method) -> dict:
  info = method.runs[0].info
  facts = {'name': method.name, 'folder': method.folder, 'seeds': len(method.runs)}
  return facts | {key: info.get(key) for key in FACTS}


def _options(methods: Sequence[Method]) -> list[dict]:
  """The options in which the methods differ, by their first seeds."""
  options = {method.name: runs.flat(method.runs[0].config) for method in methods}
  keys = sorted(set().union(*options.values()))
  rows = [{'option': k, 'values': {name: o.get(k) for name, o in options.items()}} for k in keys]
  return [
    row
    for row in rows
    if len(set(map(str, row['values'].values()))) > 1 and not row['option'].startswith(IMMATERIAL)
  ]


def _csv(numbers: dict) -> str:
  """A line a method and metric, then a line a method and finest class."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    ('method', 'class', 'images', 'metric', 'value', numbers['reference'], 'difference')
    + ('low', 'high')
  )
  for name, rows in numbers['metrics'].items():
    for row in rows.values():
      ends = [row.interval.low, row.interval.high] if row.interval else ['', '']
      figures = [row.value, row.baseline, row.difference, *ends]
      writer.writerow([name, '', numbers['images'], row.name, *figures])
    for c in numbers['classes']:
      ours, reference = c['right'][name], c['right'][numbers['reference']]
      metric = f'top1/{numbers["level"]}'
      writer.writerow(
        [name, c['class'], c['images'], metric, ours, reference, ours - reference, '', '']
      )
  return text.getvalue()
