"""The grid of linear heads of probe mode, its cross-validation, and the fit of the choice."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.special import stdtrit

from hierjax import decide
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import stratify
from hierjax.decide.calibration import even_subset
from hierjax.experiments import probe_fit
from hierjax.experiments.probe_fit import Basis, Form
from hierjax.taxonomy import Taxonomy
from hierjax.train import setup

FORMS = ('flat', 'lca', 'parallel', 'path_sum', 'marginal')
PATH_STEPS = (5, 3)  # before the largest decay, and at each decay
MAX_SCORES = 20_000_000  # held-out examples times classes that rules are chosen on


class Recipe(NamedTuple):
  """Heads and loss as options of a run, and the weight of the finest level in the loss.

  The other levels divide the rest of 1. None is a weight of 1 for each: where each level has a head
  of its own on the same frozen features, weights change nothing but the decay.
  """

  name: str
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
    out[name] = [Recipe(_name(name, form, share), options, share) for share in shares[form]]
  if 'lca' in forms:
    for beta in c.probe.lca:
      name = f'flat, lca {beta:g}'
      out[name] = [Recipe(name, {'model.heads': 'flat', 'loss.lca': beta}, 1.0)]
  return {name: members for name, members in out.items() if members}


def _name(name: str, form: str, share: float | None) -> str:
  """Add the weight of the finest level where it is one of several."""
  return f'{name}, finest {share:g}' if form in ('path_sum', 'marginal') else name


@dataclasses.dataclass
class Setting:
  """A recipe and a decay; `accuracy` float64 [folds, L + 1] is that on the examples held out.

  At each level and, last, of the full path; NaN for a fold that was not tried.
  """

  recipe: Recipe
  decay: float
  accuracy: np.ndarray

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
  """The training examples: x float32 [n, views, d] in `basis`, labels int [n, L], fold int [n]."""

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
      labels: int [n, L], -1 unknown.
      names: [n] of the examples.
      c: the config, of which `seed` and `probe.folds` are read.

    Raises:
      UserError: a fold has no example with all labels.
    """
    flat, count = features.reshape(-1, features.shape[-1]), c.probe.folds
    basis = Basis.of_features(flat)
    fold = stratify.iterative(labels[:, -1], [1.0] * count, c.seed, names)
    if not np.bincount(fold[(labels >= 0).all(1)], minlength=count).all():
      raise UserError(
        f'--config.probe.folds={count}: a fold has no training image with all labels; there are '
        'too few of them'
      )
    return cls(basis.transform(flat).reshape(features.shape), labels, fold, basis)

  def rows(self, mask: np.ndarray, views: int, count: int) -> probe_fit.Rows:
    """Return the first views of the examples of a mask [n], filled up to `count` examples."""
    labels = np.repeat(self.labels[mask], views, 0)
    x = self.x[mask, :views].reshape(len(labels), self.x.shape[-1])
    return probe_fit.blocked(x, labels, count * views)


def search(
  c: ConfigDict, base: ConfigDict, taxonomy: Taxonomy, data: Data, progress: Callable[[str], None]
) -> list[Setting]:
  """Judge the grid by cross-validation.

  The first fold tries every setting; the others try `probe.keep` of the recipes, those with the
  best setting, and the flat head.

  Args:
    c: the config, of which `probe` is read.
    base: the options of a run but for heads and loss.
    taxonomy: of the exclusive levels.
    data: the training examples.
    progress: called with a line after each fold.

  Returns:
    All settings, the best first.
  """
  decays = sorted(c.probe.decays, reverse=True)
  folds = c.probe.folds
  grid = recipes(c, taxonomy)
  forms = {
    form: Form.of_config(members[0].config(base), taxonomy, data.labels)
    for form, members in grid.items()
  }
  settings = {}
  for recipe in itertools.chain(*grid.values()):
    empty = np.full((folds, len(taxonomy.levels) + 1), np.nan)
    settings[recipe.name] = [Setting(recipe, decay, empty.copy()) for decay in decays]
  for fold in range(folds):
    for form, members in grid.items():
      _try_fold(fold, forms[form], [settings[r.name] for r in members], base, data)
    best = {}
    for recipe in itertools.chain(*grid.values()):
      best[recipe.name] = max(setting.full_path for setting in settings[recipe.name])
    leaders = sorted(best, key=lambda name: -best[name])
    text = '; '.join(f'{name}: {best[name]:.4f}' for name in leaders[:3])
    progress(f'fold {fold + 1} of {folds}, full path at the best decay: {text}')
    if fold == 0:
      leaders = {'flat', *leaders[: math.ceil(c.probe.keep * len(leaders))]}
      grid = {form: [r for r in members if r.name in leaders] for form, members in grid.items()}
      grid = {form: members for form, members in grid.items() if members}
  return sorted(itertools.chain(*settings.values()), key=Setting.rank)


def choose(settings: Sequence[Setting], with_one_fold: Callable[[Recipe], np.ndarray]) -> Setting:
  """Choose the best setting, or the best flat one where the gain over it may be chance.

  The best of a hundred settings looks better than it is. So it must beat the flat head on held-out
  examples by more than the folds vary: a one-sided t test of their differences at 5%. A hierarchy
  often helps less where there are more examples, and the heads that are kept fit all of them. So
  the gain is extrapolated: from one fold to all but one it changed in some proportion to the
  logarithm of their number, and in the same it goes on to all.

  Args:
    settings: all, the best first.
    with_one_fold: the function of that name for a recipe.
  """
  best = settings[0]
  flat = next(setting for setting in settings if setting.recipe.name == 'flat')
  if best is flat:
    return flat
  gains = best.accuracy[:, -1] - flat.accuracy[:, -1]
  folds = len(best.accuracy)
  if folds > 2:
    before = with_one_fold(best.recipe) - with_one_fold(flat.recipe)
    gains = gains + (gains - before) * math.log(folds / (folds - 1)) / math.log(folds - 1)
  error = gains.std(ddof=1) / math.sqrt(folds)
  return best if gains.mean() > stdtrit(folds - 1, 0.95) * error else flat


def with_one_fold(
  recipe: Recipe, c: ConfigDict, base: ConfigDict, taxonomy: Taxonomy, data: Data
) -> np.ndarray:
  """Return how well a recipe does on each fold after fits to the next fold alone.

  Args:
    recipe: heads and loss.
    c, base, taxonomy, data: as for `search`.

  Returns:
    float64 [folds], the full-path accuracy at the decay with the best mean.
  """
  decays, folds = sorted(c.probe.decays, reverse=True), c.probe.folds
  form = Form.of_config(recipe.config(base), taxonomy, data.labels)
  count = np.bincount(data.fold).max()
  accuracy = [
    _accuracy(form, [recipe], decays, base, data, data.fold == (fold + 1) % folds, count, fold)
    for fold in range(folds)
  ]
  at_decay = np.stack(accuracy)[:, :, 0, -1]
  return at_decay[:, at_decay.mean(0).argmax()]


def _try_fold(fold, form, rows, base, data) -> None:
  """Fit recipes of a form without a fold, and enter how well their settings [S, K] do on it."""
  recipes = [row[0].recipe for row in rows]
  decays = [setting.decay for setting in rows[0]]
  # of equal size for all folds, so that they are one program
  count = len(data.x) - np.bincount(data.fold).min()
  result = _accuracy(form, recipes, decays, base, data, data.fold != fold, count, fold)
  for k, of_decay in enumerate(result):
    for row, accuracy in zip(rows, of_decay):
      row[k].accuracy[fold] = accuracy


def _accuracy(form, recipes, decays, base, data, is_trained, count, fold) -> np.ndarray:
  """Measure a fold after fits to at most `count` of the others, [decay, recipe, L + 1]."""
  is_held_out = data.fold == fold
  result = probe_fit.fit(
    form,
    np.float32([recipe.level_weights(base, form) for recipe in recipes]),
    decays,
    data.basis.variances,
    data.rows(is_trained, data.x.shape[1], count),
    data.rows(is_held_out, 1, np.bincount(data.fold).max()),
    PATH_STEPS,
  )
  is_labelled = data.labels[is_held_out] >= 0
  return result.right / np.maximum(np.append(is_labelled.sum(0), is_labelled.all(1).sum()), 1)


class Choice(NamedTuple):
  """A setting fitted on all training examples: its heads, which read features, and its rules.

  `predict` computes {level: probabilities [n, C]} of training examples int [n], each by the fit to
  the other folds.
  """

  heads: dict[str, dict[str, np.ndarray]]
  rules: decide.Rules
  predict: Callable[[np.ndarray], dict[str, np.ndarray]]


def fit_choice(setting: Setting, base: ConfigDict, taxonomy: Taxonomy, data: Data) -> Choice:
  """Fit a setting on all training examples, and the rules of its decisions by cross-fitting.

  The fit takes the steps of the search, through all larger decays: they end before the optimum,
  which is a part of what cross-validation judged. Joint weights and temperature are chosen on what
  the fit to the other folds predicts for each.

  Args:
    setting: to fit.
    base: the options of a run but for heads and loss.
    taxonomy: of the exclusive levels.
    data: the training examples.
  """
  form = Form.of_config(setting.recipe.config(base), taxonomy, data.labels)
  weights = np.float32([setting.recipe.level_weights(base, form)])
  larger = {decay for decay in base.probe.decays if decay > setting.decay}
  decays = sorted({*larger, setting.decay}, reverse=True)
  n = len(data.x)
  nothing = data.rows(np.zeros(n, bool), 1, 1)

  def fit(is_held_out):
    # all folds are the program of the last fit: examples without labels count nowhere
    labels = np.where(is_held_out[:, None], -1, data.labels)
    rows = data._replace(labels=labels).rows(np.ones(n, bool), data.x.shape[1], n)
    variances = data.basis.variances
    params = probe_fit.fit(form, weights, decays, variances, rows, nothing, PATH_STEPS).params
    return {l: {'kernel': p['kernel'][:, 0], 'bias': p['bias'][0]} for l, p in params.items()}

  fits = {fold: fit(data.fold == fold) for fold in np.unique(data.fold)}
  sizes = {level: taxonomy.num_classes(level) for level in form.levels}

  def predict(rows):
    probs = {level: np.zeros((len(rows), size)) for level, size in sizes.items()}
    for fold, params in fits.items():
      mask = data.fold[rows] == fold
      first_view = data.x[rows[mask], 0]
      for level, logits in form.logits(params, first_view).items():
        probs[level][mask] = jax.nn.softmax(logits)
    return probs

  heads = data.basis.heads(fit(np.zeros(n, bool)))
  picked = even_subset(np.arange(n), sum(sizes.values()), MAX_SCORES)
  rules = decide.tune(predict(picked), data.labels[picked], taxonomy)
  return Choice(heads, rules, predict)
