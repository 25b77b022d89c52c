"""Classes that training never saw: every node of the taxonomy scores how little an image looks like any of its children, against a threshold that is
calibrated by leaving its children out, a third at a time, so that a prediction can be 'new under dog' or 'new at the top'.

A node is the top or a class of a level, its children are the classes of the next level that nests in it. An image is judged at the top first and then at the
node that it is predicted under; the first node that finds it new ends the path. `Detector` holds what was fitted; `evaluate` makes it from a run.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from hierjax.core import files, metrics, parallel
from hierjax.core.errors import UserError, did_you_mean
from hierjax.data import splits
from hierjax.taxonomy import Taxonomy

if TYPE_CHECKING:
  from hierjax.model import Model

# By what a node tells how new an image is; of its children only.
SCORES = {
  'softmax': 'minus the log of the maximum softmax probability of the head of that level (Hendrycks and Gimpel 2017, arXiv:1610.02136)',
  'energy': "free energy of the children's logits (Liu et al. 2020, arXiv:2010.03759)",
  'mahalanobis': 'squared Mahalanobis distance of the features to the nearest class mean, one covariance for all classes (Lee et al. 2018, arXiv:1807.03888)',
  'cosine': 'minus the highest cosine of the features to a class mean, both whitened by that covariance',
  'cosine_softmax': 'minus the log of the maximum softmax probability over these cosines divided by .05',
  'logistic': 'the same of a logistic regression on the features, whitened by that covariance and of one length',
}
OF_FEATURES = (
  'mahalanobis',
  'cosine',
  'cosine_softmax',
  'logistic',
)  # fitted to the features, so that a class can be left out of them
TEMPERATURES = {'cosine_softmax': 0.05, 'logistic': 1.0}
PENALTY = 0.01  # of logistic: sklearn's C, for features whose mean square is 1
REGRESSED = 20000  # images at most that it is fitted to
FOLDS = 3  # the children of each node are left out a third at a time
RECALL = 0.95  # of novel images, at which the accuracy on known ones is told
FEWEST = (
  20  # left-out images that a threshold of a node's own needs; with fewer it is that of its level
)


def parent_levels(taxonomy: Taxonomy) -> tuple[int, ...]:
  """For each level the nearest coarser one that it nests in, -1 for the top."""
  return tuple(
    next((j for j in range(k - 1, -1, -1) if taxonomy.nests(level, taxonomy.levels[j])), -1)
    for k, level in enumerate(taxonomy.levels)
  )


def children(taxonomy: Taxonomy, k: int, nodes: np.ndarray) -> np.ndarray:
  """bool [N, C_k]: the classes of level k below the nodes int [N] of its parent level (of the top where that is -1)."""
  j = parent_levels(taxonomy)[k]
  return (
    taxonomy.relation(taxonomy.levels[j], taxonomy.levels[k])[nodes]
    if j >= 0
    else np.ones((len(nodes), len(taxonomy.names[k])), bool)
  )


def nodes_of(taxonomy: Taxonomy, k: int, pred: np.ndarray) -> np.ndarray:
  """int [N]: the node at which predictions int [N, level] are judged at level k, 0 for the top."""
  j = parent_levels(taxonomy)[k]
  return pred[:, j] if j >= 0 else np.zeros(len(pred), int)


def level_logits(logits: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> list[np.ndarray]:
  """Per level float64 [N, C]; those of a level without a head are the log-sum-exp of the finest head's over the leaves of each class."""
  out, finest = [], np.asarray(logits[taxonomy.levels[-1]], np.float64)
  for k, level in enumerate(taxonomy.levels):
    if level in logits:
      out.append(np.asarray(logits[level], np.float64))
    else:
      out.append(
        np.stack(
          [
            logsumexp(finest[:, taxonomy.paths[:, k] == c], axis=1)
            for c in range(len(taxonomy.names[k]))
          ],
          1,
        )
      )
  return out


@dataclasses.dataclass(frozen=True)
class Gaussians:
  """Class means and a shared covariance, by its whitening: the squared Mahalanobis distance of x to class c is |(x - mean_c) white|²; and a logistic
  regression on what is whitened."""

  means: np.ndarray  # float64 [C, d], NaN for a class without an example
  white: np.ndarray  # float64 [d, d], white whiteᵀ is the inverse covariance
  centre: np.ndarray  # float64 [d], of all examples
  slopes: np.ndarray | None = (
    None  # float64 [d + 1, C], the last row is the bias; NaN for a class without an example; None where nobody asks for it
  )

  def distances(self, x: np.ndarray) -> np.ndarray:
    """float64 [N, C], squared; NaN for a class without an example."""
    a, b = (
      (np.asarray(x, np.float64) - self.centre) @ self.white,
      (self.means - self.centre) @ self.white,
    )
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)

  def cosines(self, x: np.ndarray) -> np.ndarray:
    """float64 [N, C]: between the whitened example and the whitened class mean, both seen from the centre."""
    a, b = (
      (np.asarray(x, np.float64) - self.centre) @ self.white,
      (self.means - self.centre) @ self.white,
    )
    return (
      a @ b.T / np.maximum(np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1), 1e-12)
    )

  def even(self, x: np.ndarray) -> np.ndarray:
    """float64 [N, d]: whitened and of length √d, what the logistic regression sees."""
    a = (np.asarray(x, np.float64) - self.centre) @ self.white
    return a * (np.sqrt(a.shape[1]) / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12))

  def regressed(self, x: np.ndarray, y: np.ndarray) -> 'Gaussians':
    """The same with the slopes of a logistic regression, fitted to features [N, d] of known classes int [N]."""
    rows = np.random.default_rng(0).permutation(len(y))[:REGRESSED]
    there = np.unique(y[rows])
    slopes = np.full((x.shape[1] + 1, len(self.means)), np.nan)
    slopes[:, there] = 0  # of one class alone, or the first of two
    if len(there) > 1:
      found = LogisticRegression(C=PENALTY, max_iter=500).fit(self.even(x[rows]), y[rows])
      slopes[:, there[-len(found.coef_) :]] = np.concatenate(
        [found.coef_, found.intercept_[:, None]], 1
      ).T
    return dataclasses.replace(self, slopes=slopes)

  def fits(self, name: str, x: np.ndarray) -> np.ndarray:
    """float64 [N, C]: how each class fits by one of OF_FEATURES; NaN for a class without an example."""
    if name == 'logistic':
      return self.even(x) @ self.slopes[:-1] + self.slopes[-1]
    return -self.distances(x) if name == 'mahalanobis' else self.cosines(x)


def gaussians(x: np.ndarray, y: np.ndarray, classes: int, names: Sequence[str] = ()) -> Gaussians:
  """Of features [N, d] and their classes int [N] (-1 unknown, left out): the covariance is that within classes, shrunk as Ledoit and Wolf (2004) do. With
  what the scores `names` need.

  UserError where no example has a class, or a feature is not finite.
  """
  known = y >= 0
  if not known.any():
    raise UserError(f'novelty: none of the {len(y)} training images has a label of each level')
  x, y = np.asarray(x, np.float64)[known], y[known]
  if not np.isfinite(x).all():
    raise UserError('novelty: a feature of the training images is not finite')
  n = np.bincount(y, minlength=classes)
  sums = np.zeros((classes, x.shape[1]))
  np.add.at(sums, y, x)
  with np.errstate(invalid='ignore'):
    means = np.where(n[:, None] > 0, sums / n[:, None], np.nan)
  covariance, _ = ledoit_wolf(x - means[y], assume_centered=True)
  values, vectors = np.linalg.eigh(covariance)
  floor = max(values[-1], 1e-12) * 1e-6  # classes of one example each have no spread
  found = Gaussians(means, vectors / np.sqrt(np.maximum(values, floor)), x.mean(0))
  return found.regressed(x, y) if 'logistic' in names else found


def novelty(name: str, fit: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """float64 [N]: how new, from how each class fits [N, C] (log probabilities, logits, minus squared distances or cosines: the higher the
  better, NaN for a class without means) and the classes bool [N, C] that count; inf where none does."""
  fit = np.where(allowed & ~np.isnan(fit), fit, -np.inf)
  best = fit.max(1)
  if name in TEMPERATURES:
    return np.where(
      np.isfinite(best),
      logsumexp((fit - np.where(np.isfinite(best), best, 0)[:, None]) / TEMPERATURES[name], axis=1),
      np.inf,
    )
  return -(logsumexp(fit, axis=1) if name == 'energy' else best)


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a network says of N images: logits per level [N, C], features [N, d], the predicted path int [N, level] and the labels, -1 unknown."""

  logits: list[np.ndarray]
  features: np.ndarray
  pred: np.ndarray
  labels: np.ndarray


def folds(taxonomy: Taxonomy, k: int) -> np.ndarray:
  """int [C_k]: in which of FOLDS parts a class of level k is left out; the children of each node are dealt out in turn."""
  j, out = parent_levels(taxonomy)[k], np.zeros(len(taxonomy.names[k]), int)
  parent = taxonomy.parents(taxonomy.levels[k], taxonomy.levels[j]) if j >= 0 else out
  for v in np.unique(parent):
    rows = np.flatnonzero(parent == v)
    out[rows] = np.arange(len(rows)) % FOLDS
  return out


@dataclasses.dataclass
class Detector:
  taxonomy: Taxonomy
  scores: list[str]  # of each level
  gaussians: dict[int, Gaussians]  # of each level that needs one
  left_out: dict[
    tuple[int, int], np.ndarray
  ]  # (level, node) -> scores of images whose class is left out, sorted; node -1: of all nodes
  known: dict[
    tuple[int, int], np.ndarray
  ]  # the same of these images with their class, and of images whose finer class is left out
  chosen_by: list[
    dict[str, float]
  ]  # per level: score -> AUROC of images whose class is left out against those whose class is not

  @classmethod
  def fit(cls, train: Seen, val: Seen, taxonomy: Taxonomy, score: str = 'auto') -> 'Detector':
    """Class means and covariance from `train`, thresholds from `val`, both of known classes: a third of each node's children at a time is left out of the means
    and the covariance, and their val images stand for those of new classes. 'auto' takes for each level the score of OF_FEATURES that tells them best.

    Of softmax and energy only the logits of the classes left out are taken away: the head has learned from them, so these look better than they are and are
    not chosen, only used where they are asked for. The backbone's features may know the classes too, unless it was frozen. UserError for a score that there
    is not, and where no class can be left out.
    """
    if score not in ('auto', *SCORES):
      raise UserError(
        f'novelty: no score {score!r}{did_you_mean(score, list(SCORES))}; choices: auto, {", ".join(SCORES)}'
      )
    tried = list(OF_FEATURES) if score == 'auto' else [score]
    of_features = not {*tried}.isdisjoint(OF_FEATURES)
    fitted = (
      {
        k: gaussians(train.features, train.labels[:, k], len(names), tried)
        for k, names in enumerate(taxonomy.names)
      }
      if of_features
      else {}
    )
    out = cls(
      taxonomy, [tried[0]] * len(taxonomy.levels), fitted, {}, {}, [{} for _ in taxonomy.levels]
    )
    for k, level in enumerate(taxonomy.levels):
      nodes, y = nodes_of(taxonomy, k, val.pred), val.labels[:, k]
      fair = (y >= 0) & (nodes == nodes_of(taxonomy, k, val.labels)) & ~taxonomy.carried(level)[y]
      scores, rows, aurocs = {name: [] for name in tried}, [], {name: [] for name in tried}
      fold = folds(taxonomy, k)
      for part in range(FOLDS):
        gone, kept = fold == part, train.labels[:, k] >= 0
        kept &= ~gone[train.labels[:, k]]
        if of_features and not kept.any():
          continue
        g = (
          gaussians(train.features[kept], train.labels[kept, k], len(gone), tried)
          if of_features
          else None
        )
        values = {name: out.score(k, val, name, g, gone) for name in tried}
        there = fair & np.isfinite(
          values[tried[0]]
        )  # a node whose only children are left out has nothing to compare with
        new, old = np.flatnonzero(there & gone[y]), np.flatnonzero(there & ~gone[y])
        if len(new) and len(old):
          rows.append(new)
          for name in tried:
            scores[name].append(values[name][new])
            aurocs[name].append(auroc(values[name][old], values[name][new]))
      if not rows:
        continue  # a level of one class: nothing is ever new there
      out.chosen_by[k] = {
        name: float(np.average(aurocs[name], weights=[len(r) for r in rows])) for name in tried
      }
      best = out.scores[k] = max(tried, key=out.chosen_by[k].get)
      rows = np.concatenate(rows)
      finer, at = out.without_finer(k, train, val, np.flatnonzero(fair))
      for kept, values, node in (
        (out.left_out, np.concatenate(scores[best]), nodes[rows]),
        (
          out.known,
          np.concatenate([out.score(k, val)[rows], finer]),
          np.concatenate([nodes[rows], nodes[at]]),
        ),
      ):
        kept |= {(k, -1): np.sort(values)} | {
          (k, int(v)): np.sort(values[node == v]) for v in np.unique(node)
        }
    if not out.left_out:
      raise UserError(
        'novelty: no class of the validation images has a sibling with training images, so that none can be left out to set a threshold'
      )
    return out

  def without_finer(
    self, k: int, train: Seen, val: Seen, rows: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Scores at level k of those of the val images `rows` whose class of a finer level is left out, and their rows: a new breed of dog is no new kind."""
    scores, at = [np.zeros(0)], [np.zeros(0, int)]
    for m in range(k + 1, len(self.taxonomy.levels) if self.scores[k] in OF_FEATURES else 0):
      fold, y = folds(self.taxonomy, m), train.labels[:, m]
      for part in range(FOLDS):
        kept = (train.labels[:, k] >= 0) & ~((y >= 0) & (fold[y] == part))
        mine = rows[(val.labels[rows, m] >= 0) & (fold[val.labels[rows, m]] == part)]
        if kept.any() and len(mine):
          g = gaussians(
            train.features[kept],
            train.labels[kept, k],
            len(self.taxonomy.names[k]),
            (self.scores[k],),
          )
          values = self.score(k, val, gaussian=g)[mine]
          scores.append(values[np.isfinite(values)])
          at.append(mine[np.isfinite(values)])
    return np.concatenate(scores), np.concatenate(at)

  def score(
    self,
    k: int,
    seen: Seen,
    name: str = '',
    gaussian: Gaussians | None = None,
    gone: np.ndarray | None = None,
  ) -> np.ndarray:
    """float64 [N]: novelty at level k under the predicted parent, by the level's score or by `name`, with other Gaussians and without the classes
    `gone` bool [C] where they are given; inf where no class is left."""
    name, g = name or self.scores[k], gaussian or self.gaussians.get(k)
    allowed = children(self.taxonomy, k, nodes_of(self.taxonomy, k, seen.pred))
    if gone is not None:
      allowed = allowed & ~gone
    if name in OF_FEATURES:
      return novelty(name, g.fits(name, seen.features), allowed)
    logits = seen.logits[k] if gone is None else np.where(gone, -np.inf, seen.logits[k])
    return novelty(
      name,
      log_softmax(logits, 1)
      if name == 'softmax' and not (gone is not None and gone.all())
      else logits,
      allowed,
    )

  def threshold(self, k: int, node: int, recall: float) -> float:
    """At least this share of the images whose class was left out score that much or more, and so does a hundredth of the known ones: to lie above them all
    gains nothing. inf where nothing could be left out."""
    if len(self.left_out.get((k, node), ())) < FEWEST:
      node = -1
    if (k, node) not in self.left_out:
      return float('inf')
    return float(
      min(
        np.quantile(self.left_out[k, node], 1 - recall, method='lower'),
        np.quantile(self.known[k, node], 0.99),
      )
    )

  def decide(self, seen: Seen, recall: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int [N]: the level at which an image is new, the number of levels where it is not; float [N, level] scores and thresholds)."""
    t, n = self.taxonomy, len(seen.pred)
    scores = (
      np.stack([self.score(k, seen) for k in range(len(t.levels))], 1)
      if n
      else np.zeros((0, len(t.levels)))
    )
    thresholds = np.full(scores.shape, np.inf)
    for k in range(len(t.levels)):
      nodes = nodes_of(t, k, seen.pred)
      for v in np.unique(nodes):
        thresholds[nodes == v, k] = self.threshold(k, int(v), recall)
      thresholds[t.carried(t.levels[k])[seen.pred[:, k]], k] = (
        np.inf
      )  # the branch has ended above: there is nothing more to be told
    new = np.concatenate([scores >= thresholds, np.ones((n, 1), bool)], 1)
    return new.argmax(1), scores, thresholds

  def words(self, level: int, pred: Sequence[int]) -> str:
    """'new under dog', 'new at the top', or '' for an image that is known; of several levels without a common parent the level is named."""
    t, parents = self.taxonomy, parent_levels(self.taxonomy)
    if level >= len(t.levels):
      return ''
    j = parents[level]
    shared = f' ({t.levels[level]})' if parents.count(j) > 1 else ''
    return f'new under {t.names[j][pred[j]]}{shared}' if j >= 0 else f'new at the top{shared}'

  # In and out.

  def arrays(self) -> dict[str, np.ndarray]:
    out = {'scores': np.array(self.scores), 'taxonomy': np.array(self.taxonomy.hash())}
    out |= {
      f'{name}.{k}.{v}': scores
      for name in ('left_out', 'known')
      for (k, v), scores in getattr(self, name).items()
    }
    needed = {k: g for k, g in self.gaussians.items() if self.scores[k] in OF_FEATURES}
    return out | {
      f'{f.name}.{k}': value
      for k, g in needed.items()
      for f in dataclasses.fields(g)
      if (value := getattr(g, f.name)) is not None
    }

  @classmethod
  def from_arrays(cls, found: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> 'Detector':
    """KeyError or ValueError where the arrays are not those of a detector of this taxonomy."""
    if str(found['taxonomy']) != taxonomy.hash():
      raise ValueError('it is of another taxonomy')
    of = {
      k: Gaussians(
        *(found[f'{name}.{k}'] for name in ('means', 'white', 'centre')), found.get(f'slopes.{k}')
      )
      for k in range(len(taxonomy.levels))
      if f'means.{k}' in found
    }
    kept = [
      {
        (int(k), int(v)): found[f'{name}.{k}.{v}']
        for k, v in (key.split('.')[1:] for key in found if key.startswith(f'{name}.'))
      }
      for name in ('left_out', 'known')
    ]
    return cls(
      taxonomy, [str(s) for s in found['scores']], of, *kept, [{} for _ in taxonomy.levels]
    )


def auroc(known: np.ndarray, novel: np.ndarray) -> float:
  """The chance that a novel image scores higher than a known one, ties half; NaN where there is none of either."""
  if not len(known) or not len(novel):
    return float('nan')
  both = np.nan_to_num(np.concatenate([known, novel]), posinf=np.finfo(float).max)
  return float(roc_auc_score(np.repeat([0, 1], [len(known), len(novel)]), both))


def first_unknown(labels: np.ndarray) -> np.ndarray:
  """int [N]: the coarsest level without a label: where an image of a held-out class is new; the number of levels where all are known."""
  return np.concatenate([labels < 0, np.ones((len(labels), 1), bool)], 1).argmax(1)


def measure(detector: Detector, known: Seen, novel: Seen | None, recall: float) -> dict:
  """What `evaluate` writes: per level 'auroc' (new at this level against known), 'by_score' (the same by each score) with 'softmax' beside it, 'known' (share
  of the known images that are right and not called new, where 95% of the new ones are called so), 'parent' (share of the new ones predicted under the right
  parent) and 'placed' (called new at just that node by the calibrated thresholds); None without new images of that level. Over all: 'kept', the share of known
  images that the thresholds call known, and 'found', of the new ones that they call new anywhere."""
  t = detector.taxonomy
  new_known, scores, _ = detector.decide(known, recall)
  out = {
    'recall': recall,
    'kept': float((new_known == len(t.levels)).mean()),
    'known_images': len(known.labels),
    'levels': {},
    'nodes': [],
  }
  at = np.zeros(0, int)
  if novel is not None:
    at = first_unknown(novel.labels)
    new, new_scores, _ = detector.decide(novel, recall)
    out |= {
      'novel_images': int((at < len(t.levels)).sum()),
      'found': float((new < len(t.levels))[at < len(t.levels)].mean()),
    }
  for k, level in enumerate(t.levels):
    mine, theirs = np.flatnonzero(known.labels[:, k] >= 0), np.flatnonzero(at == k)
    found = {
      'score': detector.scores[k],
      'left_out': {n: v for n, v in detector.chosen_by[k].items() if np.isfinite(v)},
      'novel': len(theirs),
    }
    found |= dict.fromkeys(('auroc', 'softmax', 'known', 'parent', 'placed', 'roc', 'by_score'))
    if len(mine) and len(theirs):
      a, b = scores[mine, k], new_scores[theirs, k]
      under = nodes_of(t, k, novel.pred)[theirs] == nodes_of(t, k, novel.labels)[theirs]
      at_recall = np.quantile(b, 1 - RECALL, method='lower')
      right = known.pred[mine, k] == known.labels[mine, k]
      g = detector.gaussians.get(k)
      able = [
        name
        for name in SCORES
        if name not in OF_FEATURES or (g and (name != 'logistic' or g.slopes is not None))
      ]
      by_score = {
        name: auroc(detector.score(k, known, name)[mine], detector.score(k, novel, name)[theirs])
        for name in able
      }
      found |= {
        'auroc': auroc(a, b),
        'by_score': by_score,
        'softmax': by_score['softmax'],
        'known': float((right & (a < at_recall)).mean()),
        'parent': float(under.mean()),
        'placed': float((under & (new[theirs] == k)).mean()),
        'roc': curve(a, b),
      }
    out['levels'][level] = found
    j = parent_levels(t)[k]
    out['nodes'] += [
      {
        'node': t.names[j][v] if j >= 0 else '',
        'of': t.levels[j] if j >= 0 else '',
        'level': level,
        'left_out': len(s),
        'threshold': detector.threshold(k, v, recall),
      }
      for (i, v), s in sorted(detector.left_out.items())
      if i == k and v >= 0
    ]
  return out


def curve(known: np.ndarray, novel: np.ndarray, points: int = 60) -> list[list[float]]:
  """The ROC as [share of known called new, share of novel called new] at so many places."""
  top = np.finfo(float).max
  x, y, _ = roc_curve(
    np.repeat([0, 1], [len(known), len(novel)]),
    np.nan_to_num(np.concatenate([known, novel]), posinf=top),
  )
  at = np.linspace(0, 1, points)
  return np.stack([at, np.interp(at, x, y)], 1).round(4).tolist()


# Of a run.


def seen(model: 'Model', outputs) -> Seen:
  """What the detector reads of evaluate.Outputs with features: the logits are the heads' on the features of the first view."""
  from hierjax.evaluate.collect import decodings

  logits, t = model.logits(outputs.features), model.taxonomy.exclusive
  return Seen(
    level_logits(logits, t),
    np.asarray(outputs.features, np.float64),
    decodings(outputs, t, model.weights)['joint'].pred,
    outputs.labels,
  )


def evaluate(model: 'Model', split: str, outputs, result: dict, into: pathlib.Path) -> None:
  """Novelty on a split whose `outputs` (with features) are there: adds measure()'s figures to `result` as 'novelty', and those of the metric registry to the levels of the
  joint decision. On the validation split, or where there is no INTO/novelty.npz of this model yet, the detector is fitted on train, calibrated on val, and
  kept there."""
  c, t, val = model.c, model.taxonomy.exclusive, model.c.data.val
  detector = None if split == val else load(model, into, missing_ok=True)
  if detector is None:
    trained = seen(model, model.collect(model.split(c.data.train), with_features=True))
    known = seen(
      model, outputs if split == val else model.collect(model.split(val), with_features=True)
    )
    detector = Detector.fit(trained, known, t, c.eval.novelty_score)
    if parallel.first():
      archive = io.BytesIO()
      np.savez(archive, **detector.arrays(), step=model.step, score=c.eval.novelty_score)
      files.write(into / 'novelty.npz', archive.getvalue())
  held = model.splits().get(split + splits.NOVEL)
  novel = seen(model, model.collect(held, with_features=True)) if held is not None else None
  found = result['novelty'] = measure(detector, seen(model, outputs), novel, c.eval.novelty)
  for level, of in found['levels'].items():
    result['decode']['joint']['levels'][level] |= {
      metric.name: of[metric.name.removeprefix('novel_')] for metric in metrics.of_kind('novelty')
    }


def load(model: 'Model', workdir: pathlib.Path, missing_ok: bool = False) -> Detector | None:
  """The detector that evaluate() left; UserError where it is missing, damaged, or of another state or score of the model. None instead, where that may be."""
  path, how = (
    workdir / 'novelty.npz',
    f'--mode=evaluate --split={model.c.data.val} --config.eval.novelty={model.c.eval.novelty} --workdir={workdir} makes it',
  )
  try:
    with np.load(path, allow_pickle=False) as archive:
      found = dict(archive)
    made_of = int(found['step']), str(found['score'])
    detector = Detector.from_arrays(found, model.taxonomy.exclusive)
  except FileNotFoundError:
    why, made_of = 'is missing', None
  except Exception as e:  # a damaged archive raises whatever its bytes lead to
    why, made_of = f'is damaged ({type(e).__name__}: {e})', None
  if made_of == (model.step, model.c.eval.novelty_score):
    return detector
  if missing_ok:
    return None
  why = (
    why
    if made_of is None
    else f'is of step {made_of[0]} and score {made_of[1]}, not of {model.step} and {model.c.eval.novelty_score}'
  )
  raise UserError(f'{path}: {why}; {how}')
