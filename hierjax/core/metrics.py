"""The registry of metrics: each is declared once, with its direction, format, help and place.

`evaluate` computes them, training chooses checkpoints by them (train.best), the report and the
tables show them; all read from `METRICS` what a metric is called and whether high or low is good.
A metric of your own is added by `register_metric`.

The evaluation is what eval_SPLIT.json holds. A name is 'METRIC', 'METRIC/LEVEL' or, of two levels,
'consistency/A-B'; in front of it may stand the decision, 'joint:fpa'.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.registry import Registry

DECISIONS = ('independent', 'leaf', 'joint')

# Stand for the decision and the level (or pair of levels) in `Metric.place`.
DECISION, LEVEL = object(), object()
OF_PATH = ('decode', DECISION)
OF_LEVEL = ('decode', DECISION, 'levels', LEVEL)
OF_TAGS = ('multi', LEVEL)
# Of metrics that the evaluation has under another name; the loss stands only in the training log.
PLACES = {
  'loss': (),
  'joint_fpa': ('decode', 'joint', 'fpa'),
  'consistency': (*OF_PATH, 'consistency', LEVEL),
  'map': (*OF_TAGS, 'map_macro'),
  'micro_map': (*OF_TAGS, 'map_micro'),
  'f1': (*OF_TAGS, 'before', 'f1_macro'),
  'micro_f1': (*OF_TAGS, 'before', 'f1_micro'),
  'tuned_f1': (*OF_TAGS, 'after', 'f1_macro'),
  'tuned_micro_f1': (*OF_TAGS, 'after', 'f1_micro'),
}
# Other keys of the evaluation, which a user's metric would overwrite.
RESERVED = (
  *('n', 'levels', 'classes', 'head', 'severity_histogram', 'wap'),
  *('hp_macro', 'hr_macro', 'hf1_macro'),
)


@dataclasses.dataclass(frozen=True)
class Metric:
  """One metric.

  Attributes:
    name: its name in options, tables and the evaluation.
    label: what people read.
    better: 1 where higher is better, -1 where lower is, 0 where neither is good in itself.
    help: one line that explains it.
    place: keys that lead to its value in the evaluation, with DECISION and LEVEL for what varies;
      empty where it stands only in the log of training.
    kind: levels that it is for: 'exclusive', 'tags', or 'novelty' (classes unknown to training).
    is_percent: whether it is shown as a percentage; otherwise with two decimals.
    digits: decimals of the percentage.
    is_logged: whether training computes it on val, so that train.best may name it.
    is_compared: whether tables show its difference to a baseline, from the values per example.
    function: a user's, see `register_metric`.
  """

  name: str
  label: str
  better: int
  help: str
  place: tuple = ()
  kind: str = 'exclusive'
  is_percent: bool = True
  digits: int = 1
  is_logged: bool = False
  is_compared: bool = False
  function: Callable | None = None

  @property
  def scope(self) -> str:
    """What one value is of: the whole 'path', a 'level', or a 'pair' of levels."""
    if LEVEL not in self.place:
      return 'path'
    return 'pair' if 'consistency' in self.place else 'level'

  def text(self, value: float | None) -> str:
    """Format a value: '70.1%', '1.26', an en dash for none."""
    return number(value, self.is_percent, self.digits)

  def signed(self, value: float | None) -> str:
    """Format a difference with its sign, in percentage points or with two decimals."""
    return signed(value, self.is_percent)


def is_finite(value: object) -> bool:
  """Whether a value is a number, neither infinite nor NaN."""
  return isinstance(value, int | float | np.number) and math.isfinite(value)


def number(value: float | None, percent: bool = True, digits: int = 1) -> str:
  """Format a share or a distance; a dash for none.

  Args:
    value: the number.
    percent: whether it is a share, shown as a percentage; a distance has two decimals.
    digits: decimals of the percentage.
  """
  if not is_finite(value):
    return '–'
  return f'{100 * value:.{digits}f}%' if percent else f'{value:.2f}'


def signed(value: float | None, percent: bool = True) -> str:
  """Format a difference with its sign; a dash for none.

  Args:
    value: the difference.
    percent: whether it is one of shares, in percentage points with one decimal.
  """
  if not is_finite(value):
    return '–'
  text = f'{100 * abs(value):.1f}' if percent else f'{abs(value):.2f}'
  if float(text) == 0:
    return text
  return ('+' if value > 0 else '\N{MINUS SIGN}') + text


METRICS: Registry[Metric] = Registry('metric')


def _declare(place: tuple, *rows: tuple[str, str, int, str], **fields) -> None:
  """Register (name, label, better, help) of metrics at `place`, under PLACES or their own names."""
  for name, label, better, text in rows:
    keys = PLACES.get(name, (*place, name))
    METRICS.register(name, Metric(name, label, better, text, keys, **fields))


# fmt: off
_declare(
  (),
  ('loss', 'loss', -1, 'Cross-entropy with the true classes, the weighted sum over the heads.'),
  is_percent=False, is_logged=True,
)
_declare(
  OF_LEVEL,
  ('top1', 'top-1', 1, 'Share of images whose predicted class is the right one.'),
  is_logged=True, is_compared=True,
)
_declare(
  OF_LEVEL,
  ('top3', 'top-3', 1, 'Share of images whose class is among the three ranked highest.'),
  ('top5', 'top-5', 1, 'Share of images whose class is among the five ranked highest.'),
)
_declare(
  OF_PATH,
  ('fpa', 'full path', 1, 'Full-path accuracy: share of images that are right at every level.'),
  ('hvr', 'HVR', -1,
   'Hierarchy violation rate: share of images whose predicted classes contradict each other, such '
   'as a make that does not build the predicted model; 0 where a whole path is predicted.'),
  is_logged=True, is_compared=True,
)
_declare(
  (),
  ('joint_fpa', 'full path, joint', 1, 'Full-path accuracy of the joint decision.'),
  is_logged=True,
)
_declare(
  OF_PATH,
  ('hvr_eq14', 'HVR, eq. 14', -1,
   "S2's equation 14 to the letter: the adjacent levels that contradict each other, over the "
   'number of all parent-child relations. An image has at most one violation a pair of levels, so '
   'with many classes it is near 0 whatever the model.'),
  digits=3,
)
_declare(
  OF_PATH,
  ('consistency', 'consistency', 1,
   'Share of images whose predictions at these two levels occur together in the taxonomy.'),
  ('gap', 'hierarchy gap', 0,
   'Top-1 of the coarsest level minus top-1 of the finest; neither high nor low is good.'),
  ('hp', 'hP', 1, 'Hierarchical precision: share of all predicted classes on the true path.'),
  ('hr', 'hR', 1, 'Hierarchical recall: share of all classes of the true paths predicted.'),
  ('hf1', 'hF1', 1, 'Harmonic mean of hierarchical precision and recall.'),
)
_declare(
  OF_PATH,
  ('severity', 'severity', -1,
   'Of the images whose finest class is wrong: at how many levels the predicted and the true path '
   'differ, on average. In a tree, 1 is a sibling; the number of levels is nothing in common.'),
  ('ahd1', 'AHD@1', -1,
   'Average distance, in levels, of the first choice to the truth, over all images: right answers '
   'count 0. Severity is the same of the wrong answers alone.'),
  ('ahd5', 'AHD@5', -1,
   'The same of the five finest classes ranked highest, the mean over the five; at most one of '
   'them is right and counts 0.'),
  is_percent=False,
)
_declare(
  OF_TAGS,
  ('map', 'mAP, macro', 1,
   'Mean average precision: the area under the precision-recall curve, averaged over the classes '
   'that have an image.'),
  ('micro_map', 'mAP, micro', 1, 'The area under one such curve of all pairs of image and class.'),
  ('f1', 'F1, macro', 1,
   'Harmonic mean of precision and recall, averaged over the classes that have an image or are '
   'predicted; of the others it is undefined. Their number stands beside it.'),
  kind='tags', is_logged=True,
)
_declare(
  OF_TAGS,
  ('micro_f1', 'F1, micro', 1, 'The same of all pairs of image and class together.'),
  ('tuned_f1', 'F1, macro, tuned', 1, 'The same at thresholds tuned for each class on val.'),
  ('tuned_micro_f1', 'F1, micro, tuned', 1, 'Of all pairs together, at those thresholds.'),
  kind='tags',
)
_declare(
  OF_LEVEL,
  ('novel_auroc', 'novelty AUROC', 1,
   'The chance that an image of a class that training never saw scores as newer than one of a '
   'known class.'),
  ('novel_softmax', 'by maximum softmax', 1, 'The same of the plain maximum softmax probability.'),
  ('novel_known', 'known at 95% recall of new', 1,
   'Share of known images that are right and not called new, where 95% of the new ones are.'),
  ('novel_parent', 'new: right parent', 1,
   'Share of images of new classes predicted under the right parent, called new or not.'),
  ('novel_placed', 'new: called new there', 1,
   'Share of images of new classes that the thresholds call new under the right parent.'),
  kind='novelty',
)
_declare(
  OF_LEVEL,
  ('ece', 'ECE', -1,
   'Expected calibration error: how far the shown probability is from the observed accuracy, on '
   'average.'),
)
# fmt: on


def register_metric(
  name: str,
  function: Callable,
  *,
  label: str | None = None,
  help: str = '',
  higher_is_better: bool | None = True,
  per_level: bool = False,
  percent: bool = True,
) -> Metric:
  """Add a metric of exclusive levels to evaluations, train.best, the report and tables.

  The mean over the examples is the metric; its bootstrap interval and the paired difference to a
  baseline come from the same values.

      def wrong_root(predictions, labels, taxonomy):
        return (predictions[:, 0] != labels[:, 0]).astype(float)

      hierjax.register_metric('wrong_root', wrong_root, higher_is_better=False)

  Args:
    name: how options, tables and eval_SPLIT.json call it; of letters, digits, '_', '-' and '.'.
    function: (predictions int [N, L], labels int [N, L], -1 for unknown, taxonomy) → float [N],
      or [N, L] with `per_level`; NaN for an example that does not count.
    label: what the report calls it; `name` by default.
    help: one line of explanation, for the report.
    higher_is_better: None where neither is.
    per_level: whether there is one value a level, named NAME/LEVEL.
    percent: whether it is shown as a percentage.

  Returns:
    The metric.

  Raises:
    UserError: the name is taken or cannot be a name.
  """
  if '/' in name or name in RESERVED:
    raise UserError(f'metric {name!r}: the evaluation has something else of that name')
  metric = Metric(
    name=name,
    label=label or name,
    better={None: 0, True: 1, False: -1}[higher_is_better],
    help=help,
    place=(*(OF_LEVEL if per_level else OF_PATH), name),
    is_percent=percent,
    is_logged=True,
    is_compared=True,
    function=function,
  )
  return METRICS.register(name, metric)


def of_kind(kind: str) -> list[Metric]:
  """List the metrics of one kind of levels, in the order of their declaration."""
  return [metric for metric in METRICS.values() if metric.kind == kind]


def registered_by_users() -> list[Metric]:
  """List the metrics that `register_metric` has added."""
  return [metric for metric in METRICS.values() if metric.function]


def split_name(name: str) -> tuple[str, Metric, str]:
  """Split 'joint:top1/model' into decision ('independent' by default), metric and level ('').

  Raises:
    UserError: there is no such metric.

  Args:
    name: as `lookup` takes it.
  """
  decision, _, path = name.partition(':')
  if decision not in DECISIONS:
    decision, path = DECISIONS[0], name
  metric, _, level = path.partition('/')
  return decision, METRICS[metric], level


def lookup(evaluation: Mapping, name: str) -> float | None:
  """Look a metric up in an evaluation (eval_SPLIT.json).

  Args:
    evaluation: the evaluation of one split.
    name: 'fpa', 'joint:fpa', 'top1/LEVEL', 'consistency/A-B', 'map/LEVEL' ...

  Returns:
    The value; None where the evaluation has none.
  """
  decision, metric, level = split_name(name)
  if not metric.place:
    return None
  varying_keys = {DECISION: decision, LEVEL: level}
  entry = evaluation
  for key in metric.place:
    key = varying_keys.get(key, key)
    entry = entry.get(key) if isinstance(entry, Mapping) else None
  return entry


def sign(name: str) -> int:
  """Return 1 where a higher value of the named metric is better, -1 where a lower one is."""
  return -1 if split_name(name)[1].better < 0 else 1


def is_better(name: str, a: float, b: float) -> bool:
  """Whether value `a` of the named metric is better than `b`, which NaN never is.

  Both are rounded to float32, in which a checkpoint holds the best value so far: else .7 would be
  better than the .7 that was read back.

  Args:
    name: of the metric.
    a: one value.
    b: the other.
  """
  a, b = np.float32(a), np.float32(b)
  return bool(a < b if sign(name) < 0 else a > b)


def worst(name: str) -> float:
  """Return the infinite value than which every value of the named metric is better."""
  return -sign(name) * math.inf


def logged_names(heads: Sequence[str], tags: Sequence[str]) -> list[str]:
  """List the validation metrics of training: METRIC, or METRIC/LEVEL for each level.

  Args:
    heads: exclusive levels that have a head.
    tags: tag levels.
  """
  names = ['loss']
  for metric in of_kind('exclusive') if heads else ():
    if not metric.is_logged or metric.name == 'loss':
      continue
    if metric.scope == 'level':
      names += [f'{metric.name}/{level}' for level in heads]
    else:
      names.append(metric.name)
  for metric in of_kind('tags'):
    if metric.is_logged:
      names += [f'{metric.name}/{level}' for level in tags]
  return names


def resolve_best(
  text: str, levels: Sequence[str], heads: Sequence[str], tags: Sequence[str]
) -> str:
  """Resolve train.best to the name of a validation metric.

  'METRIC/finest' is that of the finest level of the metric's kind, 'METRIC/coarsest' of the
  coarsest one with a head. Where all levels are tags, 'top1/finest', the default, is 'map/finest'.

  Args:
    text: the option's value.
    levels: all exclusive levels, coarse to fine.
    heads: those of them that have a head.
    tags: tag levels, coarse to fine.

  Raises:
    UserError: no such metric; it lists the choices.
  """
  names = logged_names(heads, tags)
  metric, _, word = text.partition('/')
  if text == 'top1/finest' and not levels:
    metric = 'map'
  name = f'{metric}/{word}' if word else metric
  if metric in METRICS and word in ('finest', 'coarsest') and name not in names:
    if METRICS[metric].kind == 'tags':
      places = {'finest': tags[-1:], 'coarsest': tags[:1]}
    else:
      places = {'finest': levels[-1:], 'coarsest': heads[:1]}
    name = f'{metric}/{"".join(places[word])}'
  if name not in names:
    raise UserError(
      f'--config.train.best={text!r}{did_you_mean(text, names)}; choices: {", ".join(names)}'
    )
  return name
