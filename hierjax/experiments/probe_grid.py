"""The grid of linear heads of probe mode, its cross-validation, and the fit of the choice."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import stratify
from hierjax.decide import paths
from hierjax.experiments import probe_fit
from hierjax.experiments.probe_fit import Basis, Form
from hierjax.taxonomy import Taxonomy

FORMS = ('flat', 'lca', 'parallel', 'path_sum', 'marginal')
# Accelerated steps at the largest decay, at each smaller one, and of a fit at one decay alone.
PATH_STEPS, ONE_DECAY_STEPS = (8, 3), (24, 3)
# Soft targets by LCA are a table of leaves x leaves.
MAX_LCA_LEAVES = 2000
TEMPERATURES = tuple(np.geomspace(0.25, 4, 33).tolist())
MAX_SCORES = 20_000_000  # held-out examples times classes, of the fit of the choice


class Recipe(NamedTuple):
  """Heads and loss, as options of a run; the weight of the finest level may take several values.

  Attributes:
    name: for people.
    overrides: {option: value}.
    shares: weights of the finest level, the others dividing the rest evenly; (None,) where each
      level has a head of its own, so that weights change nothing but the decay.
  """

  name: str
  overrides: Mapping[str, object]
  shares: tuple[float | None, ...]

  def config(self, base: ConfigDict, share: float | None = None) -> ConfigDict:
    """Return the config of a run with these heads.

    Args:
      base: all other options.
      share: weight of the finest level.
    """
    c = copy.deepcopy(base)
    for path, value in self.overrides.items():
      config.assign(c, path, value)
    if share is not None and c.model.heads != 'flat':
      coarser = len(config.head_levels(c.model, c.model.levels)) - 1
      c.loss.weights = (('coarser', (1 - share) / max(coarser, 1)), ('finest', share))
    return c


def recipes(c: ConfigDict, taxonomy: Taxonomy) -> list[Recipe]:
  """List the heads and losses of the grid, the flat head first.

  Args:
    c: the config, of which `probe` is read.
    taxonomy: of the exclusive levels.

  Raises:
    UserError: probe.forms names another form.
  """
  p, flat = c.probe, {'model.heads': 'flat'}
  for form in p.forms:
    if form not in FORMS:
      raise UserError(f'--config.probe.forms={form}: no such form; choices: {", ".join(FORMS)}')
  table = {
    'flat': [Recipe('flat', flat, (1.0,))],
    'lca': [Recipe(f'flat, lca {beta:g}', {**flat, 'loss.lca': beta}, (1.0,)) for beta in p.lca],
    'parallel': [Recipe('parallel', {'model.heads': 'parallel'}, (None,))],
    'path_sum': [Recipe('path_sum', {'model.heads': 'path_sum'}, (*p.shares, 1.0))],
    'marginal': [Recipe('marginal', {'model.heads': 'marginal'}, tuple(p.shares))],
  }
  names = [form for form in FORMS if form in ('flat', *p.forms)]
  if len(taxonomy.paths) > MAX_LCA_LEAVES:
    names = [name for name in names if name != 'lca']
  if len(taxonomy.levels) == 1:
    names = ['flat']
  return [recipe for name in names for recipe in table[name]]


@dataclasses.dataclass
class Setting:
  """A point of the grid.

  Attributes:
    recipe: heads and loss.
    share: weight of the finest level, see `Recipe`.
    decay: weight decay of standardised features.
    accuracy: float64 [folds, L + 1], on the held-out examples of each fold, at each level and of
      the full path; NaN for a fold that was not tried.
  """

  recipe: Recipe
  share: float | None
  decay: float
  accuracy: np.ndarray

  @property
  def is_complete(self) -> bool:
    """Whether all folds were tried."""
    return not np.isnan(self.accuracy[:, -1]).any()

  @property
  def full_path(self) -> float:
    """The mean accuracy of the full path over the folds that were tried."""
    return float(np.nanmean(self.accuracy[:, -1]))

  def describe(self) -> str:
    """Return it as a line for people."""
    share = '' if self.share is None or len(self.recipe.shares) == 1 else f', finest {self.share:g}'
    return f'{self.recipe.name}{share}, decay {self.decay:.3g}'


class Data(NamedTuple):
  """The training examples, in the basis where their features are uncorrelated.

  Attributes:
    x: float32 [n, views, d].
    labels: int32 [n, L], -1 unknown.
    fold: int [n].
    basis: of the features.
  """

  x: np.ndarray
  labels: np.ndarray
  fold: np.ndarray
  basis: Basis

  @classmethod
  def make(
    cls, features: np.ndarray, labels: np.ndarray, names: Sequence[str], c: ConfigDict
  ) -> 'Data':
    """Divide examples into folds, stratified by the finest class, whatever order they come in.

    Args:
      features: float32 [n, views, d].
      labels: int [n, L].
      names: [n] of the examples.
      c: the config, of which `seed` and `probe.folds` are read.

    Raises:
      UserError: a fold has no example with all labels.
    """
    n, views, d = features.shape
    basis = Basis.of_features(features.reshape(-1, d))
    x = basis.transform(features.reshape(-1, d)).reshape(n, views, d)
    fold = stratify.iterative(labels[:, -1], [1.0] * c.probe.folds, c.seed, names)
    is_labelled = np.bincount(fold[(labels >= 0).all(1)], minlength=c.probe.folds) > 0
    if not is_labelled.all():
      raise UserError(
        f'--config.probe.folds={c.probe.folds}: a fold has no training image with all labels; '
        'there are too few of them'
      )
    return cls(x, labels, fold, basis)

  def rows(self, mask: np.ndarray, views: bool, count: int) -> probe_fit.Rows:
    """Return the examples of a mask [n], all views of each or the first one, in `count` rows."""
    x = self.x[mask] if views else self.x[mask, :1]
    labels = np.repeat(self.labels[mask], x.shape[1], 0)
    return probe_fit.blocked(x.reshape(len(labels), -1), labels, count)


def search(
  c: ConfigDict, base: ConfigDict, taxonomy: Taxonomy, data: Data, progress: Callable[[str], None]
) -> list[Setting]:
  """Judge the grid by cross-validation.

  The first fold tries every setting; the other folds try the best `probe.keep` of the recipes and
  the flat head.

  Args:
    c: the config, of which `probe` is read.
    base: the options of a run but for heads and loss.
    taxonomy: of the exclusive levels.
    data: the training examples.
    progress: called with a line now and then.

  Returns:
    All settings, the best first.
  """
  decays = sorted(c.probe.decays, reverse=True)
  grid = recipes(c, taxonomy)
  forms = {r.name: probe_fit.build_form(r.config(base), taxonomy, data.labels) for r in grid}
  settings = {
    r.name: [
      [Setting(r, share, decay, np.full((c.probe.folds, len(taxonomy.levels) + 1), np.nan))
       for share in r.shares]
      for decay in decays
    ]
    for r in grid
  }  # fmt: skip
  for fold in range(c.probe.folds):
    for recipe in grid:
      _try_fold(fold, forms[recipe.name], settings[recipe.name], decays, data)
    best = {r.name: max(s.full_path for s in _flatten(settings[r.name])) for r in grid}
    text = ', '.join(f'{name} {value:.4f}' for name, value in best.items())
    progress(f'fold {fold + 1} of {c.probe.folds}, full path, best decay and weight: {text}')
    if fold == 0:
      count = math.ceil(c.probe.keep * len(grid))
      leaders = sorted(grid, key=lambda r: -best[r.name])[:count]
      grid = [r for r in grid if r in leaders or r.name == 'flat']
  every = [s for of_recipe in settings.values() for s in _flatten(of_recipe)]
  return sorted(every, key=_rank)


def _flatten(rows: Sequence[Sequence[Setting]]) -> Iterator[Setting]:
  for row in rows:
    yield from row


def _rank(setting: Setting) -> tuple:
  """Complete ones first, then by the full path, the mean over the levels, the larger decay."""
  accuracy = np.nanmean(setting.accuracy, 0)
  levels = float(np.nanmean(accuracy[:-1]))
  return not setting.is_complete, -round(setting.full_path, 9), -round(levels, 9), -setting.decay


def level_weights(form: Form, shares: Sequence[float | None]) -> np.ndarray:
  """Return the weights of the levels in the loss, float32 [S, H].

  Args:
    form: with H levels.
    shares: of the finest one, see `Recipe`.
  """
  coarser = len(form.levels) - 1
  rows = [
    [1.0] * (coarser + 1) if s is None else [(1 - s) / max(coarser, 1)] * coarser + [s]
    for s in shares
  ]
  return np.array(rows, np.float32)


def _try_fold(fold, form, rows, decays, data) -> None:
  """Fit a recipe without a fold, and enter how well its settings do on it."""
  is_held_out = data.fold == fold
  sizes = np.bincount(data.fold)
  n, views = data.x.shape[:2]
  train = data.rows(~is_held_out, True, (n - sizes.min()) * views)
  held_out = data.rows(is_held_out, False, sizes.max())
  weights = level_weights(form, rows[0][0].recipe.shares)
  result = probe_fit.fit(form, weights, decays, data.basis.variances, train, held_out, PATH_STEPS)
  is_labelled = data.labels[is_held_out] >= 0
  counts = np.append(is_labelled.sum(0), is_labelled.all(1).sum())
  with np.errstate(invalid='ignore'):
    accuracy = result.right / counts
  for row, values in zip(rows, accuracy):
    for setting, value in zip(row, values):
      setting.accuracy[fold] = value


class Choice(NamedTuple):
  """A setting fitted on all training examples.

  Attributes:
    heads: {level: {'kernel' [d, C], 'bias' [C]}} that read features.
    temperatures: {level: what its logits were divided by}.
    weights: {level: weight of its head in the joint decision}.
  """

  heads: dict
  temperatures: dict[str, float]
  weights: dict[str, float]


def fit_choice(setting: Setting, base: ConfigDict, taxonomy: Taxonomy, data: Data) -> Choice:
  """Fit a setting on all training examples, its temperatures and joint weights by cross-fitting.

  These are chosen on the predictions for each fold by the fit to the other folds.

  Args:
    setting: to fit.
    base: the options of a run but for heads and loss.
    taxonomy: of the exclusive levels.
    data: the training examples.
  """
  form = probe_fit.build_form(setting.recipe.config(base), taxonomy, data.labels)
  n, views, d = data.x.shape
  weights, x = level_weights(form, [setting.share]), data.x.reshape(-1, d)
  nodes = sum(taxonomy.num_classes(level) for level in form.levels)
  picked = np.arange(0, n, -(-n * nodes // MAX_SCORES))
  held_out = {level: np.zeros((len(picked), taxonomy.num_classes(level))) for level in form.levels}

  def fit(labels):
    rows = probe_fit.blocked(x, np.repeat(labels, views, 0))
    judged = probe_fit.blocked(x[:1], np.full((1, labels.shape[1]), -1))
    result = probe_fit.fit(
      form, weights, [setting.decay], data.basis.variances, rows, judged, ONE_DECAY_STEPS
    )
    return {
      l: {'kernel': p['kernel'][:, 0], 'bias': p['bias'][0]} for l, p in result.params.items()
    }

  for fold in np.unique(data.fold):
    params = fit(np.where((data.fold == fold)[:, None], -1, data.labels))
    mask = data.fold[picked] == fold
    for level, values in form.logits(params, data.x[picked[mask], 0]).items():
      held_out[level][mask] = values
  params = fit(data.labels)
  temperatures, joint = _calibrate(form, [*params], held_out, data.labels[picked])
  return Choice(data.basis.heads(params, temperatures), temperatures, joint)


def _calibrate(form, levels, logits, labels):
  """Temperatures of the levels with parameters, and weights of the joint decision."""
  table, finest = form.taxonomy, form.taxonomy.levels[-1]
  temperatures = {}
  # of heads that are joined the finest level's holds for all
  for level in [finest] if form.is_joined else levels:
    temperatures[level] = best_temperature(logits[level], labels[:, table.index(level)])
  temperatures = {level: temperatures.get(level, temperatures[finest]) for level in levels}
  separate = [finest] if form.is_joined else levels
  probs = [
    np.asarray(jax.nn.softmax(logits[level] / temperatures[level]), np.float64)
    if level in separate
    else None
    for level in table.levels
  ]
  return temperatures, dict(zip(table.levels, paths.tune(probs, labels, table).tolist()))


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  """Return the divisor of the logits with the smallest mean cross-entropy.

  Args:
    logits: [n, C].
    labels: int [n], -1 unknown.
  """
  rows = np.flatnonzero(labels >= 0)
  z, y = np.asarray(logits, np.float32)[rows], labels[rows]

  def loss(temperature):
    return -float(np.asarray(jax.nn.log_softmax(z / temperature))[np.arange(len(y)), y].mean())

  return min(TEMPERATURES, key=loss) if len(rows) else 1.0
