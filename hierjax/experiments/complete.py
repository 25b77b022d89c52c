"""What the report of a run needs and the run lacks."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from hierjax import model
from hierjax.evaluate import example_images
from hierjax.report import runs


def complete(
  workdir: str | pathlib.Path, c: ConfigDict, progress: Callable[[int, int], None] | None = None
) -> None:
  """Evaluate and explain the first split of a run (val without any), where that is missing.

  Args:
    workdir: the folder of the run.
    c: its configuration, with other options of data and eval.
    progress: called with the numbers of images that are done and that there are.

  Raises:
    UserError: the model or the split cannot be read.
  """
  workdir, run = pathlib.Path(workdir), runs.read(workdir, baseline=False)
  split, exclusive = run.splits[0] if run.splits else c.data.val, run.exclusive
  # Of tags alone there are no single images to show.
  if not exclusive and run.splits:
    return
  predictions = exclusive.predicted if exclusive else None
  is_evaluated = predictions is not None and example_images.head_columns(predictions)
  if is_evaluated and example_images.is_current(workdir, split):
    return
  trained = model.load(workdir, c)
  examples = trained.split(split)
  if not is_evaluated:
    is_untuned = split == c.data.val and not (workdir / 'decode.json').exists()
    trained.evaluate(split, examples, tune=is_untuned, progress=progress)
  trained.explain(split, examples)
