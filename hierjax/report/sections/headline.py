"""Top of the page: what was trained, on what data, and its main scores."""

import math
import pathlib

from markupsafe import Markup

from hierjax.core.metrics import METRICS
from hierjax.report.runs import Run, get
from hierjax.report.section import Section
from hierjax.report.templates import render


def _render(run: Run) -> Markup:
  """Render the run in one sentence, its main scores, and what is missing or damaged."""
  root = get(run.config, 'data.root') if get(run.config, 'data.source') != 'toy' else None
  classes = run.info.get('classes')
  if not classes and run.taxonomy:
    classes = {level: run.taxonomy.num_classes(level) for level in run.levels}
  return render(
    'headline',
    run=run,
    backbone=str(get(run.config, 'model.backbone', 'A model')),
    heads_form=get(run.config, 'model.heads', 'parallel'),
    data=pathlib.PurePath(str(root)).name if root else 'the drawn toy set',
    classes=classes or {},
    last=max(run.train + run.val, key=lambda line: line['step'], default=None),
    best=_best_line(run),
    tiles=_tiles(run) if run.evaluation else [],
  )


def _best_line(run: Run) -> dict | None:
  """Find the validation line with the best accuracy of the finest level."""
  finest = run.levels[-1] if run.levels else None
  return max(
    run.val,
    key=lambda line: line['step'] if finest is None else line.get(f'top1/{finest}', -math.inf),
    default=None,
  )


def _tiles(run: Run) -> list[tuple[str, str, str]]:
  """List (value, name, explanation) of the main scores."""
  decode, tags = run.evaluation['decode'], run.evaluation.get('multi') or {}
  top1, fpa, hvr = METRICS['top1'], METRICS['fpa'], METRICS['hvr']
  tiles = []
  if decode:
    decision = 'joint' if 'joint' in decode else next(iter(decode))
    scores = decode[decision]
    for level in run.exclusive.levels:
      value = (scores['levels'].get(level) or {}).get('top1')
      tiles.append((top1.text(value), level, f'top-1, {decision}'))
    tiles.append((fpa.text(scores.get('fpa')), 'full path', f'right at every level, {decision}'))
  if 'independent' in decode and len(run.exclusive.heads) > 1:
    value = hvr.text(decode['independent'].get('hvr'))
    tiles.append((value, 'contradictions', 'HVR of the independent heads'))
  for level, scores in tags.items():
    after, n_all = scores['after'], len(scores['classes'])
    mean_ap = METRICS['map'].text(scores['map_macro'])
    f1 = METRICS['f1'].text(after['f1_macro'])
    for text, name, n in (
      (mean_ap, 'mAP', scores.get('map_classes')),
      (f1, 'F1 at the tuned thresholds', after.get('f1_classes')),
    ):
      share = f'its {n_all}' if n in (None, n_all) else f'{n} of its {n_all}'
      tiles.append((text, level, f'{name}, the mean over {share} classes'))
  return tiles


SECTION = Section('headline', '', _render)
