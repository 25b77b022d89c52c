"""The predictions on a split as a table with the names of the classes."""

import numpy as np

from hierjax.core.files import csv_text
from hierjax.report.runs import Run


def table(run: Run, split: str) -> str:
  """Return predictions_SPLIT.npz as CSV, a line an image; docs/report.md has the columns.

  Args:
    run: the run.
    split: the split.

  Returns:
    The table; '' without predictions of this taxonomy.
  """
  arrays, taxonomy = run.predictions(split), run.taxonomy
  if arrays is None or taxonomy is None:
    return ''
  try:
    columns = {'file': arrays['files'].tolist()}
    for k, level in enumerate(run.exclusive.taxonomy.levels if run.exclusive else ()):
      names = np.array([*run.exclusive.taxonomy.names[k], ''], object)
      kind = next(kind for kind in ('joint', 'leaf', 'independent') if f'pred_{kind}' in arrays)
      true, pred = arrays['labels'][:, k], arrays[f'pred_{kind}'][:, k]
      columns[f'{level}_true'], columns[f'{level}_predicted'] = names[true], names[pred]
      columns[f'{level}_probability'] = [f'{p:.4f}' for p in arrays[f'prob_{kind}'][:, k]]
      columns[f'{level}_correct'] = np.where(true < 0, '', (true == pred).astype(int).astype(str))
    for level, places in getattr(taxonomy, 'columns', {}).items():
      names = np.array(taxonomy.names[taxonomy.index(level)], object)
      for word, key in (('true', 'multi_labels'), ('predicted', 'multi_pred')):
        rows = arrays[key][:, places] > 0
        columns[f'{level}_{word}'] = ['|'.join(names[row]) for row in rows]
  # of another taxonomy or damaged, which the page says
  except (KeyError, IndexError, StopIteration):
    return ''
  return csv_text([list(columns), *zip(*columns.values())])
