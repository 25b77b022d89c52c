"""scikit-learn's interface to `hierjax.fit` and `hierjax.load`.

Labels become a CSV file in the run's folder, images in memory PNG files beside it.
"""

import copy
import json
import os
import pathlib
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import cv2
import numpy as np
from ml_collections import ConfigDict
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from hierjax import model
from hierjax.cli import arguments, config_files
from hierjax.core import config, files, json_files
from hierjax.core.errors import UserError
from hierjax.data import decoding, image_groups
from hierjax.data.image_groups import Image
from hierjax.experiments import fit

FACTS = 'classifier.json'  # what a fitted classifier knows beside its run
PARAMS = ('config', 'workdir', 'levels')  # the arguments that are no options


class Classifier(ClassifierMixin, BaseEstimator):
  """A classifier of images at all levels of a hierarchy, used as scikit-learn's are.

  Args:
    config: the name of a config or a file, or a tree that `hierjax.config.default()` began.
    workdir: the folder of the run, which another `fit` with the same arguments continues; None for
      a new temporary one, as cross-validation and searches need.
    levels: names of the levels, coarse to fine, of labels that bring none.
    **options: options of docs/options.md with `__` for the dot, as `optim__lr=1e-3`, or the short
      names of the command line, as `epochs=5`.

  Attributes:
    workdir_: the folder of the run.
    levels_: names of the exclusive levels, coarse to fine.
    classes_: {level: array [C]} in the order of `predict_proba`; the array alone where `y` was one
      level without a name.
  """

  def __init__(
    self,
    config: str | ConfigDict = '3head',
    workdir: str | os.PathLike | None = None,
    levels: Sequence[str] | None = None,
    **options: object,
  ):
    self.config, self.workdir, self.levels, self._options = config, workdir, levels, options

  def get_params(self, deep: bool = True) -> dict[str, object]:
    """Return the arguments; `deep` changes nothing."""
    return {name: getattr(self, name) for name in PARAMS} | self._options

  def set_params(self, **params: object) -> Self:
    """Change arguments, which `fit` checks."""
    for name, value in params.items():
      if name in PARAMS:
        setattr(self, name, value)
      else:
        self._options[name] = value
    return self

  def __sklearn_tags__(self) -> Tags:
    tags = super().__sklearn_tags__()
    tags.input_tags.two_d_array, tags.input_tags.string = False, True
    tags.target_tags.multi_output = tags.no_validation = True
    return tags

  def __getstate__(self) -> dict:
    """Leave out the model, which `predict` loads again."""
    return {name: value for name, value in super().__getstate__().items() if name != '_model'}

  def fit(self, X: Iterable[Image] | str | pathlib.Path, y: object = None) -> Self:
    """Train on images and their labels.

    Args:
      X: paths or images, see `Model.predict`; without `y` the path of anything that `--data` takes.
      y: a data frame, {level: N labels}, an array [N, L], coarse to fine, or N labels, of which
        tuples and texts with '/' are paths through the levels; None, NaN or '' is unknown.

    Raises:
      UserError: a mistake in the options, the images or the labels.
    """
    is_tree = isinstance(self.config, ConfigDict)
    c = copy.deepcopy(self.config) if is_tree else config_files.load(str(self.config))
    for name, value in self._options.items():
      config.assign(c, arguments.ALIASES.get(name, name.replace('__', '.')), value)
    folder = pathlib.Path(self.workdir or tempfile.mkdtemp(prefix='hierjax-')).absolute()
    labels = {} if y is None else _columns(y, self.levels)
    if y is not None:
      _write_data(folder / 'data', list(X), labels, c.data)
    elif isinstance(X, image_groups.PATHS):
      c.data.root = str(X)
    else:
      raise UserError('fit requires y to be passed, but the target y is None')
    fit.fit(c, folder)
    # no level is called ''
    facts = {'': len(labels) == 1 and not self.levels and not _has_names(y)}
    for level, column in labels.items():
      facts[level] = list({_text(x): x for x in column if _text(x)}.values())
    files.write(folder / FACTS, json.dumps(facts, default=lambda x: getattr(x, 'item', str)()))
    return self._open(folder)

  def predict(self, X: Iterable[Image]) -> np.ndarray:
    """Predict the classes on the path that the model decides for, of images as `fit` takes them.

    Returns:
      [N, L] labels as `y` had them, None where a branch ends early; [N] for a single `classes_`.
    """
    probs = self._probabilities(X)
    pred = self._model.decide(probs)['exclusive']['joint'].pred
    columns = [[None, *classes] for classes in self._classes]
    out = np.array([[column[c + 1] for column, c in zip(columns, row)] for row in pred], object)
    return out[:, 0].astype(self.classes_.dtype) if self._is_single else out

  def predict_proba(self, X: Iterable[Image]) -> dict[str, np.ndarray] | np.ndarray:
    """Compute the probabilities of the classes at each level that has a head.

    Returns:
      {level: float64 [N, C]}; [N, C] for a single `classes_`.
    """
    probs = self._probabilities(X)
    return next(iter(probs.values())) if self._is_single else probs

  def score(self, X: Iterable[Image], y: object) -> float:
    """Measure the share of images of which all known levels are predicted right.

    Images without any label are left out; the arguments are those of `fit`.
    """
    labels = _columns(y, self.levels_)
    missing = [level for level in self.levels_ if level not in labels]
    if missing:
      raise UserError(f'score: y has no level {", ".join(missing)}, only {", ".join(labels)}')
    true = np.array([[_text(x) for x in labels[level]] for level in self.levels_]).T
    pred = [[_text(x) for x in row] for row in self.predict(X).reshape(true.shape)]
    # an unknown label counts as right, an image without any not at all
    is_right = (true == pred) | (true == '')
    is_judged = (true != '').any(1)
    return float(is_right[is_judged].all(1).mean())

  def save(self, folder: str | os.PathLike) -> None:
    """Copy the run into a folder that does not exist, for `load` and the command line."""
    check_is_fitted(self)
    folder = pathlib.Path(shutil.copytree(self.workdir_, folder))
    # paths to the images that are copied, too
    for file in (folder / 'config.json', *folder.glob('data/labels.csv')):
      files.write(file, file.read_text().replace(f'{self.workdir_}/', f'{folder.absolute()}/'))

  @classmethod
  def load(cls, folder: str | os.PathLike) -> Self:
    """Load what was saved, or any other run, from its folder."""
    folder = pathlib.Path(folder).absolute()
    return cls(model.run_config(folder), folder)._open(folder)

  def _open(self, folder: pathlib.Path) -> Self:
    """Read a run; its classes become labels as `fit` had them."""
    self._model = model.load(folder)
    block = self._model.taxonomy.table('exclusive')
    if not block:
      raise UserError(f'{folder}: Classifier needs exclusive levels; use hierjax.load for tags')
    facts = json_files.read_object(folder / FACTS) if (folder / FACTS).exists() else {}
    self._is_single, self._classes = facts.get('', False), []
    for level, names in zip(block.levels, block.names):
      labels = {_text(x): x for x in facts.get(level, ())}
      # a name under several parents is written with these
      originals = [labels.get(x, labels.get(x.rpartition('/')[2], x)) for x in names]
      self._classes.append(np.array(originals))
    self.workdir_, self.levels_ = str(folder), tuple(block.levels)
    self.classes_ = self._classes[0] if self._is_single else dict(zip(self.levels_, self._classes))
    return self

  def _probabilities(self, images):
    check_is_fitted(self)
    if not hasattr(self, '_model'):
      self._model = model.load(self.workdir_)
    probs = self._model.probabilities(images)
    broken = np.flatnonzero(np.isnan(next(iter(probs.values()))).any(1))
    if len(broken):
      raise UserError(f'image {", ".join(map(str, broken[:5]))}: cannot be read')
    return probs


def _has_names(y) -> bool:
  """Whether labels bring the names of their levels."""
  return hasattr(y, 'columns') or isinstance(y, Mapping)


def _columns(y, levels) -> dict[str, list]:
  """Turn labels as `Classifier.fit` takes them into {level: one an image}."""
  if _has_names(y):
    return {str(name): list(y[name]) for name in getattr(y, 'columns', y)}
  rows = []
  for row in np.asarray(y) if hasattr(y, '__array__') else y:
    if isinstance(row, str):
      row = row.split('/')
    rows.append(list(row) if isinstance(row, Iterable) else [row])
  width = max(map(len, rows), default=0)
  if levels is None:
    levels = ['class'] if width == 1 else [f'level{k + 1}' for k in range(width)]
  if width > len(levels):
    raise UserError(f'y has {width} levels, but names for {len(levels)}: {", ".join(levels)}')
  rows = [row + [None] * (len(levels) - len(row)) for row in rows]
  return {level: [row[k] for row in rows] for k, level in enumerate(levels)}


def _text(label) -> str:
  """Write a label as a CSV file has it, '' where it is unknown."""
  is_unknown = label is None or type(label).__name__ == 'NAType' or label != label
  return '' if is_unknown else unicodedata.normalize('NFC', str(label)).strip()


def _write_data(folder, images, labels, options) -> None:
  """Write labels.csv, and the images that are no files, and set the options that read them."""
  lengths = {level: len(column) for level, column in labels.items()}
  if not images or {*lengths.values()} != {len(images)}:
    raise UserError(f'fit: {len(images)} images, but numbers of labels {lengths}')
  paths = []
  for i, image in enumerate(images):
    path = folder / 'images' / f'{i}.png'
    if isinstance(image, image_groups.PATHS):
      path = pathlib.Path(image).absolute()
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      is_encoded = isinstance(image, image_groups.ENCODED)
      pixels = decoding.decode(bytes(image)) if is_encoded else decoding.to_rgb(image)
      cv2.imwrite(str(path), pixels[..., ::-1])
    if not path.is_file():
      raise UserError(f'fit: image {i}: no file {image}')
    paths.append(str(path))
  folder.mkdir(parents=True, exist_ok=True)
  columns = [[_text(x) for x in column] for column in labels.values()]
  rows = [['file', *labels], *zip(paths, *columns)]
  files.write(folder / 'labels.csv', files.csv_text(rows))
  options.root, options.file_column, options.levels = str(folder), 'file', tuple(labels)
  options.image_root = os.path.commonpath([os.path.dirname(path) for path in paths])
  options.source, options.fold_case = 'auto', False
