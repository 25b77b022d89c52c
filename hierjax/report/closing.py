"""What a finished training says to the person who waits for it, in about ten lines."""

import pathlib
import shlex

from hierjax.core.metrics import is_finite
from hierjax.report import runs
from hierjax.report.sections import verdict

NO_COMPARISON = {
  'one head': 'this run has one head: nothing to compare',
  'no baseline': 'no baseline to compare with: add --config.baseline=train to the command',
  'not evaluated': 'the baseline is not evaluated',
}


def lines(workdir: str | pathlib.Path) -> list[str]:
  """Sum up an evaluated run: scores, whether the hierarchy helped, and what to do next.

  Args:
    workdir: folder of the run.
  """
  run, folder = runs.read(workdir), shlex.quote(str(workdir))
  out = ['', f'{workdir}: finished']
  if run.evaluation:
    out += [f'  {line}' for line in _scores(run)]
    if run.evaluation.get('decode'):
      out.append(f'  Does the hierarchy help? {_answer(verdict.compare(run))}')
  return [
    *out,
    f'  Look at it:  {pathlib.Path(workdir) / "report.html"}',
    f"  Use it:      hierjax predict --workdir={folder} --images='photos/*.jpg'",
    f'  Other data:  hierjax evaluate --workdir={folder} --split=test',
  ]


def _scores(run: runs.Run) -> list[str]:
  """The accuracy at each level of the decision that predict makes, and the mAP of tags."""
  evaluation, split = run.evaluation, run.splits[0]
  out = []
  decode = evaluation.get('decode') or {}
  name = next((rule for rule in ('joint', 'leaf', 'independent') if decode.get(rule)), '')
  if name:
    levels = [
      f'{level} {100 * values["top1"]:.1f} %'
      for level, values in decode[name]['levels'].items()
      if is_finite(values['top1'])
    ]
    paths = decode[name]['fpa']
    path = f', whole path {100 * paths:.1f} %' if is_finite(paths) else ''
    out.append(
      f'Right on {evaluation["n"]:,} images of {split} ({name} decision): {", ".join(levels)}{path}'
    )
  for level, values in (evaluation.get('multi') or {}).items():
    if is_finite(values['map_macro']):
      out.append(f'{level}: mean average precision {100 * values["map_macro"]:.1f} % ({split})')
  return out


def _answer(result: verdict.Comparison | str) -> str:
  """The verdict, with the difference that it rests on."""
  if isinstance(result, str):
    return NO_COMPARISON[result]
  row = result.rows['fpa']
  if row.difference is None or not row.interval:
    return result.answer
  low, high = row.interval.images
  over = 'images'
  if result.seeds > 1 and row.interval.low is not None:
    low, high, over = row.interval.low, row.interval.high, f'images and {result.seeds} seeds'
  return (
    f'{result.answer} Whole path {100 * row.difference:+.1f} points against one head '
    f'({100 * low:+.1f} to {100 * high:+.1f}, 95% over {over})'
  )
