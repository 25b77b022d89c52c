"""A whole experiment: train, evaluate, explain, train the baseline, report."""

import contextlib
import copy
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from hierjax import model
from hierjax.core import config, curriculum, parallel
from hierjax.core.errors import UserError
from hierjax.data import split_record
from hierjax.evaluate import answers, summary
from hierjax.experiments import plan, restart, run_lock
from hierjax.experiments.workdir import Record, current_time, disk_errors, has_run, prepare
from hierjax.models import adapting
from hierjax.report import page, runs
from hierjax.train import checkpoint, embedding, setup
from hierjax.train.interrupt import Interrupted, Signals
from hierjax.train.loop import Hook, Loop
from hierjax.train.state import eval_variables


def fit(
  c: ConfigDict,
  workdir: str | pathlib.Path,
  hooks: Sequence[Hook] = (),
  resume_from: str | None = None,
  splits_of: pathlib.Path | None = None,
) -> dict:
  """Train what a config describes, or continue a run, and evaluate and report it.

  The folder holds config.json, taxonomy.csv, splits.csv, run.json, metrics.jsonl, checkpoints/, and
  at the end eval_VAL.json, predictions_VAL.npz, explain_VAL.npz, decode.json, of prototype heads
  embedding_first.npz and embedding_last.npz, and report.html. With `baseline='train'` the baseline
  is in baseline/, and further seeds, each a run with its baseline, are in seedN/.

  Args:
    c: the config.
    workdir: the folder of the run.
    hooks: called during training.
    resume_from: 'best' or 'last', the checkpoint from which the run in the folder goes on with
      other options of its optimisation (`experiments.restart`).
    splits_of: the folder of a run whose split a new one takes over.

  Returns:
    The evaluation of the validation split, `step`, and `state_sha256`, the digest of the final
    state.

  Raises:
    UserError: a mistake in the options or the data, or a full disk.
    Interrupted: Ctrl-C, SIGTERM or SIGHUP came; the state is saved.
  """
  workdir, started = pathlib.Path(workdir), current_time()
  with disk_errors(workdir):
    source = workdir if has_run(workdir) else splits_of
    earlier = split_record.read(source) if source else None
    c, plan_notes = plan.for_run(c, workdir)
    run = setup.build(c, record=earlier)
    _check(c, workdir, run)
  with disk_errors(workdir), run_lock.RunLock(workdir) as lock:
    change = restart.restart(workdir, run, resume_from, earlier)
    data_digest = prepare(workdir, run, earlier)
    signals, all_hooks = Signals(), [lock, EmbeddingHook(workdir), *hooks]
    loop = Loop(run, workdir, signals, _teacher(workdir, run), all_hooks)
    record = Record(workdir, loop, started, data_digest, change)
    if source == workdir:
      loop.notes += split_record.notes(workdir, run.data, earlier)
    loop.notes += [*plan_notes, *lock.notes, *([restart.describe(change)] if change else [])]
    for note in loop.notes:
      loop.log.say(f'note: {note}')
    _train(loop, record, signals)
    lock.check()
    digest = checkpoint.sha256(loop.state)
    record.write(finished=current_time(), state_sha256=digest)
    result = finish(loop, workdir)
    if run.c.baseline == 'train':
      _fit_compared(loop, workdir, resume_from)
    if parallel.first():
      loop.log.say(f'report: {page.write(workdir)}')
    return {'step': loop.step, **result, 'state_sha256': digest}


def _fit_compared(loop: Loop, workdir: pathlib.Path, resume_from: str | None) -> None:
  """Train the baseline and the further seeds of a run, in folders within its own."""
  c = loop.run.c
  loop.log.say('training the baseline: one head, ancestors read off')
  runs_beside = {workdir / 'baseline': _with_full_batches(baseline_config(c), loop.run)}
  for seed in range(c.seed + 1, c.seed + c.baseline_seeds):
    options = copy.deepcopy(c)
    options.seed, options.baseline_seeds = seed, 1
    runs_beside[workdir / f'seed{seed}'] = options
  for folder, options in runs_beside.items():
    change = resume_from if (folder / 'config.json').exists() else None
    fit(options, folder, resume_from=change, splits_of=workdir)


def _with_full_batches(base: ConfigDict, run: setup.Setup) -> ConfigDict:
  """Leave images that cannot train one head out of its batches, and give it as many steps.

  Else an image without a finest label would take a place in a batch and have no loss there, which
  would make the baseline weaker than what one would train without a hierarchy.
  """
  train = run.train
  is_labelled = (train.labels[:, -1:] >= 0).all(1)
  if train.multi is not None or is_labelled.all() or not is_labelled.any():
    return base
  base.data.partial = 'drop'
  n, batch_size = len(train.labels), base.train.batch_size
  for node, prefix in ((base.train, ''), (base.train, 'eval_'), (base.optim, 'warmup_')):
    duration = config.steps(node, prefix, n, batch_size, prefix)
    for unit in curriculum.UNITS:
      node[prefix + unit] = duration if unit == 'steps' else None
  return base


class EmbeddingHook(Hook):
  """Writes what the report draws of prototype heads at the first evaluation of a run.

  Args:
    workdir: the folder of the run.
  """

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / 'embedding_first.npz'
    self._is_written = parallel.exchange(self._path.exists())[0]

  def after_validation(self, loop: Loop, values: Mapping[str, float]) -> None:
    """Write the file, unless it exists.

    Args:
      loop: the training loop.
      values: the metrics.
    """
    if not self._is_written:
      embedding.write(self._path, loop.eval_step, eval_variables(loop.state), loop.run)
    self._is_written = True


def _check(c: ConfigDict, workdir: pathlib.Path, run: setup.Setup) -> None:
  """Refuse, before anything is trained, options that what follows cannot do."""
  answers.check(c, run.taxonomy)
  if c.baseline_seeds > 1 and c.baseline != 'train':
    raise UserError(
      f'--config.baseline_seeds={c.baseline_seeds}: is for --config.baseline=train, which trains '
      'a baseline for each seed'
    )
  if c.baseline not in (None, 'train') and not pathlib.Path(c.baseline, 'config.json').is_file():
    raise UserError(
      f"--config.baseline={c.baseline}: not a run (no config.json); choices: 'train', "
      'the folder of a run, or None'
    )
  is_migrated = all((workdir / name).exists() for name in ('migration.json', runs.START))
  if 'distill' in run.task.losses.terms and not is_migrated:
    raise UserError(
      f'--config.loss.terms=distill: {workdir} has nothing to hold on to; '
      'it is for runs that hierjax migrate has made'
    )


def _teacher(workdir: pathlib.Path, run: setup.Setup) -> dict:
  """Load the run that a migrated one began with, and which classes it knew; {} without one."""
  if 'distill' not in run.task.losses.terms:
    return {}
  classes = runs.read(workdir, baseline=False).migration['classes']
  is_known = {}
  for level in run.levels:
    names = run.taxonomy.names[run.taxonomy.index(level)]
    is_known[level] = np.array([classes[level][name]['kind'] != 'new' for name in names])
  start = model.load(workdir / runs.START).variables
  return {'variables': adapting.with_updates(start, run.variables), 'known': is_known}


def _train(loop: Loop, record: Record, signals: Signals) -> None:
  """Train to the end, and keep run.json up to date whatever happens."""
  with signals:
    record.write()
    try:
      loop.train()
      loop.checkpoints.wait()
    except BaseException:
      # the user is told the reason, not what follows from it
      with contextlib.suppress(UserError, OSError):
        loop.checkpoints.wait()
        record.write()
      raise
    finally:
      loop.close()
    loop.checkpoints.close()
    loop.log.close()
  # a signal that came while the last checkpoint was written, too late for the loop
  if loop.is_stop_requested():
    raise Interrupted(signals.received, loop.step)


def finish(loop: Loop, workdir: pathlib.Path) -> dict:
  """Evaluate the best checkpoint on the validation split, explain it, and log the scores."""
  run, split = loop.run, loop.run.c.data.val
  if loop.unreadable:
    names = ', '.join(sorted(loop.unreadable)[:5])
    more = ' ...' if len(loop.unreadable) > 5 else ''
    loop.log.say(
      f'{len(loop.unreadable)} unreadable image(s) skipped: {names}{more} '
      f'(all in {workdir}/run.json; hierjax lint says why)'
    )
  trained = model.load(workdir)
  result = trained.evaluate(split, examples=run.val, tune=True)
  start = f'{split}, {result["n"]} images'
  for name, decision in result['decode'].items():
    accuracies = ' '.join(
      f'{level} {values["top1"]:.4f}'
      for level, values in decision['levels'].items()
      if values['top1'] is not None
    )
    loop.log.say(
      f'{start}, {name}: {accuracies} full path {decision["fpa"] or 0:.4f} '
      f'HVR {decision["hvr"]:.4f}'
    )
  if 'calibration' in result:
    loop.log.say(f'{start}, joint: {summary.describe_weights(result)}')
    loop.log.say(f'{start}, joint: {summary.describe_calibration(result)}')
  if 'answers' in result:
    loop.log.say(f'{start}, {answers.describe(result["answers"])}')
  if 'sets' in result:
    loop.log.say(f'{start}, {answers.describe_sets(result["sets"])}')
  for level, values in result.get('multi', {}).items():
    loop.log.say(
      f'{start}, {level}: mAP macro {values["map_macro"] or 0:.4f} '
      f'micro {values["map_micro"] or 0:.4f}; macro F1 '
      f'{values["before"]["f1_macro"] or 0:.4f} at .5, '
      f'{values["after"]["f1_macro"] or 0:.4f} at the tuned thresholds'
    )
  trained.explain(split, examples=run.val)
  embedding.write(workdir / 'embedding_last.npz', trained.eval_step, trained.variables, run)
  return result


def baseline_config(c: ConfigDict) -> ConfigDict:
  """Configure a run without the hierarchy: one linear head on the finest level.

  Args:
    c: the config of the run to compare with.

  Returns:
    A copy with plain cross-entropy, without phases, terms and balancer.
  """
  default = config.default()
  b = copy.deepcopy(c)
  b.baseline, b.baseline_seeds = default.baseline, 1
  b.train.best = 'top1/finest'
  b.model.heads, b.model.head = 'flat', default.model.head
  b.model.parts, b.model.normalize = (), False
  b.optim.heads_lr = b.optim.heads_growth = 1.0
  b.loss, b.balance, b.curriculum = default.loss, default.balance, default.curriculum
  return b
