"""Going back to a sound checkpoint of a run with other options of its optimisation."""

import pathlib

from hierjax.core import parallel
from hierjax.core.errors import UserError
from hierjax.data import split_record
from hierjax.experiments.workdir import (
  CHANGEABLE,
  FREE_ON_RESUME,
  conflict,
  differences,
  write_options,
)
from hierjax.train import checkpoint
from hierjax.train.setup import Setup

FLAG = '--resume_from'


def restart(
  workdir: pathlib.Path,
  setup: Setup,
  checkpoint_name: str | None,
  record: split_record.Record | None = None,
) -> dict | None:
  """Let a run that is in a folder go on from an earlier checkpoint with other options.

  Later checkpoints are moved to WORKDIR/abandoned/ and config.json gets the new options. Where no
  option has changed nothing happens: the same command again goes on from the latest checkpoint.

  Args:
    workdir: the folder of the run.
    setup: the run with its new options.
    checkpoint_name: 'best', 'last', or None to leave the folder as it is.
    record: of the data that the run was made with, None without one.

  Returns:
    {'step', 'checkpoint', 'changed': [option and values]} for run.json, None where nothing
    happened.

  Raises:
    UserError: the folder holds no run, or data or options that the state depends on changed.
  """
  if checkpoint_name is None:
    return None
  flag = f'{FLAG}={checkpoint_name}'
  changed, error = [], ''
  if parallel.first() and not (workdir / 'config.json').exists():
    error = f'{workdir} holds no run; leave the flag out to begin one'
  elif parallel.first():
    changed = differences(workdir, setup)
    error = conflict(workdir, setup, record, CHANGEABLE)
  # what the first process has read counts for all
  changed, error = parallel.exchange((changed, error))[0]
  if error:
    raise UserError(f'{flag}: {error}')
  if all(line.startswith(FREE_ON_RESUME) for line in changed):
    return None
  store = checkpoint.Checkpoints(workdir / 'checkpoints', setup.best, writes=True)
  step = store.rewind(checkpoint_name == 'best')
  store.close()
  if parallel.first():
    # last, so that the same command does all of it again where it was stopped before
    write_options(workdir, setup)
  return {'step': step or 0, 'checkpoint': checkpoint_name, 'changed': changed}


def describe(result: dict) -> str:
  """Describe in a line what `restart` did.

  Args:
    result: what it returned.
  """
  return (
    f'goes on from step {result["step"]}, the {result["checkpoint"]} checkpoint, with other '
    f'options ({"; ".join(result["changed"])}): not what a run with these options from the start '
    'would be'
  )
