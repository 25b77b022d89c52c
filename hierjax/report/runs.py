"""Reading a run's folder: `read(workdir)` returns a `Run`."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from hierjax.core import archives, files, json_files
from hierjax.core.config import resolve_levels, tree_from_json
from hierjax.core.errors import UserError
from hierjax.evaluate import example_images
from hierjax.taxonomy import Mixed, Taxonomy, read_taxonomy

# Folder within a run that hierjax migrate has made: the run as it was before any training.
START = 'start'


@dataclasses.dataclass(frozen=True)
class Run:
  """The contents of a run's folder; all but the configuration may be missing (None or empty).

  Attributes:
    path: the folder.
    config: config.json.
    info: run.json.
    train: training lines of metrics.jsonl, one a step, in order.
    val: validation lines.
    taxonomy: taxonomy.csv.
    evals: {split: eval_SPLIT.json}.
    embeddings: {'first' or 'last' evaluation: arrays of embedding_first.npz, embedding_last.npz}.
    faults: sentences about files that exist but cannot be read.
    baseline: the run that this one is compared with.
    migration: migration.json of a run that hierjax migrate has made.
    start: that run before any training.
    seeds: the same run with further seeds, and their baselines.
  """

  path: pathlib.Path
  config: dict
  info: dict
  train: list[dict]
  val: list[dict]
  taxonomy: Taxonomy | Mixed | None
  evals: dict[str, dict]
  embeddings: dict[str, dict[str, np.ndarray]]
  faults: list[str]
  baseline: 'Run | None' = None
  migration: dict = dataclasses.field(default_factory=dict)
  start: 'Run | None' = None
  seeds: tuple['Run', ...] = ()

  @functools.cached_property
  def levels(self) -> tuple[str, ...]:
    """Names of the levels, from whatever file has them."""
    for evaluation in self.evals.values():
      decision = next(iter(evaluation['decode'].values()), {})
      if names := (*decision.get('levels', {}), *(evaluation.get('multi') or {})):
        return names
    if self.taxonomy is not None:
      return tuple(self.taxonomy.levels)
    if self.info.get('classes'):
      return tuple(self.info['classes'])
    keys = [key for line in self.train + self.val for key in line]
    logged = [key.split('/', 1)[1] for key in keys if re.match('(acc|top1|loss)/', key)]
    return tuple(dict.fromkeys(logged))

  @functools.cached_property
  def heads(self) -> tuple[str, ...]:
    """Names of the levels that have a head."""
    if self.info.get('heads'):
      return tuple(self.info['heads'])
    try:
      names = get(self.config, 'model.levels') or ('all',)
      return resolve_levels(names, self.levels, 'model.levels')
    except UserError:
      return self.levels

  @functools.cached_property
  def exclusive(self) -> 'Run | None':
    """The run restricted to its exclusive levels; None where it has none."""
    if self.taxonomy is None:
      return self
    block = self.taxonomy.block('exclusive')
    if block is None:
      return None
    taxonomy = block.taxonomy
    if taxonomy.levels == self.taxonomy.levels:
      return self
    info = self.info | {
      'heads': [level for level in self.heads if level in taxonomy.levels],
      'classes': {level: taxonomy.num_classes(level) for level in taxonomy.levels},
    }
    return dataclasses.replace(
      self,
      taxonomy=taxonomy,
      info=info,
      evals={split: evaluation | {'multi': {}} for split, evaluation in self.evals.items()},
      baseline=self.baseline and self.baseline.exclusive,
      seeds=tuple(run.exclusive for run in self.seeds),
    )

  @functools.cached_property
  def splits(self) -> list[str]:
    """Names of the evaluated splits, the validation split first."""
    val = get(self.config, 'data.val', 'val')
    return sorted(self.evals, key=lambda split: (split != val, split != 'val', split))

  @functools.cached_property
  def evaluation(self) -> dict | None:
    """The evaluation of the first split."""
    return self.evals[self.splits[0]] if self.splits else None

  def predictions(self, split: str) -> dict[str, np.ndarray] | None:
    """Read predictions_SPLIT.npz.

    Args:
      split: name of the split.

    Returns:
      files [N]; labels, pred_DECISION and prob_DECISION [N, L]; top_K and top_prob_K [N, 5] of the
      head of column K; of tag levels multi_labels, multi_prob and multi_pred [N, M]. None where
      the file cannot be read.
    """
    names = ('files', 'labels', 'pred_', 'prob_', 'top_', 'multi_')
    return self._archive('predictions', split, names)

  def _archive(self, kind: str, split: str, prefixes: tuple[str, ...]) -> dict | None:
    try:
      arrays = archives.read(files.of_split(self.path, kind, split, 'npz'))
    except FileNotFoundError:
      return None
    except (UserError, OSError) as error:
      fault = f'{kind}_{split}.npz could not be read: {error}'
      self.faults.extend({fault}.difference(self.faults))
      return None
    return {key: array for key, array in arrays.items() if key.startswith(prefixes)}

  @functools.cached_property
  def predicted(self) -> dict[str, np.ndarray] | None:
    """The predictions on the first split, where they are complete and of this taxonomy."""
    arrays = self.predictions(self.splits[0]) if self.splits and self.taxonomy else None
    if arrays is None or not {'labels', 'pred_joint', 'prob_joint'} <= arrays.keys():
      return None
    sizes = [len(names) for names in self.taxonomy.names]
    for key in ('labels', 'pred_joint'):
      if arrays[key].shape != (len(arrays['files']), len(sizes)) or (arrays[key] >= sizes).any():
        return None
    return arrays if len(arrays['labels']) else None

  def labelled(self, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and joint decisions at column k, int [n], of the `predicted` with a label."""
    labels, pred = self.predicted['labels'][:, k], self.predicted['pred_joint'][:, k]
    return labels[labels >= 0], pred[labels >= 0]

  @functools.cached_property
  def explained(self) -> dict[str, np.ndarray] | None:
    """Arrays of explain_SPLIT.npz of the first split, where it belongs to the predictions."""
    if self.predicted is None or not example_images.is_current(self.path, self.splits[0]):
      return None
    return self._archive('explain', self.splits[0], ('',))

  @functools.cached_property
  def pictures(self) -> dict[int, bytes]:
    """The JPEG files in explain_SPLIT.npz by their row of the predictions."""
    if self.explained is None:
      return {}
    jpeg, ends = self.explained['jpeg'], self.explained['ends'].tolist()
    rows = self.explained['rows'].tolist()
    return {row: jpeg[a:b].tobytes() for row, a, b in zip(rows, [0, *ends], ends)}


def read(workdir: str | os.PathLike, baseline: bool = True, seeds: bool | None = None) -> Run:
  """Read the folder of a run.

  Args:
    workdir: the folder.
    baseline: whether to read the run that it is compared with, too.
    seeds: whether to read its further seeds and their baselines, too; None for as `baseline`.

  Returns:
    The run; files that cannot be read are named in its `faults`.

  Raises:
    UserError: the folder holds no configuration.
  """
  path, faults = pathlib.Path(workdir), []
  if not (path / 'config.json').is_file():
    raise UserError(f'{path}: no config.json here, so this is not the directory of a run')

  def load(name: str, reader: Callable):
    if not (path / name).exists():
      return None
    try:
      return reader(path / name)
    except Exception as error:
      faults.append(f'{name} could not be read: {error}')
      return None

  limit = json_files.MAX_BYTES
  config = load('config.json', lambda file: tree_from_json(files.read_bytes(file, limit))) or {}
  info = load('run.json', json_files.read_object) or {}
  tags = get(config, 'data.multi') or ()
  taxonomy = load('taxonomy.csv', lambda file: read_taxonomy(file, tags))
  evals = {}
  for file in sorted(path.glob('eval_*.json')):
    if evaluation := load(file.name, _evaluation):
      evals[str(evaluation.get('split') or file.stem.removeprefix('eval_'))] = evaluation
  train, val, damaged = load('metrics.jsonl', _metrics) or ([], [], 0)
  if damaged:
    faults.append(f'metrics.jsonl: {damaged} damaged line{"s" * (damaged > 1)} left out')
  block = taxonomy.block('exclusive') if taxonomy else None
  embeddings = {}
  for moment in ('first', 'last') if block else ():
    arrays = load(f'embedding_{moment}.npz', lambda file: _embedding(file, block.taxonomy))
    if arrays:
      embeddings[moment] = arrays
  run = Run(path, config, info, train, val, taxonomy, evals, embeddings, faults)
  migration = load('migration.json', json_files.read_object) or {}
  start = _inner(path / START, START, faults) if migration else None
  other = _baseline(path, config, faults) if baseline else None
  is_read = baseline if seeds is None else seeds
  others = [_inner(f, f.name, faults, True) for f in seed_folders(path) if is_read]
  return dataclasses.replace(
    run, migration=migration, start=start, baseline=other, seeds=tuple(filter(None, others))
  )


def seed_folders(path: pathlib.Path) -> list[pathlib.Path]:
  """List the folders seed0, seed1, ... of runs below a path, in order."""
  folders = sorted(path.glob('seed[0-9]*'), key=lambda folder: (len(folder.name), folder.name))
  return [folder for folder in folders if (folder / 'config.json').is_file()]


def _inner(path: pathlib.Path, name: str, faults: list[str], baseline: bool = False) -> Run | None:
  """Read the run in a folder, and add its faults to those of the run that it belongs to."""
  if not (path / 'config.json').is_file():
    return None
  run = read(path, baseline, seeds=False)
  faults += [f'{name}: {fault}' for fault in run.faults]
  return run


def _baseline(path: pathlib.Path, config: dict, faults: list[str]) -> Run | None:
  """Read the run in the folder `baseline`, or the one that the option `baseline` names."""
  run, option = _inner(path / 'baseline', 'baseline', faults), config.get('baseline')
  if run or option in (None, 'train') or not isinstance(option, str):
    return run
  return _inner(pathlib.Path(option), 'baseline', faults)


def _evaluation(file: pathlib.Path) -> dict:
  content = json_files.read_object(file)
  if not isinstance(content.get('decode'), dict) or not (content['decode'] or content.get('multi')):
    raise ValueError('no "decode" in it')
  return content


def _embedding(file: pathlib.Path, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
  """Read features float [n, d], labels int [n, L], and prototype_K float [C, d] of heads."""
  arrays = archives.read(file)
  features, labels = arrays['features'], arrays['labels']
  sizes = [len(names) for names in taxonomy.names]
  width = features.shape[-1]
  shapes = {'features': (len(labels), width), 'labels': (len(features), len(sizes))}
  for k, size in enumerate(sizes):
    if f'prototype_{k}' in arrays:
      shapes[f'prototype_{k}'] = size, width
  for key, shape in shapes.items():
    if arrays[key].shape != shape:
      raise ValueError(f'{key} is {arrays[key].shape}, not {shape}')
    if not np.isfinite(arrays[key]).all():
      raise ValueError(f'{key} is not finite')
  is_integer = len(labels) and labels.dtype.kind in 'iu'
  if not is_integer or (labels < -1).any() or (labels >= sizes).any():
    raise ValueError('labels are not of this taxonomy')
  return {key: arrays[key] for key in shapes}


def _metrics(file: pathlib.Path) -> tuple[list[dict], list[dict], int]:
  """Read training lines, validation lines, and how many are damaged.

  A resumed run writes some steps again; the last line of a step counts.
  """
  lines: dict[str, dict] = {'train': {}, 'val': {}}
  damaged = 0
  for text in files.read_text(file, errors='replace').splitlines():
    if not text.strip():
      continue
    try:
      line = json_files.parse(text, has_nan=True)
      lines[line['kind']][int(line['step'])] = line
    except (ValueError, KeyError, TypeError):
      damaged += 1
  train, val = ([line for _, line in sorted(by_step.items())] for by_step in lines.values())
  return train, val, damaged


def differing(trees: Sequence[dict]) -> dict[str, list]:
  """Return {key: its value in each of the flat trees} of the keys whose values differ as text."""
  keys = dict.fromkeys(key for tree in trees for key in tree)
  rows = {key: [tree.get(key) for tree in trees] for key in keys}
  return {key: row for key, row in rows.items() if len(set(map(str, row))) > 1}


def of_splits(run: Run, key: str) -> dict[str, dict]:
  """Return what a run's evaluations have below a key, {split: content}, of those that have it."""
  contents = {split: run.evals[split].get(key) for split in run.splits}
  return {split: content for split, content in contents.items() if content}


def get(tree: dict, path: str, default: object = None) -> object:
  """Return the value at a dotted path of nested dicts.

  Args:
    tree: the dicts.
    path: keys with dots in between.
    default: what to return where a key is missing.
  """
  for key in path.split('.'):
    if not isinstance(tree, dict) or key not in tree:
      return default
    tree = tree[key]
  return tree


def flat(tree: dict, prefix: str = '') -> dict[str, object]:
  """Flatten nested dicts into one with dotted keys."""
  leaves = {}
  for key, value in tree.items():
    is_node = isinstance(value, dict) and value
    leaves |= flat(value, f'{prefix}{key}.') if is_node else {f'{prefix}{key}': value}
  return leaves
