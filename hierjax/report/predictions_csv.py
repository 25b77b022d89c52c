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
    if run.exclusive:
      columns |= _exclusive_columns(arrays, run.exclusive.taxonomy)
    for level, places in getattr(taxonomy, 'columns', {}).items():
      names = np.array(taxonomy.names[taxonomy.index(level)], object)
      for word, key in (('true', 'multi_labels'), ('predicted', 'multi_pred')):
        rows = arrays[key][:, places] > 0
        columns[f'{level}_{word}'] = ['|'.join(names[row]) for row in rows]
  # of another taxonomy or damaged, which the page says
  except (KeyError, IndexError, StopIteration):
    return ''
  return csv_text([list(columns), *zip(*columns.values())])


def _exclusive_columns(arrays, taxonomy):
  """Return the columns of the exclusive levels, {name: values}."""
  decision = next(name for name in ('joint', 'leaf', 'independent') if f'pred_{name}' in arrays)
  columns = {}
  for k, level in enumerate(taxonomy.levels):
    true = arrays['labels'][:, k]
    pred = arrays[f'pred_{decision}'][:, k]
    # the last name is that of an unknown label, -1
    names = np.array([*taxonomy.names[k], ''], object)
    is_right = (true == pred).astype(int).astype(str)
    columns[f'{level}_true'] = names[true]
    columns[f'{level}_predicted'] = names[pred]
    columns[f'{level}_probability'] = [f'{p:.4f}' for p in arrays[f'prob_{decision}'][:, k]]
    columns[f'{level}_correct'] = np.where(true < 0, '', is_right)
  return columns
