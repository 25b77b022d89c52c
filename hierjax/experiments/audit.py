"""The audit of a data set's labels, and of images that it has twice, by features of a backbone."""

import copy
import csv
import datetime
import io
import pathlib
from collections.abc import Callable

import cv2
import numpy as np
from ml_collections import ConfigDict

from hierjax import decide
from hierjax.core import files
from hierjax.data import decoding, sources
from hierjax.decide import audit
from hierjax.experiments import probe, probe_features, probe_grid
from hierjax.experiments.workdir import disk_errors
from hierjax.report import charts
from hierjax.report.templates import render

COLUMNS = ('file', 'split', 'score', 'wrong', 'level', 'label', 'proposed')
COLUMNS += ('prob_label', 'prob_proposed')
PAIR_COLUMNS = ('similarity', 'file', 'split', 'label', 'other', 'other_split', 'other_label')
SHOWN, SIDE = 60, 168
FORMS = ('parallel',)


def audit_labels(
  c: ConfigDict, workdir: str | pathlib.Path, progress: Callable[[str], None] = print
) -> dict:
  """Rank labels by how likely they are wrong, and find images that are nearly the same.

  The images of all splits are judged by linear heads on a frozen backbone that were fitted to the
  other folds (`decide.audit`); those without a finest label are left out. WORKDIR/audit.csv has all
  of them, the most doubtful first, WORKDIR/duplicates.csv the pairs, WORKDIR/audit.html shows
  images of both, and WORKDIR/features holds the features.

  Args:
    c: the config; of the model only the backbone and its weights are read.
    workdir: the folder.
    progress: called with a line now and then.

  Returns:
    'images', 'rates' {level: share of wrong labels}, 'expected', the number of wrong labels,
    'duplicates', 'duplicates_with_other_labels', 'duplicates_across_splits'.

  Raises:
    UserError: a mistake in the options or the data, or a full disk.
  """
  workdir = pathlib.Path(workdir)
  with disk_errors(workdir):
    run = probe.build(c)
    workdir.mkdir(parents=True, exist_ok=True)
    parts = []
    for examples in run.data.splits.values():
      features = probe_features.compute(run, examples, 1, workdir / 'features', progress)
      labelled = examples.labels[features.index, -1] >= 0
      parts.append((examples, features.index[labelled], features.values[labelled]))
    places = [(examples, int(i)) for examples, index, _ in parts for i in index]
    labels = np.concatenate([examples.labels[index] for examples, index, _ in parts])
    values = np.concatenate([values for _, _, values in parts])
    noise, evidence = _judge(c, run, values, labels, [e.files[i] for e, i in places], progress)
    rows = _rows(noise, evidence, labels, places, run.taxonomy)
    pairs = _pairs(audit.near_duplicates(values[:, 0]), places, labels, run.taxonomy)
    files.write(workdir / 'audit.csv', _csv(COLUMNS, rows))
    files.write(workdir / 'duplicates.csv', _csv(PAIR_COLUMNS, pairs))
    result = {
      'images': len(labels),
      'rates': dict(zip(run.taxonomy.levels, noise.rates.tolist())),
      'expected': float(noise.wrong.sum()),
      'duplicates': len(pairs),
      'duplicates_with_other_labels': sum(p[3] != p[6] for p in pairs),
      'duplicates_across_splits': sum(p[2] != p[5] for p in pairs),
    }
    files.write(workdir / 'audit.html', _page(workdir.name, result, rows, pairs, places))
  return result


def _judge(c, run, values, labels, names, progress):
  """The noise of the labels, and what it was fitted to."""
  c, block = copy.deepcopy(c), run.taxonomy.block('exclusive')
  c.probe.forms = FORMS
  data = probe_grid.Data.make(values, labels, names, c)
  setting = probe_grid.search(c, run.c, run.taxonomy, data, progress)[0]
  choice = probe_grid.fit_choice(setting, run.c, run.taxonomy, data)
  parts = []
  for rows in np.split(np.arange(len(labels)), range(audit.BLOCK, len(labels), audit.BLOCK)):
    joint = decide.decide(choice.predict(rows), run.taxonomy, choice.rules)['exclusive']['joint']
    parts.append(audit.evidence(joint.prob[-1], labels[rows, -1], block.taxonomy))
  evidence = audit.Evidence(*map(np.concatenate, zip(*parts)))
  return audit.fit_noise(evidence.likelihood), evidence


def _rows(noise, evidence, labels, places, taxonomy):
  """The rows of audit.csv, the most doubtful first."""
  rows, names = [], taxonomy.names[-1]
  for i in np.argsort(-noise.score, kind='stable').tolist():
    (examples, number), k = places[i], noise.level[i]
    rows.append(
      (examples.files[number], examples.name, f'{noise.score[i]:.4f}')
      + (f'{noise.wrong[i].sum():.4f}', taxonomy.levels[k])
      + (names[labels[i, -1]], names[evidence.leaf[i, k]])
      + (f'{evidence.prob[i, 0]:.4f}', f'{evidence.prob[i, k + 1]:.4f}')
    )
  return rows


def _pairs(duplicates, places, labels, taxonomy):
  """The rows of duplicates.csv."""
  rows = []
  for similarity, *pair in duplicates:
    sides = [(places[i][0].files[places[i][1]], places[i][0].name) for i in pair]
    names = [taxonomy.names[-1][labels[i, -1]] for i in pair]
    rows.append((f'{similarity:.4f}', *sides[0], names[0], *sides[1], names[1]))
  return rows


def _csv(columns, rows):
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([columns, *rows])
  return text.getvalue()


def _page(name, result, rows, pairs, places):
  """The page of the first images of both lists."""
  numbers = {(e.name, e.files[i]): (e, i) for e, i in places}

  def picture(split, file):
    return _thumbnail(*numbers[split, file])

  listed = sorted(pairs, key=lambda p: p[3] == p[6])[:SHOWN]
  sections = [
    ('labels', 'Labels to look at', rows[:SHOWN], ()),
    ('duplicates', 'Images that are nearly the same', (), listed),
  ]
  return str(
    render(
      'page',
      name=name,
      kind='audit',
      date=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'),
      headline=render('audit', result=result, rows=(), pairs=(), picture=picture),
      sections=[
        (id, title, render('audit', result=None, rows=x, pairs=y, picture=picture))
        for id, title, x, y in sections
        if x or y
      ],
      technical=[],
      terms={},
    )
  )


def _thumbnail(examples: sources.Examples, number: int) -> str:
  """A small JPEG of an image as a data address, '' where it cannot be read."""
  try:
    image = decoding.decode(examples.reader(number))
  except (decoding.BrokenImage, OSError):
    return ''
  scale = SIDE / max(image.shape[:2])
  size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
  small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1]
  return charts.address(cv2.imencode('.jpg', small)[1].tobytes())
