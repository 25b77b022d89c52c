"""Sections that show single images: the worst confusions, and examples for each head."""

from typing import NamedTuple

from markupsafe import Markup

from hierjax.evaluate import example_images
from hierjax.report import charts
from hierjax.report.runs import Run
from hierjax.report.section import Section
from hierjax.report.templates import paragraph, render

NO_PREDICTIONS = (
  'This section needs the predictions and the taxonomy of the run; hierjax report with this '
  '--workdir creates what is missing.'
)
NO_IMAGES = (
  'There are no example images of this evaluation yet; hierjax report with this --workdir adds '
  'them.'
)


class Shot(NamedTuple):
  """An image: its data address, the name of its file, and the predicted probability."""

  src: str
  file: str
  prob: float | None = None


class Head(NamedTuple):
  """A head's answer to an image.

  `choices` are its first five: (name, probability, whether it is the true class).
  """

  level: str
  truth: str
  choices: list[tuple[str, float, bool]]
  heat_map: str


def _shot(run: Run, row: int, prob: float | None = None) -> Shot:
  return Shot(charts.address(run.pictures[row]), str(run.predicted['files'][row]), prob)


class Pair(NamedTuple):
  """Two finest classes, how often the first is taken for the second, and the levels they share.

  `mistakes` and `lookalikes` are images of both, where there are pictures.
  """

  true: str
  predicted: str
  confusion: example_images.Confusion
  same: list[str]
  mistakes: list[Shot]
  lookalikes: list[Shot]


def pairs(run: Run, limit: int | None = None) -> list[Pair]:
  """List the pairs of finest classes that cost most, with images of both.

  Args:
    run: with predictions, and its exclusive levels only.
    limit: pairs at most; None for all that are shown.
  """
  table, prob = run.taxonomy, run.predicted['prob_joint'][:, -1]
  labels, pred = run.predicted['labels'][:, -1], run.predicted['pred_joint'][:, -1]
  out = []
  for confusion in example_images.confusions(pred, prob, labels, table)[:limit]:
    same = table.paths[confusion.true] == table.paths[confusion.pred]
    mistakes = [row for row in confusion.mistakes.tolist() if row in run.pictures]
    lookalikes = [row for row in confusion.lookalikes.tolist() if row in run.pictures]
    out.append(
      Pair(
        true=table.names[-1][confusion.true],
        predicted=table.names[-1][confusion.pred],
        confusion=confusion,
        same=[level for level, is_same in zip(table.levels, same) if is_same],
        mistakes=[_shot(run, row, float(prob[row])) for row in mistakes],
        lookalikes=[_shot(run, row) for row in lookalikes],
      )
    )
  return out


def _worst_confusions(run: Run) -> Markup:
  """Render the pairs of finest classes that cost most, with images of both."""
  if run.predicted is None:
    return paragraph(NO_PREDICTIONS)
  levels, worst = run.taxonomy.levels, pairs(run)
  if not worst:
    return paragraph(f'No image of {run.splits[0]} has a wrong {levels[-1]}.')
  return render(
    'worst_confusions',
    pairs=worst,
    levels=levels,
    split=run.splits[0],
    no_images='' if run.pictures else NO_IMAGES,
  )


def _gallery(run: Run) -> Markup:
  """Render images for every pattern of right and wrong heads, with what each head looked at."""
  columns = example_images.head_columns(run.predicted) if run.predicted else []
  if not columns:
    return paragraph(NO_PREDICTIONS)
  is_labelled = (run.predicted['labels'][:, columns] >= 0).all(1)
  is_right = example_images.heads_right(run.predicted, columns)
  panes = []
  for pattern in example_images.patterns(is_right, is_labelled):
    rows = [row for row in pattern.examples.tolist() if row in run.pictures]
    marks = [(run.taxonomy.levels[k], ok) for k, ok in zip(columns, pattern.is_right)]
    cases = [(_shot(run, row), _heads(run, row, columns)) for row in rows]
    panes.append({'marks': marks, 'n': len(pattern.rows), 'cases': cases})
  if not panes:
    return paragraph(f'No image of {run.splits[0]} is labelled at every level with a head.')
  return render(
    'gallery',
    panes=panes,
    labelled=int(is_labelled.sum()),
    heads=len(columns),
    split=run.splits[0],
    per_pattern=example_images.IMAGES_PER_PATTERN,
    grid=run.explained['maps'].shape[2:] if run.pictures else None,
    sharp=charts.SHARP,
    no_images='' if run.pictures else NO_IMAGES,
  )


def _heads(run: Run, row: int, columns: list[int]) -> list[Head]:
  """Collect the answers of the heads to an image."""
  table, arrays = run.taxonomy, run.predicted
  maps = run.explained['maps'][run.explained['rows'].tolist().index(row)]
  heads = []
  for k, heat in zip(columns, maps):
    label, names = int(arrays['labels'][row, k]), table.names[k]
    best = zip(arrays[f'top_{k}'][row].tolist(), arrays[f'top_prob_{k}'][row].tolist())
    choices = [(names[c], float(p), c == label) for c, p in best]
    heat_map = charts.address(charts.heat_map(run.pictures[row], heat))
    heads.append(Head(table.levels[k], names[label], choices, heat_map))
  return heads


WORST_CONFUSIONS = Section('worst', 'Worst confusions', _worst_confusions, True)
GALLERY = Section('gallery', 'Examples', _gallery, True)
