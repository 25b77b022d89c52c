"""What the report of a run needs and the run lacks."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from hierjax import model
from hierjax.core.errors import UserError
from hierjax.evaluate import example_images
from hierjax.report import runs


def complete(
  workdir: str | pathlib.Path,
  c: ConfigDict,
  progress: Callable[[int, int], None] | None = None,
  is_root_given: bool = True,
) -> None:
  """Evaluate and explain the first split of a run (val without any), where that is missing.

  Args:
    workdir: the folder of the run.
    c: its configuration, with other options of data and eval.
    progress: called with the numbers of images that are done and that there are.
    is_root_given: whether the user, not only the run, names the data; else those outside the
      working directory and on the hub are not opened.

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
  if not is_root_given:
    _check_root(workdir, c.data.root)
  trained = model.load(workdir, c)
  examples = trained.split(split)
  if not is_evaluated:
    is_untuned = split == c.data.val and not (workdir / 'decode.json').exists()
    trained.evaluate(split, examples, tune=is_untuned, progress=progress)
  trained.explain(split, examples)


def _check_root(workdir, root):
  """Refuse data that a run of a stranger could name to have them fetched or shown."""
  if not root:
    return
  folder = pathlib.Path(root).expanduser().resolve()
  if not root.startswith(('hf:', 'tfds:')) and folder.is_relative_to(pathlib.Path.cwd()):
    return
  raise UserError(
    f'{workdir}: has no complete evaluation, and its data, {root}, are not in the working '
    f'directory; if you trust the run, --config.data.root={root} reads them'
  )
