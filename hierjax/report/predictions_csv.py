"""The predictions on a split as a table with the names of the classes."""

import csv
import io

import numpy as np

from hierjax.report.runs import Run

SEPARATOR = '|'  # between the classes of a tag level


def table(run: Run, split: str) -> str:
  """Return predictions_SPLIT.npz as CSV, a line an image.

  Of every exclusive level there are the true class, the predicted one (by the joint decision, or
  the one that there is), its probability, and whether it is right, 0 or 1; of a tag level the true
  and the predicted classes. What is unknown is empty.

  Args:
    run: the run.
    split: the split.

  Returns:
    The table; '' without predictions of this taxonomy.
  """
  arrays = run.predictions(split)
  if arrays is None or run.taxonomy is None or 'files' not in arrays:
    return ''
  columns = {'file': arrays['files'].tolist()}
  decision = next((d for d in ('joint', 'leaf', 'independent') if f'pred_{d}' in arrays), None)
  exclusive = run.taxonomy.block('exclusive')
  if exclusive and decision:
    values = arrays['labels'], arrays[f'pred_{decision}'], arrays[f'prob_{decision}']
    for k, level in enumerate(exclusive.taxonomy.levels):
      names = np.array([*exclusive.taxonomy.names[k], ''], object)
      true, predicted, prob = (array[:, k] for array in values)
      columns[f'{level}_true'] = names[true]
      columns[f'{level}_predicted'] = names[predicted]
      columns[f'{level}_probability'] = [f'{p:.4f}' for p in prob.tolist()]
      columns[f'{level}_correct'] = np.where(true < 0, '', np.int8(true == predicted).astype(str))
  for level, places in getattr(run.taxonomy, 'columns', {}).items():
    names = run.taxonomy.names[run.taxonomy.index(level)]
    for word, key in (('true', 'multi_labels'), ('predicted', 'multi_pred')):
      if key in arrays:
        columns[f'{level}_{word}'] = [_joined(names, row) for row in arrays[key][:, places]]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(zip(*columns.values()))
  return text.getvalue()


def _joined(names, row: np.ndarray) -> str:
  return SEPARATOR.join(names[c] for c in np.flatnonzero(row > 0))
