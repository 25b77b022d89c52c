"""Evaluation of novelty detection, and the detector's file."""

import pathlib
from typing import NamedTuple

import numpy as np

from hierjax.core import archives, metrics
from hierjax.core.errors import UserError
from hierjax.decide.lineages import lineage
from hierjax.decide.nodes import nodes_of, parent_levels
from hierjax.decide.novelty import Detector, Evidence, NoveltyDecision
from hierjax.decide.novelty_scores import FEATURE_SCORES, SCORES, auroc
from hierjax.decide.records import answer_or_new
from hierjax.taxonomy import Taxonomy

FILE = 'novelty.npz'
# The recall of novel images at which the accuracy on known ones is reported.
RECALL = 0.95
# Points of the ROC that the report draws.
ROC_POINTS = 60


class Judged(NamedTuple):
  """Images, the decisions on them, and the rows that are known, or novel, at a level."""

  images: Evidence
  decision: NoveltyDecision
  rows: np.ndarray


# What is undefined without novel images of a level.
OF_NOVEL = ('auroc', 'softmax', 'known', 'parent', 'placed', 'roc', 'by_score')


def first_unknown(labels: np.ndarray) -> np.ndarray:
  """Return the coarsest level without a label, at which an image of a held-out class is novel.

  Args:
    labels: int [N, level], -1 unknown.

  Returns:
    int [N], the number of levels where all are labelled.
  """
  return np.concatenate([labels < 0, np.ones((len(labels), 1), bool)], 1).argmax(1)


def measure(
  detector: Detector, inliers: Evidence, novel: Evidence | None, false_alarms: float
) -> dict:
  """Compute the metrics of novelty detection.

  Args:
    detector: fitted on other images.
    inliers: images of known classes.
    novel: images of classes that training never saw, or None.
    false_alarms: share of known images that may be called novel.

  Returns:
    'kept', the share of known images that the thresholds call known, 'found', the share of novel
    ones that they call novel anywhere; 'nodes', the calibrated thresholds, None where so few
    calibration images allow no image to be called novel, with the share of images of left-out
    classes that they call novel; and for each level of 'levels', None without novel images of it:
    'auroc' of novel against known images, 'by_score' the same by each score, 'known' the share of
    known images that are right and not called novel where 95% of the novel ones are, 'parent' the
    share of novel ones predicted under the right parent, 'placed' the share called novel at just
    that node by the thresholds.
  """
  taxonomy = detector.taxonomy
  decision = detector.decide(inliers, false_alarms)
  n = len(taxonomy.levels)
  result = {
    'false_alarms': false_alarms,
    'calibration_images': len(detector.ranks),
    'kept': float((decision.level == n).mean()),
    'known_images': len(inliers.labels),
    'levels': {},
    'nodes': [],
  }
  novel_at = np.zeros(0, int)
  if novel is not None:
    novel_at = first_unknown(novel.labels)
    novel_decision = detector.decide(novel, false_alarms)
    result['novel_images'] = int((novel_at < n).sum())
    result['found'] = float((novel_decision.level < n)[novel_at < n].mean())
  for k, level in enumerate(taxonomy.levels):
    known_rows = np.flatnonzero(inliers.labels[:, k] >= 0)
    novel_rows = np.flatnonzero(novel_at == k)
    values = {
      'score': detector.scores[k],
      'left_out': {name: v for name, v in detector.chosen_by[k].items() if np.isfinite(v)},
      'novel': len(novel_rows),
    }
    values |= dict.fromkeys(OF_NOVEL)
    if len(known_rows) and len(novel_rows):
      judged = Judged(inliers, decision, known_rows)
      values |= _measure_level(detector, k, judged, Judged(novel, novel_decision, novel_rows))
    result['levels'][level] = values
    result['nodes'] += _describe_nodes(detector, k, false_alarms)
  return result


def _measure_level(detector: Detector, k: int, inliers: Judged, novel: Judged) -> dict:
  """Measure level k."""
  known_scores = inliers.decision.scores[inliers.rows, k]
  novel_scores = novel.decision.scores[novel.rows, k]
  predicted_parent = nodes_of(detector.taxonomy, k, novel.images.pred)[novel.rows]
  true_parent = nodes_of(detector.taxonomy, k, novel.images.labels)[novel.rows]
  has_right_parent = predicted_parent == true_parent
  cutoff = np.quantile(novel_scores, 1 - RECALL, method='lower')
  is_right = inliers.images.pred[inliers.rows, k] == inliers.images.labels[inliers.rows, k]
  model = detector.models.get(k)
  names = [name for name in SCORES if model or name not in FEATURE_SCORES]
  if model and model.axes is None:
    names.remove('likelihood')
  of_known = detector.score(k, inliers.images, names)
  of_novel = detector.score(k, novel.images, names)
  by_score = {}
  for name in names:
    by_score[name] = auroc(of_known[name][inliers.rows], of_novel[name][novel.rows])
  return {
    'auroc': auroc(known_scores, novel_scores),
    'by_score': by_score,
    'softmax': by_score['softmax'],
    'known': float((is_right & (known_scores < cutoff)).mean()),
    'parent': float(has_right_parent.mean()),
    'placed': float((has_right_parent & (novel.decision.level[novel.rows] == k)).mean()),
    'roc': _roc(known_scores, novel_scores),
  }


def _describe_nodes(detector, k, false_alarms):
  """Describe the thresholds of the nodes above level k."""
  taxonomy, j = detector.taxonomy, parent_levels(detector.taxonomy)[k]
  nodes = []
  for (level, node), scores in sorted(detector.reference.items()):
    if level != k or node < 0:
      continue
    threshold = detector.threshold(k, node, false_alarms)
    nodes.append(
      {
        'node': taxonomy.names[j][node] if j >= 0 else '',
        'of': taxonomy.levels[j] if j >= 0 else '',
        'level': taxonomy.levels[k],
        'images': len(scores),
        'threshold': threshold if np.isfinite(threshold) else None,
        'called': detector.called(k, node, false_alarms),
      }
    )
  return nodes


def _roc(inliers: np.ndarray, novel: np.ndarray) -> list[list[float]]:
  """Return [share of known called novel, share of novel called novel] at ROC_POINTS places."""
  from sklearn.metrics import roc_curve

  scores = np.nan_to_num(np.concatenate([inliers, novel]), posinf=np.finfo(float).max)
  x, y, _ = roc_curve(np.repeat([0, 1], [len(inliers), len(novel)]), scores)
  places = np.linspace(0, 1, ROC_POINTS)
  return np.stack([places, np.interp(places, x, y)], 1).round(4).tolist()


def add_to_summary(result: dict, measured: dict) -> None:
  """Add metrics of novelty to a summary, the registered ones to those of each level.

  Args:
    result: what `summary.summarize` returned.
    measured: what `measure` returned.
  """
  result['novelty'] = measured
  for level, values in measured['levels'].items():
    level_metrics = result['decode']['joint']['levels'][level]
    for metric in metrics.of_kind('novelty'):
      level_metrics[metric.name] = values[metric.name.removeprefix('novel_')]


def add_to_records(
  records: list[dict],
  detector: Detector,
  evidence: Evidence,
  posterior: np.ndarray,
  false_alarms: float,
) -> None:
  """Add 'new' and 'novelty' to the records of predictions, and whether 'answer' is new.

  Args:
    records: of N images, which are changed.
    detector: of the model.
    evidence: of the images.
    posterior: float [N, leaf] of the joint decision.
    false_alarms: share of known images that may be called novel.
  """
  decision, table = detector.decide(evidence, false_alarms), detector.taxonomy
  line = lineage(posterior, table.paths)
  for i, record in enumerate(records):
    level = int(decision.level[i])
    record['new'] = detector.describe(level, evidence.pred[i])
    reason = detector.reason(decision, i, evidence.pred[i])
    record['answer'] = answer_or_new(record.get('answer'), line, i, table, level, reason)
    record['novelty'] = detector.scores_and_thresholds(decision, i)


def write_detector(path: pathlib.Path, detector: Detector, step: int, score: str) -> None:
  """Write a detector.

  Args:
    path: the file.
    detector: what to write.
    step: of the model.
    score: the option decide.novelty_score.
  """
  arrays = {**detector.to_arrays(), 'step': step, 'score': score}
  archives.write(path, arrays, is_compressed=False)


def read_detector(path: pathlib.Path, taxonomy: Taxonomy, step: int, score: str) -> Detector:
  """Read a detector.

  Args:
    path: the file.
    taxonomy: the table of the exclusive levels.
    step: of the model.
    score: the option decide.novelty_score.

  Raises:
    UserError: the file is missing, damaged, or of another step or score.
  """
  try:
    arrays = archives.read(path)
    origin = int(arrays['step']), str(arrays['score'])
    if 'ranks' not in arrays:
      raise UserError(f'{path}: is of an earlier version of hierjax')
    detector = Detector.from_arrays(arrays, taxonomy)
  except FileNotFoundError:
    raise UserError(f'{path}: is missing') from None
  except UserError:
    raise
  # A damaged archive raises whatever its bytes lead to.
  except Exception as e:
    raise UserError(f'{path}: is damaged ({type(e).__name__}: {e})') from None
  if origin != (step, score):
    raise UserError(
      f'{path}: is of step {origin[0]} and score {origin[1]}, not of {step} and {score}'
    )
  return detector
