"""The grid of linear heads of probe mode, its cross-validation, and the fit of the choice."""

import concurrent.futures
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.special import ndtri

from hierjax import decide
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import stratify
from hierjax.decide.calibration import even_subset
from hierjax.experiments.probe_fit import BLOCK_ROWS, Basis, Form, Program, Rows
from hierjax.taxonomy import Taxonomy
from hierjax.train import setup

FORMS = ('flat', 'lca', 'parallel', 'path_sum', 'marginal')
PATH_STEPS = (5, 3)  # before the largest decay, and at each decay
MAX_SCORES = 20_000_000  # held-out examples times classes that rules are chosen on


class Recipe(NamedTuple):
  """Heads and loss as options of a run, and the weight of the finest level in the loss.

  The other levels divide the rest of 1. None is a weight of 1 for each: where each level has a head
  of its own on the same frozen features, weights change nothing but the decay. Recipes of one
  `form` differ in that weight only.
  """

  name: str
  form: str
  options: Mapping[str, object]
  share: float | None

  def config(self, base: ConfigDict) -> ConfigDict:
    """Return the config of a run with these heads and otherwise the options of `base`."""
    c = copy.deepcopy(base)
    for path, value in self.options.items():
      config.assign(c, path, value)
    if self.share is not None and c.model.heads != 'flat':
      coarser = len(config.head_levels(c.model, c.model.levels)) - 1
      c.loss.weights = (('coarser', (1 - self.share) / coarser), ('finest', self.share))
    return c

  def level_weights(self, base: ConfigDict, form: Form) -> list[float]:
    """Return the weights of the form's levels in the loss of `config(base)`, coarse to fine."""
    return [*setup.parse_weights(self.config(base).loss.weights, form.levels).values()]


def recipes(c: ConfigDict, taxonomy: Taxonomy) -> dict[str, list[Recipe]]:
  """List the heads and losses of the grid by their form, the flat head first.

  Args:
    c: the config, of which `probe` is read.
    taxonomy: of the exclusive levels.

  Raises:
    UserError: probe.forms names another form, or there are no decays.
  """
  for name in c.probe.forms:
    if name not in FORMS:
      raise UserError(f'--config.probe.forms={name}: no such form; choices: {", ".join(FORMS)}')
  if not c.probe.decays:
    raise UserError('--config.probe.decays= is empty: give at least one')
  has_hierarchy = len(taxonomy.levels) > 1
  forms = ('flat', *c.probe.forms) if has_hierarchy else ('flat',)
  shares = {
    'flat': (1.0,),
    'parallel': (None,),
    'path_sum': (*c.probe.shares, 1.0),
    'marginal': c.probe.shares,
  }
  out = {}
  for form, margin in itertools.product(shares, (None, *c.probe.margins)):
    if form not in forms or (margin and not has_hierarchy):
      continue
    name, options = form, {'model.heads': form}
    if margin:
      name, options = f'{form}, margin {margin:g}', {**options, 'loss.margin': margin}
    out[name] = [Recipe(_name(name, form, share), name, options, share) for share in shares[form]]
  if 'lca' in forms:
    for beta in c.probe.lca:
      name = f'flat, lca {beta:g}'
      out[name] = [Recipe(name, name, {'model.heads': 'flat', 'loss.lca': beta}, 1.0)]
  return {name: members for name, members in out.items() if members}


def _name(name: str, form: str, share: float | None) -> str:
  """Add the weight of the finest level where it is one of several."""
  return f'{name}, finest {share:g}' if form in ('path_sum', 'marginal') else name


@dataclasses.dataclass
class Setting:
  """A recipe and a decay, and how well they do on the examples held out.

  Attributes:
    recipe: heads and loss.
    decay: the weight decay.
    accuracy: float64 [folds, L + 1], at each level and, last, of the full path; NaN for a fold that
      was not tried.
    is_right: bool [n], whether the full path of an example is right by the fit without its fold.
  """

  recipe: Recipe
  decay: float
  accuracy: np.ndarray
  is_right: np.ndarray

  @property
  def name(self) -> str:
    """Its name for people."""
    return f'{self.recipe.name}, decay {self.decay:.3g}'

  @property
  def is_complete(self) -> bool:
    """Whether all folds were tried."""
    return not np.isnan(self.accuracy[:, -1]).any()

  @property
  def full_path(self) -> float:
    """The mean accuracy of the full path over the folds that were tried."""
    return float(np.nanmean(self.accuracy[:, -1]))

  def rank(self) -> tuple:
    """Complete ones first, then by the full path, the mean over the levels, the larger decay."""
    levels = float(np.nanmean(self.accuracy[:, :-1]))
    return not self.is_complete, -round(self.full_path, 9), -round(levels, 9), -self.decay


class Data(NamedTuple):
  """The training examples, divided into folds.

  Attributes:
    rows: their features in `basis` and labels; each fold has the same number of blocks, an
      example's views are one row after the other.
    labels: int [n, L].
    fold: int [n].
    place: int [n], the row of an example's first view, counted over all blocks.
    views: views of an example.
    basis: of the features.
  """

  rows: Rows
  labels: np.ndarray
  fold: np.ndarray
  place: np.ndarray
  views: int
  basis: Basis

  @classmethod
  def make(
    cls, features: np.ndarray, labels: np.ndarray, names: Sequence[str], c: ConfigDict
  ) -> 'Data':
    """Divide examples into folds, stratified by the finest class, whatever order they come in.

    Args:
      features: float32 [n, views, d].
      labels: int [n, L], -1 unknown.
      names: [n] of the examples.
      c: the config, of which `seed` and `probe.folds` are read.

    Raises:
      UserError: a fold has no example with all labels.
    """
    folds, (n, views, d) = c.probe.folds, features.shape
    fold = stratify.iterative(labels[:, -1], [1.0] * folds, c.seed, names)
    if not np.bincount(fold[(labels >= 0).all(1)], minlength=folds).all():
      raise UserError(
        f'--config.probe.folds={folds}: a fold has no training image with all labels; there are '
        'too few of them'
      )
    basis = Basis.of_features(features.reshape(-1, d))
    largest = views * np.bincount(fold).max()
    blocks = -(-largest // BLOCK_ROWS)
    size = -(-largest // blocks)
    place, parts = np.empty(n, int), []
    for f in range(folds):
      members = np.flatnonzero(fold == f)
      place[members] = f * blocks * size + views * np.arange(len(members))
      x = basis.transform(features[members].reshape(-1, d))
      parts.append(Rows.make(x, np.repeat(labels[members], views, 0), blocks, size))
    x, row_labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return cls(Rows(jax.device_put(x), row_labels), labels, fold, place, views, basis)

  @property
  def blocks_a_fold(self) -> int:
    """The number of blocks of each fold."""
    return len(self.rows.x) // (1 + self.fold.max())

  def blocks(self, folds: Iterable[int]) -> list[int]:
    """Return the numbers of the blocks of folds."""
    count = self.blocks_a_fold
    return [f * count + i for f in folds for i in range(count)]

  def first_views(self, index: np.ndarray) -> jax.Array:
    """Return the features of the first views of examples `index` [m] in the basis, [m, d]."""
    return self.rows.x.reshape(-1, self.rows.x.shape[-1])[self.place[index]]


class Choice(NamedTuple):
  """A setting fitted on all training examples: its heads, which read features, and its rules.

  `predict` computes {level: probabilities [n, C]} of training examples int [n], each by the fit to
  the other folds.
  """

  heads: dict[str, dict[str, np.ndarray]]
  rules: decide.Rules
  predict: Callable[[np.ndarray], dict[str, np.ndarray]]


class Grid:
  """The grid of heads, losses and decays on the training examples.

  Args:
    c: the config, of which `probe` is read.
    base: the options of a run but for heads and loss.
    taxonomy: of the exclusive levels.
    data: the training examples.
  """

  def __init__(self, c: ConfigDict, base: ConfigDict, taxonomy: Taxonomy, data: Data):
    self._c, self._base, self._taxonomy, self._data = c, base, taxonomy, data
    self._folds, self._decays = range(c.probe.folds), sorted(c.probe.decays, reverse=True)
    self._programs = {}
    # one program is compiled while the one before it runs
    self._compiler = concurrent.futures.ThreadPoolExecutor(1)

  def search(self, progress: Callable[[str], None]) -> list[Setting]:
    """Judge the grid by cross-validation.

    The first fold tries every setting; the others try `probe.keep` of the recipes, those with the
    best setting, and the flat head.

    Args:
      progress: called with a line after each fold.

    Returns:
      All settings, the best first.
    """
    grid = recipes(self._c, self._taxonomy)
    every = list(itertools.chain(*grid.values()))
    settings = {recipe.name: self._settings(recipe) for recipe in every}
    for fold in self._folds:
      programs = [self._program(members) for members in grid.values()]
      for members, program in zip(grid.values(), programs):
        self._try_fold(fold, program.result(), [settings[r.name] for r in members])
      best = {name: max(s.full_path for s in of_recipe) for name, of_recipe in settings.items()}
      leaders = sorted(best, key=lambda name: -best[name])
      text = '; '.join(f'{name}: {best[name]:.4f}' for name in leaders[:3])
      progress(f'fold {fold + 1} of {len(self._folds)}, full path at the best decay: {text}')
      if fold == 0:
        stay = {'flat', *leaders[: math.ceil(self._c.probe.keep * len(leaders))]}
        grid = {form: [r for r in members if r.name in stay] for form, members in grid.items()}
        grid = {form: members for form, members in grid.items() if members}
      self._program([settings[leaders[0]][0].recipe])  # the choice needs it alone, most likely
    return sorted(itertools.chain(*settings.values()), key=Setting.rank)

  def gains_at_full_size(self, setting: Setting, flat: Setting) -> np.ndarray:
    """Estimate how much oftener than a flat one a setting would be right, fitted to all folds.

    A hierarchy often helps less where there are more examples. So the gain is extrapolated: from
    fits to one fold to those to all but one it changed in some proportion to the logarithm of their
    number, and in the same it goes on to all.

    Args:
      setting: with any heads, tried on all folds.
      flat: the setting to compare with.

    Returns:
      float64 [examples with all labels], the part of each in the gain of the full path.
    """
    folds = len(self._folds)
    gains = setting.is_right.astype(float) - flat.is_right
    if folds > 2:
      of_setting, of_flat = (self._right_after_one_fold(s.recipe) for s in (setting, flat))
      before = of_setting.astype(float) - of_flat
      gains += (gains - before) * math.log(folds / (folds - 1)) / math.log(folds - 1)
    return gains[(self._data.labels >= 0).all(1)]

  def fit(self, setting: Setting) -> Choice:
    """Fit a setting on all training examples, and the rules of its decisions by cross-fitting.

    The fit takes the steps of the search, through all larger decays: they end before the optimum,
    which is a part of what cross-validation judged. Joint weights and temperature are chosen on
    what the fit to the other folds predicts for each.
    """
    taxonomy, data = self._taxonomy, self._data
    program = self._program([setting.recipe]).result()
    form = program.form

    def fit(folds):
      result = program.fit(data.blocks(folds), data.blocks([0]), setting.decay)
      return {
        level: {'kernel': p['kernel'][:, 0], 'bias': p['bias'][0]}
        for level, p in result.params.items()
      }

    fits = {fold: fit(self._others(fold)) for fold in self._folds}
    sizes = {level: taxonomy.num_classes(level) for level in form.levels}

    def predict(index):
      probs = {level: np.zeros((len(index), size)) for level, size in sizes.items()}
      for fold, params in fits.items():
        mask = data.fold[index] == fold
        for level, logits in form.logits(params, data.first_views(index[mask])).items():
          probs[level][mask] = jax.nn.softmax(logits)
      return probs

    heads = data.basis.heads(fit(self._folds))
    picked = even_subset(np.arange(len(data.fold)), sum(sizes.values()), MAX_SCORES)
    rules = decide.tune(predict(picked), data.labels[picked], taxonomy)
    return Choice(heads, rules, predict)

  def _settings(self, recipe) -> list[Setting]:
    """The settings of a recipe, none of them tried."""
    shape = len(self._folds), len(self._taxonomy.levels) + 1
    n = len(self._data.fold)
    return [
      Setting(recipe, decay, np.full(shape, np.nan), np.zeros(n, bool)) for decay in self._decays
    ]

  def _others(self, fold) -> list[int]:
    """All folds but one."""
    return [f for f in self._folds if f != fold]

  def _form(self, recipe) -> Form:
    """The heads and losses of a recipe."""
    return Form.of_config(recipe.config(self._base), self._taxonomy, self._data.labels)

  def _program(self, members) -> concurrent.futures.Future:
    """The program for recipes of one form, compiled once, in the background."""
    key = tuple(recipe.name for recipe in members)
    if key not in self._programs:
      form = self._form(members[0])
      weights = [recipe.level_weights(self._base, form) for recipe in members]
      variances, rows = self._data.basis.variances, self._data.rows
      arguments = form, weights, self._decays, variances, rows, self._data.blocks_a_fold, PATH_STEPS
      self._programs[key] = self._compiler.submit(Program, *arguments)
    return self._programs[key]

  def _judge_fold(self, program, folds, fold) -> np.ndarray:
    """Fit some folds and judge another: bool [decay, recipe, examples of the fold, L]."""
    data = self._data
    right = program.fit(data.blocks(folds), data.blocks([fold])).right
    return right[:, :, :: data.views][:, :, : (data.fold == fold).sum()]

  def _try_fold(self, fold, program, rows) -> None:
    """Fit recipes without a fold, and enter how well their settings, rows [S][K], do on it."""
    is_held_out = self._data.fold == fold
    is_labelled = self._data.labels[is_held_out] >= 0
    count = np.append(is_labelled.sum(0), is_labelled.all(1).sum())
    for k, of_decay in enumerate(self._judge_fold(program, self._others(fold), fold)):
      for row, right in zip(rows, of_decay):
        row[k].accuracy[fold] = np.append(right.sum(0), right.all(1).sum()) / np.maximum(count, 1)
        row[k].is_right[is_held_out] = right.all(1)

  def _right_after_one_fold(self, recipe) -> np.ndarray:
    """Say which full paths are right, bool [n], each by a fit to the fold after its own alone.

    With the decay that is best then, among all examples.
    """
    program, data = self._program([recipe]).result(), self._data
    is_right = np.zeros((len(self._decays), len(data.fold)), bool)
    for fold in self._folds:
      judged = self._judge_fold(program, [(fold + 1) % len(self._folds)], fold)
      is_right[:, data.fold == fold] = judged[:, 0].all(-1)
    return is_right[is_right.sum(1).argmax()]


def choose(settings: Sequence[Setting], gains: Callable[[Setting, Setting], np.ndarray]) -> Setting:
  """Choose the best setting, or the best flat one where the gain over it may be chance.

  The best of a hundred settings looks better than it is. So its gain over the flat head must be
  above 0 by more than chance: a one-sided z test over the examples at 5%.

  Args:
    settings: all, the best first.
    gains: `Grid.gains_at_full_size`.
  """
  best = settings[0]
  flat = next(setting for setting in settings if setting.recipe.name == 'flat')
  if best is flat:
    return flat
  gain = gains(best, flat)
  error = gain.std() / math.sqrt(len(gain))
  return best if gain.mean() > ndtri(0.95) * error else flat
