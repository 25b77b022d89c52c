"""The audit of a data set's labels, and of images that it has twice, by features of a backbone."""

import copy
import csv
import io
import pathlib
from collections import namedtuple
from collections.abc import Callable

import cv2
import numpy as np
from ml_collections import ConfigDict

from hierjax import decide, model
from hierjax.core import files
from hierjax.data import split_record, stratify
from hierjax.data.splits import file_key
from hierjax.decide import audit, calibration
from hierjax.evaluate import explain
from hierjax.experiments import fit, probe, probe_features, probe_grid
from hierjax.experiments.workdir import disk_errors
from hierjax.report import charts, page

COLUMNS = 'file split score wrong level label proposed prob_label prob_proposed'.split()
PAIR_COLUMNS = 'similarity file split label other other_split other_label'.split()
SHOWN = 60

Item = namedtuple('Item', 'file split label')  # what the lists say of an example


def audit_labels(
  c: ConfigDict,
  workdir: str | pathlib.Path,
  progress: Callable[[str], None] = print,
  trained: bool = False,
) -> dict:
  """Rank labels by how likely they are wrong, and find images that are nearly the same.

  The images of all splits that have a finest label are judged by linear heads on a frozen backbone,
  or by networks, fitted to the other folds (`decide.audit`). The folder gets audit.csv with all of
  them, the most doubtful first, duplicates.csv with the pairs, audit.html with images of both, and
  the runs of the networks in foldN.

  Args:
    c: the config; without networks only the backbone and its weights are read of the model.
    workdir: the folder.
    progress: called with a line now and then.
    trained: whether to train a network for each of probe.folds folds, on the others.

  Returns:
    The numbers of 'images', of wrong labels that are 'expected', of 'duplicates', of those
    'with_other_labels' and 'across_splits', and 'rates' {level: share of labels wrong there}.

  Raises:
    UserError: a mistake in the options or the data, or a full disk.
  """
  workdir = pathlib.Path(workdir)
  with disk_errors(workdir):
    run = probe.build(c)
    workdir.mkdir(parents=True, exist_ok=True)
    items, places, labels, values = _gather(c, run, progress)
    names = [item.file for item in items]
    if trained:
      posterior = _posterior_of_networks(c, workdir, run, places, labels, names)
    else:
      posterior = _posterior_of_heads(c, run, values, labels, names, progress)
    evidence = _judge(posterior, labels[:, -1], run.taxonomy)
    noise = audit.fit_noise(evidence.likelihood)
    pairs = audit.near_duplicates(values[:, 0])
    # those with different labels first
    pairs.sort(key=lambda pair: items[pair[1]].label == items[pair[2]].label)
    result = {
      'images': len(labels),
      'expected': round(float(noise.wrong.sum()), 1),
      'rates': dict(zip(run.taxonomy.levels, noise.rates.round(5).tolist())),
      'duplicates': len(pairs),
      'with_other_labels': sum(items[i].label != items[j].label for _, i, j in pairs),
      'across_splits': sum(items[i].split != items[j].split for _, i, j in pairs),
    }
    _write(workdir, result, noise, evidence, pairs, items, places, run.taxonomy)
  return result


def _gather(c, run, progress):
  """The examples with a finest label: items, (split, number), labels and features."""
  store = probe_features.folder(c)
  places, labels, values = [], [], []
  for examples in run.data.splits.values():
    features = probe_features.compute(run, examples, 1, store, progress)
    is_labelled = examples.labels[features.index, -1] >= 0
    index = features.index[is_labelled]
    places += [(examples, i) for i in index.tolist()]
    labels.append(examples.labels[index])
    values.append(features.values[is_labelled])
  labels, values = np.concatenate(labels), np.concatenate(values)
  classes = run.taxonomy.names[-1]
  items = [
    Item(examples.files[i], examples.name, classes[y])
    for (examples, i), y in zip(places, labels[:, -1])
  ]
  return items, places, labels, values


def _write(workdir, result, noise, evidence, pairs, items, places, taxonomy):
  """Write the lists and the page; `places` are (split, number) of the examples `items`."""
  order = np.argsort(-noise.score, kind='stable').tolist()
  rows = [_row(noise, evidence, i, items[i], taxonomy) for i in order]
  files.write(workdir / 'audit.csv', files.csv_text([COLUMNS, *rows]))
  twins = [(f'{similarity:.4f}', *items[i], *items[j]) for similarity, i, j in pairs]
  files.write(workdir / 'duplicates.csv', files.csv_text([PAIR_COLUMNS, *twins]))
  labels = [(_address(*places[i]), row) for i, row in zip(order[:SHOWN], rows)]
  shown_pairs = [
    (_address(*places[i]), _address(*places[j]), row)
    for (_, i, j), row in zip(pairs[:SHOWN], twins)
  ]
  values = {'result': result, 'labels': labels, 'pairs': shown_pairs}
  text = page.render_page('audit', workdir.resolve().name, **values)
  files.write(workdir / 'audit.html', text)


def _posterior_of_heads(c, run, values, labels, names, progress):
  """Return a function of rows: float [n, leaf], by linear heads that were fitted to other folds."""
  c = copy.deepcopy(c)
  c.probe.forms = ('parallel',)
  data = probe_grid.Data.make(values, labels, names, c)
  grid = probe_grid.Grid(c, run.c, run.taxonomy, data)
  choice = grid.fit(grid.search(progress)[0])

  def posterior(rows):
    decisions = decide.decide(choice.predict(rows), run.taxonomy, choice.rules)
    return decisions['exclusive']['joint'].prob[-1]

  return posterior


def _posterior_of_networks(c, workdir, run, places, labels, names):
  """Return a function of rows: float [n, leaf], by networks that were trained on other folds.

  The val of each is its fold, which tunes the weights of the joint decision and its temperature.
  """
  fold = stratify.iterative(labels[:, -1], [1.0] * c.probe.folds, c.seed, names)
  numbers = dict(zip(map(file_key, names), fold.tolist()))
  text = split_record.content(run.data.undiminished)
  networks = [_train_fold(c, workdir, text, numbers, k) for k in range(c.probe.folds)]

  def posterior(rows):
    prob = np.zeros((len(rows), len(run.taxonomy.paths)))
    for k, network in enumerate(networks):
      members = np.flatnonzero(fold[rows] == k)
      if len(members):
        images = (examples.reader(i) for examples, i in (places[row] for row in rows[members]))
        decisions = network.decide(network.probabilities(images))
        prob[members] = decisions['exclusive']['joint'].prob[-1]
    return prob

  return posterior


def _train_fold(c, workdir, text, numbers, k):
  """Train a network, or resume it, on images of splits.csv whose number {file: fold} is not k."""
  c, folder = copy.deepcopy(c), workdir / f'fold{k}'
  c.baseline, c.baseline_seeds, c.data.splits = None, 1, str(workdir / f'fold{k}.csv')
  c.data.calibration = c.data.calibration_share = c.data.divide = None
  rows = csv.reader(io.StringIO(text, newline=''))
  lines = [next(rows)]
  for file, split, *labels in rows:
    if file in numbers:
      split = c.data.val if numbers[file] == k else c.data.train
    # what is not judged trains if it did, such as images without a finest label
    if file in numbers or split == c.data.train:
      lines.append([file, split, *labels])
  files.write(pathlib.Path(c.data.splits), files.csv_text(lines))
  fit.fit(c, folder)
  return model.load(folder)


def _judge(posterior, labels, taxonomy):
  """Compute what probabilities by fits to other folds say of labels, `audit.Evidence`."""
  rows = np.arange(len(labels))
  picked = calibration.even_subset(rows, len(taxonomy.paths), calibration.LIMIT)
  inverses = audit.fit_levels(posterior(picked), labels[picked], taxonomy)
  parts = []
  for block in np.split(rows, range(audit.BLOCK, len(rows), audit.BLOCK)):
    prob = audit.temper_levels(posterior(block), inverses, taxonomy)
    parts.append(audit.evidence(prob, labels[block], taxonomy))
  return audit.Evidence(*map(np.concatenate, zip(*parts)))


def _row(noise, evidence, i, item, taxonomy):
  """Return the row of audit.csv of an example."""
  k = noise.level[i]
  numbers = [f'{x:.4f}' for x in (noise.score[i], noise.wrong[i].sum())]
  proposed = taxonomy.names[-1][evidence.leaf[i, k]]
  # of the label, and of the leaf that it should be
  probs = [f'{evidence.prob[i, case]:.4f}' for case in (0, k + 1)]
  return item.file, item.split, *numbers, taxonomy.levels[k], item.label, proposed, *probs


def _address(examples, number):
  """Make the data address of a picture, '' where the image cannot be read."""
  image = explain.picture(examples, number, 'squash')
  if image is None:
    return ''
  jpeg = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, explain.QUALITY])[1]
  return charts.address(jpeg.tobytes())
