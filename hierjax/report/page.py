"""What every section of the report is written with: the names of the metrics, numbers in words, and the macros of report.html.j2."""

import dataclasses
import functools
import pathlib

import jinja2
import numpy as np
from markupsafe import Markup

from hierjax.report.runs import finite


@dataclasses.dataclass(frozen=True)
class Metric:
  label: str
  better: int  # +1 higher, -1 lower, 0 neither
  percent: bool
  meaning: str
  digits: int = 1  # behind the point of a percentage

  def text(self, value) -> str:
    """The value as it is shown."""
    return number(value, self.percent, self.digits)


# Every metric that is shown, once: its name, its good direction and one line that explains it.
METRICS = {
  'top1': Metric('top-1', 1, True, 'Share of images whose predicted class is the right one.'),
  'top3': Metric(
    'top-3', 1, True, 'Share of images whose right class is among the three ranked highest.'
  ),
  'top5': Metric(
    'top-5', 1, True, 'Share of images whose right class is among the five ranked highest.'
  ),
  'fpa': Metric(
    'full path',
    1,
    True,
    'Full-path accuracy (FPA): share of images that are right at every level at once.',
  ),
  'hvr': Metric(
    'HVR',
    -1,
    True,
    'Hierarchy violation rate: share of images whose predicted classes contradict each other, such as a make '
    'that does not build the predicted model. It is 0 by construction where a whole path is predicted.',
  ),
  'hvr_eq14': Metric(
    'HVR, eq. 14',
    -1,
    True,
    "S2's equation 14 to the letter: the adjacent levels that contradict each other, over the number of all "
    'parent-child relations. An image has at most one violation a pair of levels, so with many classes it is near 0 whatever the model.',
    3,
  ),
  'consistency': Metric(
    'consistency',
    1,
    True,
    'Share of images whose predictions at these two levels occur together in the taxonomy.',
  ),
  'gap': Metric(
    'hierarchy gap',
    0,
    True,
    'Top-1 of the coarsest level minus top-1 of the finest. Neither high nor low is good in itself.',
  ),
  'hp': Metric(
    'hP',
    1,
    True,
    'Hierarchical precision: share of all predicted classes, over all levels, that are on the true path.',
  ),
  'hr': Metric(
    'hR',
    1,
    True,
    'Hierarchical recall: share of all classes of the true paths that were predicted.',
  ),
  'hf1': Metric('hF1', 1, True, 'Harmonic mean of hierarchical precision and recall.'),
  'severity': Metric(
    'severity',
    -1,
    False,
    'Of the images whose finest class is wrong: at how many levels the predicted path and the true '
    'one differ, on average. In a tree, 1 is a sibling, and the number of levels is nothing in common.',
  ),
  'ahd1': Metric(
    'AHD@1',
    -1,
    False,
    'Average hierarchical distance, in levels, of the first choice to the truth; right answers count 0.',
  ),
  'ahd5': Metric(
    'AHD@5', -1, False, 'The same, averaged over the five finest classes ranked highest.'
  ),
  'map': Metric(
    'mAP, macro',
    1,
    True,
    'Mean average precision: the area under the precision-recall curve of each class, averaged over the classes.',
  ),
  'micro_map': Metric(
    'mAP, micro',
    1,
    True,
    'The area under one precision-recall curve of all pairs of image and class.',
  ),
  'f1': Metric(
    'F1, macro',
    1,
    True,
    'Harmonic mean of precision and recall of each class, averaged over the classes.',
  ),
  'micro_f1': Metric('F1, micro', 1, True, 'The same of all pairs of image and class together.'),
  'tuned_f1': Metric(
    'F1, macro, tuned', 1, True, 'The same at the thresholds that were tuned for each class on val.'
  ),
  'tuned_micro_f1': Metric(
    'F1, micro, tuned', 1, True, 'Of all pairs of image and class together, at those thresholds.'
  ),
  'novel_auroc': Metric(
    'novelty AUROC',
    1,
    True,
    'The chance that an image of a class that training never saw scores as newer than one of a known class.',
  ),
  'novel_softmax': Metric(
    'by maximum softmax',
    1,
    True,
    'The same chance where the score is the plain maximum softmax probability.',
  ),
  'novel_known': Metric(
    'known at 95% recall of new',
    1,
    True,
    'Share of known images that are right and not called new, where 95% of the new ones are.',
  ),
  'novel_parent': Metric(
    'new: right parent',
    1,
    True,
    'Share of images of new classes that are predicted under the right parent, called new or not.',
  ),
  'novel_placed': Metric(
    'new: called new there',
    1,
    True,
    'Share of images of new classes that the calibrated thresholds call new under the right parent.',
  ),
  'ece': Metric(
    'ECE',
    -1,
    True,
    'Expected calibration error: how far the shown probability is from the observed accuracy, on average.',
  ),
}


def number(value, percent: bool = True, digits: int = 1) -> str:
  """A share as a percentage with so many digits behind the point, a distance with two; an en dash where there is none."""
  if not finite(value):
    return '–'
  return f'{100 * value:.{digits}f}%' if percent else f'{value:.2f}'


def signed(value, percent: bool = True) -> str:
  """A difference with its sign: percentage points with one decimal, distances with two."""
  if not finite(value):
    return '–'
  text = f'{100 * abs(value):.1f}' if percent else f'{abs(value):.2f}'
  return text if float(text) == 0 else ('+' if value > 0 else '\N{MINUS SIGN}') + text


def count(value) -> str:
  return f'{value:,}' if isinstance(value, int | np.integer) else str(value)


def listed(words) -> str:
  """'a', 'a and b', 'a, b and c'."""
  words = [str(word) for word in words]
  return (
    words[0] if len(words) == 1 else ', '.join(words[:-1]) + ' and ' + words[-1] if words else ''
  )


def duration(seconds) -> str:
  if not finite(seconds):
    return '–'
  seconds = round(seconds)
  if seconds < 120:
    return f'{seconds} s'
  return (
    f'{seconds // 60} min {seconds % 60:02d} s'
    if seconds < 7200
    else f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
  )


@functools.cache
def _macros() -> dict:
  loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.globals.update(METRICS=METRICS, listed=listed, count=count)
  return {
    name: macro
    for file in ('report.html.j2', 'table.html.j2')
    for name, macro in vars(environment.get_template(file).module).items()
  }


def render(macro: str, *args, **values) -> Markup:
  """A macro of report.html.j2 or table.html.j2; everything that is not Markup already is escaped."""
  return _macros()[macro](*args, **values)
