"""Going back to a sound checkpoint of a run with other options of its optimisation."""

import pathlib

from hierjax import model
from hierjax.core import config, files, parallel
from hierjax.core.errors import UserError
from hierjax.experiments.workdir import FREE_ON_RESUME
from hierjax.train import checkpoint
from hierjax.train.setup import Setup

FLAG = '--resume_from'
# Neither the data nor the structure of the state depend on them.
CHANGEABLE = (
  *FREE_ON_RESUME,
  'seed',
  'data.augment.',
  'loss.',
  *(f'train.{name}' for name in 'epochs steps examples eval_ early_stop'.split()),
  *(f'optim.{name}' for name in 'lr heads_ momentum warmup_ clip weight_decay'.split()),
  *(f'optim.{name}' for name in 'onecycle_ plateau_'.split()),
)


def restart(workdir: pathlib.Path, setup: Setup, checkpoint_name: str | None) -> dict | None:
  """Let a run that is in a folder go on from an earlier checkpoint with other options.

  Later checkpoints are moved to WORKDIR/abandoned/ and config.json gets the new options. Where no
  option has changed nothing happens: the same command again goes on from the latest checkpoint.

  Args:
    workdir: the folder of the run.
    setup: the run with its new options.
    checkpoint_name: 'best', 'last', or None to leave the folder as it is.

  Returns:
    {'step', 'checkpoint', 'changed': [option and values]} for run.json, None where nothing
    happened.

  Raises:
    UserError: the folder holds no run, or an option has changed that the state depends on.
  """
  if checkpoint_name is None:
    return None
  flag = f'{FLAG}={checkpoint_name}'
  changed, error = parallel.exchange(_changes(workdir, setup) if parallel.first() else None)[0]
  if error:
    raise UserError(f'{flag}: {error}')
  if all(line.startswith(FREE_ON_RESUME) for line in changed):
    return None
  store = checkpoint.Checkpoints(workdir / 'checkpoints', setup.best, writes=True)
  step = store.rewind(checkpoint_name == 'best')
  store.close()
  if parallel.first():
    # last, so that the same command does all of it again where it was stopped before
    files.write(workdir / 'config.json', config.to_json(setup.c) + '\n')
  return {'step': step or 0, 'checkpoint': checkpoint_name, 'changed': changed}


def _changes(workdir: pathlib.Path, setup: Setup) -> tuple[list[str], str]:
  """The options that have changed, and what is wrong with that, '' for nothing."""
  if not (workdir / 'config.json').exists():
    return [], f'{workdir} holds no run; leave the flag out to begin one'
  changed = config.differences(model.run_config(workdir), setup.c)
  fixed = [line for line in changed if not line.startswith(CHANGEABLE)]
  if not fixed:
    return changed, ''
  return changed, (
    f'{"; ".join(fixed)}: only {", ".join(f"{name}*" for name in CHANGEABLE)} may change; '
    'give another --workdir or the old options'
  )


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
