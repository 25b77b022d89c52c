"""Comparison of runs, or of recipes by several seeds: one page, its numbers as JSON and CSV."""

import functools
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core import files, json_files
from hierjax.core.errors import UserError
from hierjax.evaluate import bootstrap, metrics
from hierjax.report import formats, page, runs
from hierjax.report.runs import Run
from hierjax.report.sections import verdict
from hierjax.report.templates import render
from hierjax.taxonomy import Taxonomy

CLASSES = 12  # listed as won, and as lost; all are in the CSV
# What may differ between runs that are compared, and is no option of the recipe.
IMMATERIAL = ('seed', 'baseline', 'name', 'data.workers', 'data.threads', 'log.')
IMMATERIAL += ('train.shard', 'train.class_devices')
FACTS = ('params', 'train_examples', 'step', 'seconds')
HEADER = ('method', 'class', 'images', 'metric', 'value', 'reference', 'difference', 'low', 'high')


class Method(NamedTuple):
  """A recipe: its runs, one a seed, and their values per example in common, {name: [N]} each."""

  name: str
  runs: list[Run]
  values: list[Mapping[str, np.ndarray]]

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
  numbers, out = compare(folders, split), pathlib.Path(workdir)
  out.mkdir(parents=True, exist_ok=True)
  contents = json_files.dump(formats.plain(numbers), indent=1)
  files.write(out / 'compare.json', contents + '\n')
  files.write(out / 'compare.csv', files.csv_text([HEADER, *_lines(numbers)]))
  sentences = str(render('compare_words', **numbers)).splitlines()
  content = page.render_page(
    'compare', f'Against {numbers["reference"]}', sentences=sentences, **numbers
  )
  return files.write(out / 'compare.html', content), sentences


def compare(folders: Sequence[str], split: str = '') -> dict:
  """Compute what the page shows; see `write`."""
  names = _names(folders)
  recipes = [_runs_of(folder) for folder in folders]
  first = recipes[0][0]
  split = split or (first.splits[0] if first.splits else 'val')
  arrays = [[_predictions(run, first, split) for run in recipe] for recipe in recipes]
  every = list(itertools.chain(*arrays))
  common = functools.reduce(np.intersect1d, [a['files'] for a in every])
  if not len(common):
    raise UserError(f'the runs have no image of {split} in common')
  kinds = ('joint', 'leaf', 'independent')
  decision = next(kind for kind in kinds if all(f'pred_{kind}' in a for a in every))
  methods, table = [], first.taxonomy.table('exclusive')
  labels = every[0]['labels'][_rows(every[0], common)]
  for name, seeds, seed_arrays in zip(names, recipes, arrays):
    values = []
    for run, a in zip(seeds, seed_arrays):
      rows = _rows(a, common)
      is_other = (a['labels'][rows] != labels).any(1)
      if is_other.any():
        file = common[int(is_other.argmax())]
        raise UserError(f'{run.path}: {file} has other labels there than in {first.path}')
      values.append(metrics.of_predictions(a[f'pred_{decision}'][rows], labels, table))
    methods.append(Method(name, seeds, values))
  figures = {m.name: _figures(methods[0], m) for m in methods[1:]}
  classes = _classes(table, labels[:, -1], methods)
  return {
    'split': split,
    'images': len(common),
    'all_images': max(len(a['files']) for a in every),
    'decision': decision,
    'deviation': bootstrap.SEED_DEVIATION,
    'reference': methods[0].name,
    'level': table.levels[-1],
    'metrics': figures,
    'classes': classes,
    'changes': {name: _changes(classes, methods[0].name, name) for name in figures},
    'options': _options(methods),
    'methods': [
      {'name': m.name, 'seeds': len(m.runs)} | {key: m.runs[0].info.get(key) for key in FACTS}
      for m in methods
    ],
  }


def _runs_of(folder: str) -> list[Run]:
  """Read the run in a folder and its further seeds, or the runs in its folders seedN."""
  path = pathlib.Path(folder)
  if (path / 'config.json').is_file():
    run = runs.read(path, baseline=False, seeds=True)
    return [run, *run.seeds]
  seeds = [runs.read(inner, baseline=False) for inner in runs.seed_folders(path)]
  if not seeds:
    raise UserError(f'{folder}: neither a run (config.json) nor a folder of runs seed0, seed1, ...')
  return seeds


def _predictions(run: Run, first: Run, split: str) -> dict[str, np.ndarray]:
  """Read the predictions of a run, which must have the taxonomy of the first."""
  if run.taxonomy is None or run.taxonomy.block('exclusive') is None:
    raise UserError(f'{run.path}: has no taxonomy of exclusive levels to compare by')
  if run.taxonomy.hash() != first.taxonomy.hash():
    raise UserError(f'{run.path}: has another taxonomy than {first.path}')
  arrays = run.predictions(split)
  if not arrays:
    command = f'hierjax evaluate --workdir={run.path} --split={split}'
    raise UserError(f'{run.path}: has no predictions on {split}; {command} makes them')
  return arrays


def _rows(arrays: Mapping[str, np.ndarray], names: np.ndarray) -> np.ndarray:
  """Find the rows of the predictions that have these names of files."""
  order = np.argsort(arrays['files'], kind='stable')
  return order[np.searchsorted(arrays['files'][order], names)]


def _names(folders: Sequence[str]) -> list[str]:
  """Find the shortest ends of the paths that tell the folders apart."""
  parts = [pathlib.Path(folder).resolve().parts for folder in folders]
  if len(set(parts)) < len(parts):
    raise UserError('compare: the same folder is named twice')
  for length in itertools.count(1):
    names = ['/'.join(p[-length:]) for p in parts]
    if len(set(names)) == len(names):
      return names


def _figures(reference: Method, method: Method) -> dict[str, verdict.Row]:
  """Compare the metrics of both, with intervals over as many seeds as both have."""
  n, rows = min(len(reference.values), len(method.values)), {}
  for name, label in verdict.labels_of(method.runs[0].exclusive).items():
    key = metrics.key_of(name)
    ours = [values[key] for values in method.values[:n]]
    others = [values[key] for values in reference.values[:n]]
    row = verdict.Row(name, label, reference.mean(key), method.mean(key), None, None)
    rows[name] = row._replace(interval=bootstrap.difference(ours, others, row.metric.is_percent))
  return rows


def _classes(table: Taxonomy, labels: np.ndarray, methods: Sequence[Method]) -> list[dict]:
  """Count the images of each finest class, and the share that is right by each method."""
  is_labelled, size = labels >= 0, len(table.names[-1])
  total, shares = np.bincount(labels[is_labelled], minlength=size), {}
  for method in methods:
    right = sum(values[f'{table.levels[-1]}.top1'][is_labelled] for values in method.values)
    sums = np.bincount(labels[is_labelled], right, size)
    shares[method.name] = sums / np.maximum(total, 1) / len(method.values)
  return [
    {
      'class': table.names[-1][c],
      'images': int(total[c]),
      'right': {name: float(share[c]) for name, share in shares.items()},
    }
    for c in np.flatnonzero(total).tolist()
  ]


def _changes(classes: Sequence[dict], reference: str, name: str) -> list[dict]:
  """List the classes with the most images won, on average over the seeds, then those lost."""
  won = [c | {'won': c['images'] * (c['right'][name] - c['right'][reference])} for c in classes]
  won.sort(key=lambda c: (-c['won'], c['class']))
  best = [c for c in won[:CLASSES] if c['won'] > 1e-9]
  return best + [c for c in won[-CLASSES:] if c['won'] < -1e-9]


def _options(methods: Sequence[Method]) -> dict[str, list]:
  """Find the options in which the first seeds of the methods differ."""
  differing = runs.differing([runs.flat(method.runs[0].config) for method in methods])
  return {key: row for key, row in sorted(differing.items()) if not key.startswith(IMMATERIAL)}


def _lines(numbers: dict) -> Iterator[list]:
  """Yield the lines of the CSV: of each method its metrics, then its accuracy on each class."""
  for name, rows in numbers['metrics'].items():
    for row in rows.values():
      ends = [row.interval.low, row.interval.high] if row.interval else [None, None]
      figures = [row.value, row.baseline, row.difference, *ends]
      yield [name, '', numbers['images'], row.name, *figures]
    for c in numbers['classes']:
      ours, reference = c['right'][name], c['right'][numbers['reference']]
      figures = [ours, reference, ours - reference, None, None]
      yield [name, c['class'], c['images'], f'top1/{numbers["level"]}', *figures]
