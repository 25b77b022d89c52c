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
from scipy.special import ndtri

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


def choose(settings: Sequence[Setting], gains: Callable[[Setting, Setting], np.ndarray]) -> Setting:
  """Choose the best setting, or the best flat one where the gain over it may be chance.

  The best of a hundred settings looks better than it is. So its gain over the flat head must be
  above 0 by more than chance: a one-sided z test over the examples at 5%.

  Args:
    settings: all, the best first.
    gains: `gains_at_full_size` of a setting and a flat one.
  """
  best = settings[0]
  flat = next(setting for setting in settings if setting.recipe.name == 'flat')
  if best is flat:
    return flat
  gain = gains(best, flat)
  error = gain.std() / math.sqrt(len(gain))
  return best if gain.mean() > ndtri(0.95) * error else flat


def gains_at_full_size(
  setting: Setting, flat: Setting, c: ConfigDict, base: ConfigDict, taxonomy: Taxonomy, data: Data
) -> np.ndarray:
  """Estimate how much oftener than a flat one a setting would be right, fitted to all folds.

  A hierarchy often helps less where there are more examples. So the gain is extrapolated: from fits
  to one fold to those to all but one it changed in some proportion to the logarithm of their
  number, and in the same it goes on to all.

  Args:
    setting: with any heads.
    flat: the setting to compare with.
    c, base, taxonomy, data: as for `search`.

  Returns:
    float64 [examples with all labels], the part of each in the gain of the full path.
  """
  folds = c.probe.folds

  def gain(has_one_fold):
    of_setting, of_flat = (
      right_paths(s, c, base, taxonomy, data, has_one_fold) for s in (setting, flat)
    )
    return of_setting.astype(float) - of_flat

  gains = gain(False)
  if folds > 2:
    gains += (gains - gain(True)) * math.log(folds / (folds - 1)) / math.log(folds - 1)
  return gains[(data.labels >= 0).all(1)]


def right_paths(
  setting: Setting,
  c: ConfigDict,
  base: ConfigDict,
  taxonomy: Taxonomy,
  data: Data,
  has_one_fold: bool,
) -> np.ndarray:
  """Say which full paths are right, each by a fit that did not see the example.

  Args:
    setting: heads, loss and decay.
    c, base, taxonomy, data: as for `search`.
    has_one_fold: whether the next fold alone is fitted, to the decay that is best then, rather than
      all other folds.

  Returns:
    bool [n].
  """
  folds, decays = c.probe.folds, sorted(c.probe.decays, reverse=True)
  if not has_one_fold:
    decays = _path_to(setting.decay, decays)
  form = Form.of_config(setting.recipe.config(base), taxonomy, data.labels)
  is_right = np.zeros((len(decays), len(data.fold)), bool)
  for fold in range(folds):
    is_trained = data.fold != fold
    if has_one_fold:
      is_trained = data.fold == (fold + 1) % folds
    judged = _judge_fold(form, [setting.recipe], decays, base, data, is_trained, fold)
    is_right[:, data.fold == fold] = judged[:, 0].all(-1)
  return is_right[is_right.sum(1).argmax() if has_one_fold else -1]


def _path_to(decay, decays) -> list[float]:
  """The decays that a fit goes through before its own, and that."""
  return sorted({decay, *(larger for larger in decays if larger > decay)}, reverse=True)


def _try_fold(fold, form, rows, base, data) -> None:
  """Fit recipes of a form without a fold, and enter how well their settings [S, K] do on it."""
  recipes = [row[0].recipe for row in rows]
  decays = [setting.decay for setting in rows[0]]
  is_right = _judge_fold(form, recipes, decays, base, data, data.fold != fold, fold)
  is_labelled = data.labels[data.fold == fold] >= 0
  count = np.append(is_labelled.sum(0), is_labelled.all(1).sum())
  for k, of_decay in enumerate(is_right):
    for row, right in zip(rows, of_decay):
      row[k].accuracy[fold] = np.append(right.sum(0), right.all(1).sum()) / np.maximum(count, 1)


def _judge_fold(form, recipes, decays, base, data, is_trained, fold) -> np.ndarray:
  """Fit some examples and judge a fold: bool [decay, recipe, examples of the fold, L]."""
  is_held_out = data.fold == fold
  views = data.x.shape[1]
  # of equal size whatever the fold, so that they are one program
  sizes = np.bincount(data.fold)
  is_one_fold = is_trained.sum() <= sizes.max()
  count = sizes.max() if is_one_fold else len(data.x) - sizes.min()
  result = probe_fit.fit(
    form,
    np.float32([recipe.level_weights(base, form) for recipe in recipes]),
    decays,
    data.basis.variances,
    data.rows(is_trained, views, count),
    data.rows(is_held_out, 1, sizes.max()),
    PATH_STEPS,
  )
  return result.right[:, :, : is_held_out.sum()]


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
  decays = _path_to(setting.decay, base.probe.decays)
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
