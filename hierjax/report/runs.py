"""What a run left in its directory, read for the report: `read(workdir)` → Run. What is missing or damaged is None or empty, and named in `faults`."""

import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import re

import numpy as np

from hierjax.core.config import resolve_levels
from hierjax.core.errors import UserError
from hierjax.evaluate import explain
from hierjax.taxonomy import Mixed, Taxonomy, read_taxonomy

START = 'start'  # within the folder of a run that --mode=migrate has made: the run as it was before any training


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run left in its directory; anything but the configuration may be absent (None or empty)."""

  path: pathlib.Path
  config: dict
  info: dict  # run.json
  train: list[dict]  # the lines of metrics.jsonl, one per step, in order
  val: list[dict]
  taxonomy: Taxonomy | Mixed | None
  evals: dict[str, dict]  # split -> eval_SPLIT.json
  embeddings: dict[
    str, dict
  ]  # 'first' evaluation and 'last' -> embedding_first.npz, embedding_last.npz
  faults: list[str]  # files that are there but could not be read, in words
  baseline: 'Run | None'
  migration: dict = dataclasses.field(
    default_factory=dict
  )  # migration.json of a run that --mode=migrate has made
  start: 'Run | None' = None  # what it began with

  @functools.cached_property
  def levels(self) -> tuple[str, ...]:
    for evaluation in self.evals.values():
      of = next(iter(evaluation['decode'].values()), {}).get('levels', {})
      if found := (*of, *(evaluation.get('multi') or {})):
        return found
    if self.taxonomy is not None:
      return tuple(self.taxonomy.levels)
    if self.info.get('classes'):
      return tuple(self.info['classes'])
    return tuple(
      dict.fromkeys(
        key.split('/', 1)[1]
        for line in self.train + self.val
        for key in line
        if re.match('(acc|top1|loss)/', key)
      )
    )

  @functools.cached_property
  def heads(self) -> tuple[str, ...]:
    """The levels that have a head of their own."""
    if known := self.info.get('heads'):
      return tuple(known)
    try:
      return resolve_levels(get(self.config, 'model.levels') or 'all', self.levels, 'model.levels')
    except UserError:
      return self.levels

  @functools.cached_property
  def exclusive(self) -> 'Run | None':
    """The run as one of its exclusive levels alone; None where it has none."""
    if self.taxonomy is None or not self.taxonomy.multi:
      return self
    if not (own := self.taxonomy.exclusive):
      return None
    info = self.info | {
      'heads': [level for level in self.heads if level in own.levels],
      'classes': {level: own.num_classes(level) for level in own.levels},
    }
    evals = {
      split: {k: v for k, v in found.items() if k != 'multi'} for split, found in self.evals.items()
    }
    return dataclasses.replace(
      self, taxonomy=own, info=info, evals=evals, baseline=self.baseline and self.baseline.exclusive
    )

  @functools.cached_property
  def splits(self) -> list[str]:
    """The evaluated splits, the validation split first."""
    val = get(self.config, 'data.val', 'val')
    return sorted(self.evals, key=lambda split: (split != val, split != 'val', split))

  @functools.cached_property
  def evaluation(self) -> dict | None:
    return self.evals[self.splits[0]] if self.splits else None

  def predictions(self, split: str) -> dict[str, np.ndarray] | None:
    """predictions_SPLIT.npz of evaluate.write: files [N], labels, pred_DECODING and prob_DECODING [N, L], top_K and top_prob_K [N, 5] of the head of
    column K, of multi levels multi_labels, multi_prob and multi_pred [N, M]; None where there is none that could be read."""
    return self._archive(
      f'predictions_{split}.npz', ('files', 'labels', 'pred_', 'prob_', 'top_', 'multi_')
    )

  def _archive(self, name: str, keys: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    try:
      with np.load(self.path / name, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files if key.startswith(keys)}
    except FileNotFoundError:
      return None
    except Exception as error:
      logging.warning('report: %s could not be read: %s', name, error)
      return None

  @functools.cached_property
  def predicted(self) -> dict[str, np.ndarray] | None:
    """The predictions on the first split, where they are whole and of this taxonomy."""
    found = self.predictions(self.splits[0]) if self.splits and self.taxonomy else None
    if found is None or not {'labels', 'pred_joint', 'prob_joint'} <= found.keys():
      return None
    sizes = [len(names) for names in self.taxonomy.names]
    fits = found['labels'].shape == found['pred_joint'].shape == (
      len(found['files']),
      len(sizes),
    ) and len(found['labels'])
    return (
      found
      if fits and all((found[key] < sizes).all() for key in ('labels', 'pred_joint'))
      else None
    )

  def per_class(self, level: str) -> np.ndarray | None:
    """int [C, 2]: of the images of each class of a level on the first split, those that the joint decision has right, and all."""
    if self.predicted is None:
      return None
    k, size = self.taxonomy.index(level), self.taxonomy.num_classes(level)
    y, right = (
      self.predicted['labels'][:, k],
      (self.predicted['pred_joint'] == self.predicted['labels'])[:, k],
    )
    return np.stack(
      [np.bincount(y[(y >= 0) & which], minlength=size) for which in (right, np.ones_like(right))],
      1,
    )

  @functools.cached_property
  def explained(self) -> dict[str, np.ndarray] | None:
    """explain_SPLIT.npz of explain.write on the first split, where it belongs to the predictions."""
    if self.predicted is None or not explain.current(self.path, self.splits[0]):
      return None
    return self._archive(f'explain_{self.splits[0]}.npz', ('',))

  @functools.cached_property
  def pictures(self) -> dict[int, bytes]:
    """Row of the predictions -> JPEG."""
    made = self.explained
    if made is None:
      return {}
    ends = made['ends'].tolist()
    return {
      row: made['jpeg'][start:end].tobytes()
      for row, start, end in zip(made['rows'].tolist(), [0, *ends], ends)
    }


def read(workdir: str | os.PathLike, baseline: bool = True) -> Run:
  """Reads a run's directory; UserError where it holds no configuration."""
  path, faults = pathlib.Path(workdir), []
  if not (path / 'config.json').is_file():
    raise UserError(f'{path}: no config.json here, so this is not the directory of a run')

  def load(name, reader):
    if not (path / name).exists():
      return None
    try:
      return reader(path / name)
    except Exception as error:
      faults.append(f'{name} could not be read: {error}')
      return None

  config = load('config.json', _json) or {}
  info = load('run.json', _json) or {}
  taxonomy = load('taxonomy.csv', lambda file: read_taxonomy(file, get(config, 'data.multi') or ''))
  evals = {}
  for file in sorted(path.glob('eval_*.json')):
    found = load(file.name, _evaluation)
    if found:
      evals[str(found.get('split') or file.stem.removeprefix('eval_'))] = found
  train, val = [], []
  if (path / 'metrics.jsonl').exists():
    train, val, damaged = _metrics(path / 'metrics.jsonl')
    if damaged:
      faults.append(f'metrics.jsonl: {damaged} damaged line{"s" * (damaged > 1)} left out')
  embeddings = {}
  for moment in ('first', 'last'):
    own = taxonomy and taxonomy.exclusive
    if own and (found := load(f'embedding_{moment}.npz', lambda file: _embedding(file, own))):
      embeddings[moment] = found
  migration, start = load('migration.json', _json) or {}, None
  if migration and (path / START / 'config.json').is_file():
    start = read(path / START, baseline=False)
    faults += [f'{START}: {fault}' for fault in start.faults]
  other = None
  if baseline:
    named = config.get('baseline')
    for place in (
      path / 'baseline',
      pathlib.Path(named)
      if isinstance(named, str) and named not in ('', 'none', 'train')
      else None,
    ):
      if place is not None and (place / 'config.json').is_file():
        other = read(place, baseline=False)
        faults += [f'baseline: {fault}' for fault in other.faults]
        break
  return Run(
    path, config, info, train, val, taxonomy, evals, embeddings, faults, other, migration, start
  )


def _json(file: pathlib.Path) -> dict:
  content = json.loads(file.read_text(encoding='utf-8'))
  if not isinstance(content, dict):
    raise ValueError('not a JSON object')
  return content


def _evaluation(file: pathlib.Path) -> dict:
  content = _json(file)
  if not isinstance(content.get('decode'), dict) or not (content['decode'] or content.get('multi')):
    raise ValueError('no "decode" in it')
  return content


def _embedding(file: pathlib.Path, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
  """features float [n, d], labels int [n, L], -1 unknown, and prototype_K float [C, d] of the head of column K, where it has prototypes."""
  with np.load(file, allow_pickle=False) as archive:
    found = {key: archive[key] for key in archive.files}
  features, labels, sizes = (
    found['features'],
    found['labels'],
    [len(names) for names in taxonomy.names],
  )
  shapes = {'features': (len(labels), features.shape[-1]), 'labels': (len(features), len(sizes))}
  shapes |= {
    f'prototype_{k}': (n, features.shape[-1])
    for k, n in enumerate(sizes)
    if f'prototype_{k}' in found
  }
  for key, shape in shapes.items():
    if found[key].shape != shape:
      raise ValueError(f'{key} is {found[key].shape}, not {shape}')
    if not np.isfinite(found[key]).all():
      raise ValueError(f'{key} is not finite')
  if (
    not len(labels)
    or labels.dtype.kind not in 'iu'
    or not ((labels >= -1) & (labels < sizes)).all()
  ):
    raise ValueError('labels are not of this taxonomy')
  return {key: found[key] for key in shapes}


def _metrics(file: pathlib.Path) -> tuple[list[dict], list[dict], int]:
  """Training lines, validation lines, and how many are damaged. A resumed run writes some steps again; the last line of a step counts."""
  lines: dict[str, dict] = {'train': {}, 'val': {}}
  damaged = 0
  for text in file.read_text(encoding='utf-8', errors='replace').splitlines():
    if not text.strip():
      continue
    try:
      line = json.loads(text)
      lines[line['kind']][int(line['step'])] = line
    except (ValueError, KeyError, TypeError):
      damaged += 1
  train, val = ([of[step] for step in sorted(of)] for of in lines.values())
  return train, val, damaged


def get(tree: dict, path: str, default=None):
  """The value at a dotted path of nested dicts, or the default."""
  for key in path.split('.'):
    if not isinstance(tree, dict) or key not in tree:
      return default
    tree = tree[key]
  return tree


def flat(tree: dict, prefix: str = '') -> dict[str, object]:
  """Nested dicts as one dict with dotted keys."""
  leaves = {}
  for key, value in tree.items():
    leaves |= (
      flat(value, f'{prefix}{key}.')
      if isinstance(value, dict) and value
      else {f'{prefix}{key}': value}
    )
  return leaves


def finite(value) -> bool:
  return isinstance(value, int | float | np.number) and math.isfinite(value)
