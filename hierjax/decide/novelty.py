"""Detection of classes that training never saw, at every node of the taxonomy.

A node is the top or a class; its children are the classes of the next level that nests in it. It
scores how little an image looks like any of its children, against a threshold that is calibrated by
leaving its children out, a third at a time. An image is judged at the top first and then at the
nodes it is predicted under; the first that finds it novel ends the path: 'new under dog', 'new at
the top'.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core.errors import UserError, did_you_mean
from hierjax.decide.novelty_scores import (
  FEATURE_SCORES,
  SCORES,
  ClassModel,
  auroc,
  fit_classes,
  novelty,
)
from hierjax.taxonomy import Taxonomy

# The children of each node are left out a third at a time.
FOLDS = 3
# Left-out images that a node needs for its own threshold; with fewer it has that of its level.
MIN_LEFT_OUT = 20
# The share of known images that a threshold may lie above, at most.
KNOWN_QUANTILE = 0.99

# (level, node) → sorted scores; node -1 stands for all nodes of the level.
NodeScores = dict[tuple[int, int], np.ndarray]


class Evidence(NamedTuple):
  """What a network computes for N images.

  Attributes:
    logits: per level float64 [N, C].
    features: float64 [N, d].
    pred: int [N, level], the predicted path.
    labels: int [N, level], -1 unknown.
  """

  logits: list[np.ndarray]
  features: np.ndarray
  pred: np.ndarray
  labels: np.ndarray


class NoveltyDecision(NamedTuple):
  """Where images are novel.

  Attributes:
    level: int [N], the level at which an image is novel; the number of levels where it is not.
    scores: float [N, level].
    thresholds: float [N, level], inf where nothing is novel.
  """

  level: np.ndarray
  scores: np.ndarray
  thresholds: np.ndarray


def parent_levels(taxonomy: Taxonomy) -> tuple[int, ...]:
  """Find for each level the nearest coarser one that it nests in, -1 for the top.

  Args:
    taxonomy: the table of the exclusive levels.
  """
  parents = []
  for k, level in enumerate(taxonomy.levels):
    coarser = (j for j in range(k - 1, -1, -1) if taxonomy.nests(level, taxonomy.levels[j]))
    parents.append(next(coarser, -1))
  return tuple(parents)


def children(taxonomy: Taxonomy, k: int, nodes: np.ndarray) -> np.ndarray:
  """Return the children of nodes.

  Args:
    taxonomy: the table of the exclusive levels.
    k: the level of the children.
    nodes: int [N], classes of the level above (`parent_levels`); the top where there is none.

  Returns:
    bool [N, C_k].
  """
  j = parent_levels(taxonomy)[k]
  if j < 0:
    return np.ones((len(nodes), len(taxonomy.names[k])), bool)
  return taxonomy.parents(taxonomy.levels[k], taxonomy.levels[j]) == nodes[:, None]


def nodes_of(taxonomy: Taxonomy, k: int, pred: np.ndarray) -> np.ndarray:
  """Return the nodes at which paths are judged at a level.

  Args:
    taxonomy: the table of the exclusive levels.
    k: the level.
    pred: int [N, level], the paths.

  Returns:
    int [N], classes of the level above, 0 for the top.
  """
  j = parent_levels(taxonomy)[k]
  return pred[:, j] if j >= 0 else np.zeros(len(pred), int)


def level_logits(logits: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> list[np.ndarray]:
  """Return the logits of every level.

  Args:
    logits: {level with a head: float [N, C]}, the finest level among them.
    taxonomy: the table of the exclusive levels.

  Returns:
    Per level float64 [N, C]; of a level without a head the log-sum-exp of the finest head's over
    the leaves of each class.
  """
  from scipy.special import logsumexp  # slow to import

  finest = np.asarray(logits[taxonomy.levels[-1]], np.float64)
  values = []
  for k, level in enumerate(taxonomy.levels):
    if level in logits:
      values.append(np.asarray(logits[level], np.float64))
      continue
    classes = range(len(taxonomy.names[k]))
    columns = [logsumexp(finest[:, taxonomy.paths[:, k] == c], axis=1) for c in classes]
    values.append(np.stack(columns, 1))
  return values


def folds(taxonomy: Taxonomy, k: int) -> np.ndarray:
  """Deal the children of each node out to the FOLDS folds in turn.

  Args:
    taxonomy: the table of the exclusive levels.
    k: the level of the children.

  Returns:
    int [C_k], the fold in which each class is left out.
  """
  j, fold = parent_levels(taxonomy)[k], np.zeros(len(taxonomy.names[k]), int)
  parent = taxonomy.parents(taxonomy.levels[k], taxonomy.levels[j]) if j >= 0 else fold
  for node in np.unique(parent):
    rows = np.flatnonzero(parent == node)
    fold[rows] = np.arange(len(rows)) % FOLDS
  return fold


@dataclasses.dataclass
class Detector:
  """A fitted detector of novel classes.

  Attributes:
    taxonomy: the table of the exclusive levels.
    scores: the name of each level's score.
    models: {level: model of its classes}, of levels whose score needs one.
    left_out: scores of images whose class is left out.
    reference: scores of the same images with their class, and of images whose finer class is left
      out.
    chosen_by: for each level {score: AUROC of images whose class is left out against others}.
  """

  taxonomy: Taxonomy
  scores: list[str]
  models: dict[int, ClassModel]
  left_out: NodeScores
  reference: NodeScores
  chosen_by: list[dict[str, float]]

  @classmethod
  def fit(
    cls, train: Evidence, val: Evidence, taxonomy: Taxonomy, score: str = 'auto'
  ) -> 'Detector':
    """Fit models of the classes on `train` and calibrate thresholds on `val`.

    A third of each node's children at a time is left out of the models, and their val images stand
    for those of novel classes. Of softmax and energy only the logits of these classes are taken
    away: the head has learned from them, so these scores look better than they are and are used
    only where they are asked for. The backbone's features may know the classes too, unless it was
    frozen.

    Args:
      train: images of known classes.
      val: others.
      taxonomy: the table of the exclusive levels.
      score: one of SCORES; 'auto' takes for each level the one of FEATURE_SCORES that detects the
        left-out classes best.

    Raises:
      UserError: there is no such score, or no class can be left out.
    """
    if score not in ('auto', *SCORES):
      hint = did_you_mean(score, list(SCORES))
      raise UserError(f'novelty: no score {score!r}{hint}; choices: auto, {", ".join(SCORES)}')
    names = list(FEATURE_SCORES) if score == 'auto' else [score]
    n = len(taxonomy.levels)
    detector = cls(taxonomy, names[:1] * n, {}, {}, {}, [{} for _ in range(n)])
    if not {*names}.isdisjoint(FEATURE_SCORES):
      for k, classes in enumerate(taxonomy.names):
        y = train.labels[:, k]
        detector.models[k] = fit_classes(train.features, y, len(classes), names)
    for k in range(n):
      detector._calibrate(k, train, val, names)
    if not detector.left_out:
      raise UserError(
        'novelty: no class of the validation images has a sibling with training images, so that '
        'none can be left out to set a threshold'
      )
    return detector

  def _calibrate(self, k, train, val, names):
    """Choose the score of level k and collect the scores that its thresholds come from."""
    taxonomy = self.taxonomy
    nodes, y = nodes_of(taxonomy, k, val.pred), val.labels[:, k]
    # Images that are judged at the right node, of classes that begin at this level.
    is_fair = (y >= 0) & (nodes == nodes_of(taxonomy, k, val.labels))
    is_fair &= ~taxonomy.carried(taxonomy.levels[k])[y]
    rows, scores, aurocs = [], {name: [] for name in names}, {name: [] for name in names}
    for is_left_out, values in self._leave_out(k, train, val, names):
      # A node whose only children are left out has nothing to compare with.
      is_scored = is_fair & np.isfinite(values[names[0]])
      novel = np.flatnonzero(is_scored & is_left_out[y])
      inliers = np.flatnonzero(is_scored & ~is_left_out[y])
      if len(novel) and len(inliers):
        rows.append(novel)
        for name in names:
          scores[name].append(values[name][novel])
          aurocs[name].append(auroc(values[name][inliers], values[name][novel]))
    # Nothing is ever novel at a level of one class.
    if not rows:
      return
    weights = [len(r) for r in rows]
    self.chosen_by[k] = {name: float(np.average(aurocs[name], weights=weights)) for name in names}
    best = self.scores[k] = max(names, key=self.chosen_by[k].get)
    rows = np.concatenate(rows)
    finer_scores, finer_rows = self._leave_out_finer(k, train, val, np.flatnonzero(is_fair))
    known_scores = np.concatenate([self.score(k, val)[rows], finer_scores])
    known_nodes = np.concatenate([nodes[rows], nodes[finer_rows]])
    self.left_out |= _by_node(k, np.concatenate(scores[best]), nodes[rows])
    self.reference |= _by_node(k, known_scores, known_nodes)

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
      yield is_left_out, {name: self.score(k, val, name, model, is_left_out) for name in names}

  def _leave_out_finer(self, k, train, val, candidates):
    """Scores at level k of images whose class of a finer level is left out, and their rows.

    A new breed of dog is no new kind of animal.
    """
    scores, rows = [np.zeros(0)], [np.zeros(0, int)]
    num_levels = len(self.taxonomy.levels) if self.scores[k] in FEATURE_SCORES else 0
    y = train.labels[:, k]
    for m in range(k + 1, num_levels):
      fold, finer, truth = folds(self.taxonomy, m), train.labels[:, m], val.labels[candidates, m]
      for part in range(FOLDS):
        is_used = (y >= 0) & ~((finer >= 0) & (fold[finer] == part))
        novel = candidates[(truth >= 0) & (fold[truth] == part)]
        if is_used.any() and len(novel):
          size = len(self.taxonomy.names[k])
          model = fit_classes(train.features[is_used], y[is_used], size, (self.scores[k],))
          values = self.score(k, val, model=model)[novel]
          scores.append(values[np.isfinite(values)])
          rows.append(novel[np.isfinite(values)])
    return np.concatenate(scores), np.concatenate(rows)

  def score(
    self,
    k: int,
    evidence: Evidence,
    name: str | None = None,
    model: ClassModel | None = None,
    left_out: np.ndarray | None = None,
  ) -> np.ndarray:
    """Compute how novel images are at level k under the predicted parent.

    Args:
      k: the level.
      evidence: of N images.
      name: one of SCORES; None for the level's.
      model: of the classes; None for the fitted one.
      left_out: bool [C], classes that do not count.

    Returns:
      float64 [N], inf where no class counts.
    """
    from scipy.special import log_softmax  # slow to import

    name, model = name or self.scores[k], model or self.models.get(k)
    allowed = children(self.taxonomy, k, nodes_of(self.taxonomy, k, evidence.pred))
    if left_out is not None:
      allowed = allowed & ~left_out
    if name in FEATURE_SCORES:
      return novelty(name, model.fit_of_classes(name, evidence.features), allowed)
    fit = evidence.logits[k]
    if left_out is not None:
      fit = np.where(left_out, -np.inf, fit)
    if name == 'softmax' and (left_out is None or not left_out.all()):
      fit = log_softmax(fit, 1)
    return novelty(name, fit, allowed)

  def threshold(self, k: int, node: int, recall: float) -> float:
    """Return the score from which on an image is novel at a node.

    At least the share `recall` of the images whose class was left out score that much or more, and
    so does a hundredth of the known ones: to lie above them all gains nothing.

    Args:
      k: the level.
      node: a class of the level above, 0 for the top.
      recall: of images of novel classes, 0 to 1.

    Returns:
      The threshold; inf where no class could be left out.
    """
    if len(self.left_out.get((k, node), ())) < MIN_LEFT_OUT:
      node = -1
    if (k, node) not in self.left_out:
      return float('inf')
    by_recall = np.quantile(self.left_out[k, node], 1 - recall, method='lower')
    return float(min(by_recall, np.quantile(self.reference[k, node], KNOWN_QUANTILE)))

  def decide(self, evidence: Evidence, recall: float) -> NoveltyDecision:
    """Decide where images are novel.

    Args:
      evidence: of N images.
      recall: share of the images of novel classes to call novel, at every node.
    """
    taxonomy, n = self.taxonomy, len(evidence.pred)
    scores = np.zeros((n, len(taxonomy.levels)))
    thresholds = np.full(scores.shape, np.inf)
    for k, level in enumerate(taxonomy.levels if n else ()):
      scores[:, k] = self.score(k, evidence)
      nodes = nodes_of(taxonomy, k, evidence.pred)
      for node in np.unique(nodes):
        thresholds[nodes == node, k] = self.threshold(k, int(node), recall)
      # Below the end of a branch nothing can be novel.
      thresholds[taxonomy.carried(level)[evidence.pred[:, k]], k] = np.inf
    is_novel = np.concatenate([scores >= thresholds, np.ones((n, 1), bool)], 1)
    return NoveltyDecision(is_novel.argmax(1), scores, thresholds)

  def describe(self, level: int, pred: Sequence[int]) -> str:
    """Say where an image is novel.

    Args:
      level: as `decide` returns it.
      pred: int [level], the predicted path.

    Returns:
      'new under dog', 'new at the top', or '' for an image of a known class; of levels that share
      their parent the level is named.
    """
    parents = parent_levels(self.taxonomy)
    if level >= len(parents):
      return ''
    j = parents[level]
    suffix = f' ({self.taxonomy.levels[level]})' if parents.count(j) > 1 else ''
    place = f'under {self.taxonomy.names[j][pred[j]]}' if j >= 0 else 'at the top'
    return f'new {place}{suffix}'

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Return what `from_arrays` takes."""
    arrays = {'scores': np.array(self.scores), 'taxonomy': np.array(self.taxonomy.hash())}
    # The file says 'known' for the reference.
    for name, node_scores in (('left_out', self.left_out), ('known', self.reference)):
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
        fields = [arrays[f'{name}.{k}'] for name in ('means', 'white', 'centre')]
        models[k] = ClassModel(*fields, arrays.get(f'slopes.{k}'))
    node_scores = {'left_out': {}, 'known': {}}
    for key, scores in arrays.items():
      name, _, place = key.partition('.')
      if name in node_scores:
        k, _, node = place.partition('.')
        node_scores[name][int(k), int(node)] = scores
    names = [str(name) for name in arrays['scores']]
    left_out, reference = node_scores.values()
    return cls(taxonomy, names, models, left_out, reference, [{} for _ in taxonomy.levels])


def _by_node(k: int, scores: np.ndarray, nodes: np.ndarray) -> NodeScores:
  """The sorted scores of level k: of all nodes, and of each."""
  parts = {(k, int(node)): np.sort(scores[nodes == node]) for node in np.unique(nodes)}
  return {(k, -1): np.sort(scores), **parts}
