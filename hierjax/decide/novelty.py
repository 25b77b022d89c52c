"""Detection of classes that training never saw, at every node of the taxonomy.

A node is the top or a class; its children are the classes of the next level that nests in it. It
scores how little an image looks like any of its children.

Whether an image is novel is asked at the finest node of its predicted path alone: what is new at a
coarser level looks like no finer class either, and one question spends all of the false alarms.
Its threshold is such that of images of known classes, drawn as the calibration images were, at most
a stated share is called novel, on average over calibration sets. The images are ranked within their
node (split conformal p-values, Vovk et al. 2005); as a node with few images takes the ranks of its
level, the order statistic of all ranks, ranked once more, bounds the rank that is novel.

Where it is novel is asked from the top: at the first node at which it looks newer than images of
new finer classes do, else at the finest: 'new superclass', 'new kind of dog'.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core.errors import UserError, did_you_mean
from hierjax.decide.backoff import ROUNDING
from hierjax.decide.nodes import FOLDS, children, folds, nodes_of, parent_levels
from hierjax.decide.novelty_scores import (
  FEATURE_SCORES,
  SCORES,
  ClassModel,
  auroc,
  fit_classes,
  novelty,
)
from hierjax.decide.records import DIGITS
from hierjax.taxonomy import Taxonomy

# Calibration images that a node needs for its own threshold; with fewer it has that of its level.
MIN_IMAGES = 100
# The share of images of new finer classes that look newer than the threshold of a coarser level.
MISPLACED = 0.1
# Numbers in an array of images and classes.
BLOCK = 2**22

# (level, node) → sorted scores; node -1 stands for all nodes of the level.
NodeScores = dict[tuple[int, int], np.ndarray]


class Evidence(NamedTuple):
  """What a network computes for N images.

  Attributes:
    logits: per level a function of features float [n, d] → float64 [n, C], see `level_logits`.
    features: float [N, d].
    pred: int [N, level], the predicted path.
    labels: int [N, level], -1 unknown.
  """

  logits: Sequence[Callable[[np.ndarray], np.ndarray]]
  features: np.ndarray
  pred: np.ndarray
  labels: np.ndarray


class NoveltyDecision(NamedTuple):
  """Where images are novel.

  Attributes:
    level: int [N], the level at which an image is novel; the number of levels where it is not.
    scores: float [N, level].
    thresholds: float [N, level], inf where nothing is novel; an image above that of its finest
      level is novel, at the coarsest level at which it is above.
    tails: float [N, level], the share of known images that score as high, counted among the
      calibration images and this one; 1 where nothing is novel.
  """

  level: np.ndarray
  scores: np.ndarray
  thresholds: np.ndarray
  tails: np.ndarray


def tails(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Compute p-values [N], the share of scores that are as high as a new one, itself counted.

  Args:
    reference: float [n], ascending.
    scores: float [N], the new ones.
  """
  return (1 + _as_high(reference, scores)) / (len(reference) + 1)


def _as_high(reference, scores):
  return len(reference) - np.searchsorted(reference, scores, side='left')


def _cutoff(reference, limit):
  """Return the score above which the tail is within the limit, inf where it never is."""
  n = len(reference)
  count = np.searchsorted((1 + np.arange(n)) / (n + 1), limit, side='right') - 1
  return float(reference[n - 1 - count]) if n and count >= 0 else float('inf')


def largest_tail(ranks: np.ndarray, share: float) -> float:
  """Return the tail at or below which an image of n + 1 is novel, such that few are.

  Args:
    ranks: float [n], ascending: the tail of each calibration image at its finest level.
    share: of known images that may be called novel.

  Returns:
    The tail; below 0 where n images are too few for the share, inf where all may be novel.
  """
  count = int(np.floor(share * (len(ranks) + 1) + ROUNDING)) - 1
  if count < 0:
    return -1.0
  return float(np.nextafter(ranks[count], -np.inf)) if count < len(ranks) else float('inf')


@dataclasses.dataclass
class Detector:
  """A fitted detector of novel classes.

  Attributes:
    taxonomy: the table of the exclusive levels.
    scores: the name of each level's score.
    models: {level: model of its classes}, of levels whose score needs one.
    left_out: tails of images whose class is left out, among `finer`, or where there is none among
      those of other classes.
    reference: scores of the calibration images.
    finer: scores of images whose class of a finer level is left out.
    ranks: float [n], ascending: the tail of each calibration image at its finest level.
    chosen_by: for each level {score: AUROC of images whose class is left out against others}.
  """

  taxonomy: Taxonomy
  scores: list[str]
  models: dict[int, ClassModel]
  left_out: NodeScores
  reference: NodeScores
  finer: NodeScores
  ranks: np.ndarray
  chosen_by: list[dict[str, float]]

  @classmethod
  def fit(
    cls,
    train: Evidence,
    val: Evidence,
    taxonomy: Taxonomy,
    score: str = 'auto',
    calibration: Evidence | None = None,
  ) -> 'Detector':
    """Fit models of the classes on `train`, choose scores on `val`, set thresholds on others.

    For the choice a third of each node's children at a time is left out of the models, and their
    val images stand for those of novel classes. Of scores of the head only the logits of these
    classes are taken away: the head has learned from them, so these scores look better than they
    are and are used only where they are asked for. The backbone's features may know the classes
    too, unless it was frozen.

    Args:
      train: images of known classes.
      val: others.
      taxonomy: the table of the exclusive levels.
      score: one of SCORES; 'auto' takes for each level the one of FEATURE_SCORES that detects the
        left-out classes best.
      calibration: further images of known classes; None for those of `val`, which have chosen.

    Raises:
      UserError: there is no such score, or no class can be left out.
    """
    if score not in ('auto', *SCORES):
      hint = did_you_mean(score, list(SCORES))
      raise UserError(f'novelty: no score {score!r}{hint}; choices: auto, {", ".join(SCORES)}')
    names = list(FEATURE_SCORES) if score == 'auto' else [score]
    n, empty = len(taxonomy.levels), np.zeros(0)
    detector = cls(taxonomy, names[:1] * n, {}, {}, {}, {}, empty, [{} for _ in range(n)])
    if not {*names}.isdisjoint(FEATURE_SCORES):
      for k, classes in enumerate(taxonomy.names):
        y = train.labels[:, k]
        detector.models[k] = fit_classes(train.features, y, len(classes), names)
    for k in range(n):
      detector._choose(k, train, val, names)
    if not detector.left_out:
      raise UserError(
        'novelty: no class of the validation images has a sibling with training images, so that '
        'none can be left out to choose a score'
      )
    detector._calibrate(val if calibration is None else calibration)
    return detector

  def _choose(self, k, train, val, names):
    """Choose the score of level k by images whose classes are left out, and note their tails."""
    taxonomy = self.taxonomy
    nodes, y = nodes_of(taxonomy, k, val.pred), val.labels[:, k]
    # Images that are judged at the right node, of classes that begin at this level.
    is_fair = (y >= 0) & (nodes == nodes_of(taxonomy, k, val.labels))
    is_fair &= ~taxonomy.carried(taxonomy.levels[k])[y]
    rows, parts, aurocs = [], {name: [] for name in names}, {name: [] for name in names}
    for is_left_out, values in self._leave_out(k, train, val, names):
      # A node whose only children are left out has nothing to compare with.
      is_scored = is_fair & np.isfinite(values[names[0]])
      novel = np.flatnonzero(is_scored & is_left_out[y])
      inliers = np.flatnonzero(is_scored & ~is_left_out[y])
      if len(novel) and len(inliers):
        rows.append(novel)
        for name in names:
          parts[name].append((np.sort(values[name][inliers]), values[name][novel]))
          aurocs[name].append(auroc(values[name][inliers], values[name][novel]))
    # Nothing is ever novel at a level of one class.
    if not rows:
      return
    weights = [len(r) for r in rows]
    self.chosen_by[k] = {name: float(np.average(aurocs[name], weights=weights)) for name in names}
    best = self.scores[k] = max(names, key=self.chosen_by[k].get)
    finer = np.sort(self._leave_out_finer(k, train, val, np.flatnonzero(is_fair)))
    if len(finer):
      self.finer[k, -1] = finer
    shares = [tails(finer if len(finer) else others, novel) for others, novel in parts[best]]
    self.left_out |= _by_node(k, np.concatenate(shares), nodes[np.concatenate(rows)])

  def _calibrate(self, calibration):
    """Keep the scores of calibration images, and the tail of each at its finest level."""
    scores = self._scores(calibration)
    ranks = np.ones(len(scores))
    for k, rows, nodes in self._judged(calibration.pred):
      if (k, -1) in self.left_out and len(rows):
        self.reference |= _by_node(k, scores[rows, k], nodes)
    for k, rows, reference in self._references(calibration.pred):
      # the other images only: an image that is added to them all may raise each share
      ranks[rows] = _as_high(reference, scores[rows, k]) / (len(reference) + 1)
    self.ranks = np.sort(ranks)

  def _scores(self, evidence):
    """float64 [N, level]."""
    columns = [self.score(k, evidence, [name])[name] for k, name in enumerate(self.scores)]
    return np.stack(columns, 1) if len(evidence.pred) else np.zeros((0, len(columns)))

  def _judged(self, pred):
    """For each level: it, the rows of images that may be novel there, and their nodes."""
    for k, level in enumerate(self.taxonomy.levels):
      # Below the end of a branch nothing can be novel.
      rows = np.flatnonzero(~self.taxonomy.carried(level)[pred[:, k]])
      yield k, rows, nodes_of(self.taxonomy, k, pred)[rows]

  def _references(self, pred):
    """For each node, coarse to fine: level, rows, and the scores that they are compared with."""
    for k, rows, nodes in self._judged(pred):
      for node in np.unique(nodes):
        reference = self._reference(k, int(node))
        if len(reference):
          yield k, rows[nodes == node], reference

  def _reference(self, k, node):
    scores = self.reference.get((k, node), ())
    return scores if len(scores) >= MIN_IMAGES else self.reference.get((k, -1), np.zeros(0))

  def _leave_out(self, k, train, val, names) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """For each fold: which classes of level k are left out, and the scores of val without them."""
    fold, y = folds(self.taxonomy, k), train.labels[:, k]
    needs_model = not {*names}.isdisjoint(FEATURE_SCORES)
    for part in range(FOLDS):
      is_left_out = fold == part
      rows = (y >= 0) & ~is_left_out[y]
      if needs_model and not rows.any():
        continue
      model = None
      if needs_model:
        model = fit_classes(train.features[rows], y[rows], len(fold), names)
      yield is_left_out, self.score(k, val, names, model, is_left_out)

  def _leave_out_finer(self, k, train, val, candidates):
    """Scores at level k of images whose class of a finer level is left out.

    A new breed of dog is no new kind of animal.
    """
    parts, name = [np.zeros(0)], self.scores[k]
    num_levels = len(self.taxonomy.levels) if name in FEATURE_SCORES else 0
    y = train.labels[:, k]
    for m in range(k + 1, num_levels):
      fold, finer, truth = folds(self.taxonomy, m), train.labels[:, m], val.labels[candidates, m]
      for part in range(FOLDS):
        is_used = (y >= 0) & ~((finer >= 0) & (fold[finer] == part))
        novel = candidates[(truth >= 0) & (fold[truth] == part)]
        if is_used.any() and len(novel):
          size = len(self.taxonomy.names[k])
          model = fit_classes(train.features[is_used], y[is_used], size, (name,))
          values = self.score(k, _rows(val, novel), [name], model)[name]
          parts.append(values[np.isfinite(values)])
    return np.concatenate(parts)

  def score(
    self,
    k: int,
    evidence: Evidence,
    names: Sequence[str],
    model: ClassModel | None = None,
    left_out: np.ndarray | None = None,
  ) -> dict[str, np.ndarray]:
    """Compute how novel images are at level k under the predicted parent.

    Args:
      k: the level.
      evidence: of N images, a block of which is looked at at a time.
      names: of SCORES.
      model: of the classes; None for the fitted one.
      left_out: bool [C], classes that do not count.

    Returns:
      {name: float64 [N], inf where no class counts}.
    """
    model, parts = model or self.models.get(k), {name: [np.zeros(0)] for name in names}
    # logits of a level without a head come from those of the finest classes
    step = max(BLOCK // len(self.taxonomy.paths), 1)
    for start in range(0, len(evidence.pred), step):
      part, logits = _rows(evidence, slice(start, start + step)), None
      allowed = children(self.taxonomy, k, nodes_of(self.taxonomy, k, part.pred))
      if left_out is not None:
        allowed = allowed & ~left_out
      if not {*names} <= {*FEATURE_SCORES}:
        logits = part.logits[k](part.features)
      for name in names:
        if name in FEATURE_SCORES:
          fit = model.fit_of_classes(name, part.features)
        else:
          fit = _fit_of_head(name, logits, left_out)
        parts[name].append(novelty(name, fit, allowed))
    return {name: np.concatenate(x) for name, x in parts.items()}

  def threshold(self, k: int, node: int, false_alarms: float) -> float:
    """Return the score above which an image is novel at a node; inf where nothing is novel.

    Where finer classes were left out it is for images that are novel at all.

    Args:
      k: the level.
      node: a class of the level above, 0 for the top.
      false_alarms: as `decide` takes it.
    """
    if (k, -1) in self.finer:
      return _cutoff(self.finer[k, -1], MISPLACED)
    return _cutoff(self._reference(k, node), largest_tail(self.ranks, false_alarms))

  def called(self, k: int, node: int, false_alarms: float) -> float | None:
    """Return the share of images whose class was left out above `threshold`; None without such.

    Args:
      k, node, false_alarms: see `threshold`.
    """
    if (k, node) not in self.left_out:
      return None
    limit = MISPLACED if (k, -1) in self.finer else largest_tail(self.ranks, false_alarms)
    return float((self.left_out[k, node] <= limit).mean())

  def decide(self, evidence: Evidence, false_alarms: float) -> NoveltyDecision:
    """Decide where images are novel.

    Args:
      evidence: of N images.
      false_alarms: share of the images of known classes that may be called novel.
    """
    scores, limit = self._scores(evidence), largest_tail(self.ranks, false_alarms)
    shares, thresholds = np.ones(scores.shape), np.full(scores.shape, np.inf)
    last = np.zeros(len(scores), int)
    for k, rows, reference in self._references(evidence.pred):
      thresholds[rows, k] = _cutoff(reference, limit)
      shares[rows, k] = tails(reference, scores[rows, k])
      last[rows] = k
    n, each = scores.shape[1], np.arange(len(scores))
    for (k, _), finer in self.finer.items():
      is_coarser = (k < last) & np.isfinite(thresholds[:, k])
      thresholds[is_coarser, k] = _cutoff(finer, MISPLACED)
    is_novel = scores[each, last] > thresholds[each, last]
    level = np.where(is_novel, (scores > thresholds).argmax(1), n)
    return NoveltyDecision(level, scores, thresholds, shares)

  def describe(self, level: int, pred: Sequence[int]) -> str:
    """Say where an image is novel.

    Args:
      level: as `decide` returns it.
      pred: int [level], the predicted path.

    Returns:
      'new kind of dog', 'new superclass' at the top, or '' for an image of a known class; of levels
      that share their parent the level is named.
    """
    parents = parent_levels(self.taxonomy)
    if level >= len(parents):
      return ''
    j = parents[level]
    if j < 0:
      return f'new {self.taxonomy.levels[level]}'
    suffix = f' ({self.taxonomy.levels[level]})' if parents.count(j) > 1 else ''
    return f'new kind of {self.taxonomy.names[j][pred[j]]}{suffix}'

  def scores_and_thresholds(
    self, decision: NoveltyDecision, i: int
  ) -> dict[str, list[float | None]]:
    """Return {level: [score, threshold]} of image i of a decision, None where it has none."""
    scores, thresholds = decision.scores[i].round(DIGITS), decision.thresholds[i].round(DIGITS)
    limits = [x if np.isfinite(x) else None for x in thresholds.tolist()]
    return dict(zip(self.taxonomy.levels, map(list, zip(scores.tolist(), limits))))

  def reason(self, decision: NoveltyDecision, i: int, pred: Sequence[int]) -> str:
    """Say why image i of a decision is novel, by `pred` [level], its path; '' where it is not."""
    k = int(decision.level[i])
    if k >= len(self.taxonomy.levels):
      return ''
    j, share = parent_levels(self.taxonomy)[k], 100 * (1 - decision.tails[i, k])
    parent = f' of {self.taxonomy.names[j][pred[j]]}' if j >= 0 else ''
    level = self.taxonomy.levels[k]
    return f'less like any {level}{parent} than {share:.3g}% of the images of known classes'

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Return what `from_arrays` takes."""
    arrays = {'scores': np.array(self.scores), 'taxonomy': np.array(self.taxonomy.hash())}
    arrays['ranks'] = self.ranks
    parts = {'left_out': self.left_out, 'reference': self.reference, 'finer': self.finer}
    for name, node_scores in parts.items():
      for (k, node), scores in node_scores.items():
        arrays[f'{name}.{k}.{node}'] = scores
    for k, model in self.models.items():
      if self.scores[k] in FEATURE_SCORES:
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
        arrays |= {f'{name}.{k}': a for name, a in fields.items() if a is not None}
    return arrays

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> 'Detector':
    """Make the detector of arrays.

    Args:
      arrays: as `to_arrays` returns them.
      taxonomy: the table of the exclusive levels.

    Raises:
      KeyError: an array is missing.
      ValueError: the detector is of another taxonomy.
    """
    if str(arrays['taxonomy']) != taxonomy.hash():
      raise ValueError('it is of another taxonomy')
    models = {}
    for k in range(len(taxonomy.levels)):
      if f'means.{k}' in arrays:
        names = [f.name for f in dataclasses.fields(ClassModel)]
        models[k] = ClassModel(**{name: arrays.get(f'{name}.{k}') for name in names})
    node_scores = {'left_out': {}, 'reference': {}, 'finer': {}}
    for key, scores in arrays.items():
      name, _, place = key.partition('.')
      if name in node_scores:
        k, _, node = place.partition('.')
        node_scores[name][int(k), int(node)] = scores
    names, chosen_by = [str(name) for name in arrays['scores']], [{} for _ in taxonomy.levels]
    return cls(taxonomy, names, models, *node_scores.values(), arrays['ranks'], chosen_by)


def _fit_of_head(name: str, logits: np.ndarray, left_out: np.ndarray | None) -> np.ndarray:
  """How well each class fits, float64 [N, C], by logits without those of classes left out."""
  from scipy.special import log_softmax  # slow to import

  if left_out is not None:
    logits = np.where(left_out, -np.inf, logits)
  if name == 'energy' or (left_out is not None and left_out.all()):
    return logits
  return log_softmax(logits, 1)


def _rows(evidence: Evidence, rows: slice | np.ndarray) -> Evidence:
  return Evidence(evidence.logits, *(x[rows] for x in evidence[1:]))


def _by_node(k: int, scores: np.ndarray, nodes: np.ndarray) -> NodeScores:
  """The sorted scores of level k: of all nodes, and of each."""
  parts = {(k, int(node)): np.sort(scores[nodes == node]) for node in np.unique(nodes)}
  return {(k, -1): np.sort(scores), **parts}
