"""The words of the report: those that occur on a page are explained at its end."""

import re

from hierjax.core.metrics import METRICS

# Words that are no metrics. Each is looked for as it is written here, without regard to case.
TERMS = {
  'plain baseline': 'A model of the same kind with one head, for the finest level; the coarser '
  'classes are read off the finest one.',
  'decoding': 'A way to turn the outputs of all heads into one class a level.',
  'joint decoding': 'The path that exists in the taxonomy and has the highest weighted sum of log '
  'probabilities over the heads.',
  'leaf': 'The decision that reads the coarser classes off the predicted finest class.',
  'independent': 'The decision that takes the most probable class of every head; the classes may '
  'contradict each other.',
  'head': 'The last layer for one level; all heads share the rest of the network.',
  'interval': 'A range that would hold the true value in 95 of 100 repetitions. One over the '
  'images covers which images were photographed, one over images and seeds also the luck of '
  'training.',
  'seed': 'The number that training draws by: the first weights, the order and the changes of '
  'the images. Two seeds give two models of the same recipe.',
  'points': 'Percentage points: from 70% to 73% is a difference of 3 points.',
  'bootstrap': 'Drawing the images anew, with repetitions, to see how far a score would move.',
  'LCA': 'Lowest common ancestor: the deepest level at which two paths are still the same.',
  'calibration': 'Whether probabilities are right: of all images with 80%, 80 of 100 are right.',
  'Grad-CAM': 'Places of an image whose features raise the score of a class.',
  't-SNE': 'A picture of many-dimensional features in the plane that keeps neighbours together.',
  'prototype': 'A learned direction in the space of the features that stands for a class.',
}


def occurring(html: str) -> dict[str, str]:
  """Return {term: explanation} of the metrics and words that occur in a page, in this order.

  Args:
    html: the page's sections.
  """
  text = re.sub(r'<svg.*?</svg>|<[^>]*>', ' ', html, flags=re.S)
  terms = dict(TERMS)
  for metric in map(METRICS.__getitem__, METRICS):
    if metric.place:
      terms[metric.label] = metric.help
  is_term = {
    term: re.search(rf'(?<![\w-]){re.escape(term)}s?(?![\w-])', text, re.I) for term in terms
  }
  return {term: explanation for term, explanation in terms.items() if is_term[term]}
