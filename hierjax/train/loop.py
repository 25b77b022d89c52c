"""The training loop: steps, evaluations, checkpoints and the log."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from hierjax.core import metrics, parallel
from hierjax.core.errors import UserError, listing
from hierjax.data import sources
from hierjax.evaluate import collect, summary
from hierjax.train import checkpoint, chrono, log, optim, setup
from hierjax.train.interrupt import Interrupted, Signals
from hierjax.train.setup import Setup
from hierjax.train.state import TrainState, eval_variables, from_parts, to_parts, variables
from hierjax.train.step import stepper


class Hook:
  """What a caller adds to the loop; each method does nothing by default."""

  def after_step(self, loop: 'Loop') -> None:
    """Called when a step has been started; `loop.step` counts it."""

  def after_validation(self, loop: 'Loop', values: Mapping[str, float]) -> None:
    """Called with the metrics of each evaluation, before the state is saved."""


class Saver:
  """Saves the state of a run, each step at most once.

  Args:
    checkpoints: where to.
    minutes: the longest time between two saves, None for any.
    last_step: the step of the last save, None before the first.

  Attributes:
    seconds: the time that the loop was blocked by saving.
    is_requested: whether all processes know that it is time to save.
  """

  def __init__(
    self, checkpoints: checkpoint.Checkpoints, minutes: float | None, last_step: int | None
  ):
    self.checkpoints, self.seconds, self.is_requested = checkpoints, 0.0, False
    self._last_step, self._interval = last_step, 60 * minutes if minutes else math.inf
    self._due = time.monotonic() + self._interval

  def is_late(self) -> bool:
    """Whether the first process, whose clock decides, wants to save; told once."""
    is_due = parallel.first() and time.monotonic() > self._due
    if is_due:
      self._due = math.inf
    return is_due

  def save(self, step: int, state: TrainState, values: Mapping[str, float] | None) -> None:
    """Save a state.

    Args:
      step: its step.
      state: what to save.
      values: its val metrics, None where it has not been evaluated.
    """
    start = time.monotonic()
    if values or step != self._last_step:
      self.checkpoints.save(step, to_parts(state), values)
    self._last_step, self.is_requested = step, False
    self._due = time.monotonic() + self._interval
    self.seconds += time.monotonic() - start


@dataclasses.dataclass
class Pending:
  """A step whose metrics are still on the device.

  Attributes:
    step: its number.
    metrics: {name: float32 []} on the device.
    index: the batch's examples.
    values: the metrics as floats, once they have been read.
  """

  step: int
  metrics: Mapping[str, jax.Array]
  index: np.ndarray
  values: dict[str, float] | None = None


class Loop:
  """Trains a setup from the latest checkpoint of its folder to the end.

  Args:
    run: what to train.
    workdir: the folder of the run.
    signals: tells of Ctrl-C and other signals.
    teacher: {'variables', 'known'} for distillation, {} without it.
    hooks: called after steps and evaluations.

  Attributes:
    state: the state of the training.
    step: its step, on the host.
    notes: what the user should know, of data and checkpoints.
    unreadable: names of the images that could not be read.
    log: where metrics and messages go.
    checkpoints: of the run.
    eval_step: the compiled evaluation step.
  """

  def __init__(
    self,
    run: Setup,
    workdir: pathlib.Path,
    signals: Signals,
    teacher: Mapping | None = None,
    hooks: Sequence[Hook] = (),
  ):
    self.run, self.workdir = run, workdir
    self._signals, self._hooks = signals, hooks
    self._teacher = parallel.put_replicated(teacher or {}, run.mesh)
    self._compile_timer = log.CompileTimer()
    self.checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', run.best, writes=True)
    self.state = setup.initial_state(run)
    saved_step, parts = self.checkpoints.load_latest(to_parts(self.state))
    if parts:
      self.state = from_parts(self.state, parts)
    self.step = int(self.state.step)
    self.log = log.Log(workdir, self.step, run.c)
    self.notes = [*run.notes, *self.checkpoints.notes]
    self.unreadable: set[str] = set()
    self.eval_step = collect.stepper(run.task.model, run.mesh, run.taxonomy)
    self._saver = Saver(self.checkpoints, run.c.train.save_minutes, saved_step)
    self._pending: Pending | None = None
    self._is_stopping = False
    self._seconds = 0.0
    self.log.say(self._first_line(bool(parts)))

  def _first_line(self, resumes: bool) -> str:
    run = self.run
    if resumes:
      return f'{self.workdir}: resuming at step {self.step} of {run.total_steps}'
    return (
      f'{self.workdir}: {run.c.model.backbone}, {run.num_params:,} parameters, '
      f'{len(run.train.labels):,} training images, {run.total_steps} steps, '
      f'{run.mesh.size} {jax.devices()[0].platform} device(s)'
    )

  def durations(self) -> dict[str, float]:
    """Return the seconds of this process in training, and of these in saving and compiling."""
    return {
      'seconds': self._seconds,
      'saving_seconds': self._saver.seconds,
      'compile_seconds': self._compile_timer.seconds,
    }

  def train(self) -> None:
    """Train to the end, or until early stopping.

    Raises:
      Interrupted: a signal came; the state is saved.
      UserError: a loss or gradient is not finite, or the disk is full.
    """
    for number, phase in enumerate(self.run.phases):
      is_over = self.step > phase.end or (self.step == phase.end and not self._is_due())
      if is_over or self._has_stopped_early():
        continue
      train, val = self._inputs(phase)
      if len(self.run.phases) > 1:
        self.log.say(f'phase {number + 1} of {len(self.run.phases)}, {phase.describe()}')
      start = time.monotonic()
      try:
        self._train_phase(phase, number, train, val)
      finally:
        self._seconds += time.monotonic() - start
      # a signal that came with the phase's last step
      if self.is_stop_requested():
        self._interrupt()

  def is_stop_requested(self) -> bool:
    """Whether a signal to stop has come to any of the processes."""
    return any(parallel.exchange(bool(self._signals.received)))

  def close(self) -> None:
    """Stop measuring; `durations` stay as they are."""
    self._compile_timer.close()

  def features(self, examples: sources.Examples) -> sources.Examples:
    """Compute the features of a split with the frozen backbone.

    Args:
      examples: a split of images.

    Returns:
      The split with features float32 [d] in place of its images.
    """
    self.log.say(
      f'computing the features of split {examples.name} once: '
      'the backbone is frozen and there is no augmentation'
    )
    outputs = collect.collect(
      self.eval_step,
      variables(self.state),
      examples,
      self.run.c,
      self.run.mesh,
      with_features=True,
      progress=self._progress,
      reduction=lambda outputs: dataclasses.replace(outputs, probs={}),
    )
    self.unreadable.update(outputs.broken)
    return sources.with_features(examples, outputs.features, outputs.index)

  def _inputs(self, phase: optim.Phase) -> tuple[sources.Examples, sources.Examples]:
    """The splits as a phase reads them: images, or the features of a frozen backbone."""
    train, val = self.run.train, self.run.val
    if phase.trains_backbone or self.run.c.data.augment.enabled:
      return train, val
    train = self.features(train)
    # an averaged backbone still moves towards the frozen one
    return train, val if self.state.ema else self.features(val)

  def _train_phase(
    self, phase: optim.Phase, number: int, train: sources.Examples, val: sources.Examples
  ) -> None:
    run, c, mesh, first_step = self.run, self.run.c, self.run.mesh, self.step
    tx = optim.transformation(c, run.task.labels, phase.freeze)
    placed = jax.tree.map(lambda x: x.sharding, self.state)
    train_step = stepper(run.task, phase, tx, mesh, placed)
    self._pending, compiled = None, self._compile_timer.seconds
    if self._is_due():
      self.evaluate(val)
      if self._has_stopped_early():
        return
    throughput = chrono.Throughput(c.train.batch_size, self.step)
    batches = setup.batches(run, train, self.step, phase.end)
    self.log.say('compiling (minutes the first time, seconds from the cache) ...')
    with contextlib.closing(batches):
      for batch in throughput.read(iter(batches)):
        self.unreadable.update(train.files[i] for i in batch['broken'] if i >= 0)
        # what this process wants all processes to do at the same step
        is_late, is_requested = self._saver.is_late(), self._signals.pop_save()
        flags = {'stop': bool(self._signals.received), 'save': is_requested or is_late}
        device_batch = parallel.put_train(batch, flags, mesh)
        self.state, step_metrics = train_step(self.state, device_batch, self._teacher)
        # the metrics of the step before are read while this one runs
        self._log_step(phase, number, throughput, train.files)
        self.step += 1
        self._pending = Pending(self.step, step_metrics, batch['index'])
        if self.step == first_step + 1:
          self._log_first_step(throughput, compiled)
        for hook in self._hooks:
          hook.after_step(self)
        is_due = self._is_due()
        with throughput.paused():
          self._evaluate_or_save(is_due, val, train.files)
        if is_due and self._has_stopped_early():
          self.log.say(f'early stop: no better {run.best} for {c.train.early_stop} evaluations')
          return
        if self._is_stopping:
          self._read_pending(train.files)
          self._interrupt()

  def _is_due(self) -> bool:
    """Whether this step is to be evaluated and has not been, as after an interrupted evaluation."""
    is_last = self.step == self.run.total_steps
    is_due = is_last or self.step % self.run.eval_steps == 0
    return is_due and self.step > int(self.state.monitor['evaluated'])

  def _has_stopped_early(self) -> bool:
    patience = self.run.c.train.early_stop
    return bool(patience) and int(self.state.monitor['bad']) >= patience

  def _read_pending(self, files: Sequence[str]) -> Pending | None:
    """Wait for the step that was started last: note its flags, stop where it is not finite."""
    pending = self._pending
    if pending is None or pending.values is not None:
      return pending
    # one transfer for all: an accelerator answers each question in turn
    values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
    self._is_stopping |= values.pop('stop') > 0
    self._saver.is_requested |= values.pop('save') > 0
    pending.values = values
    # a bad gradient has spoilt the parameters already
    if not (np.isfinite(values['loss']) and np.isfinite(values['grad_norm'])):
      names = listing((files[i] for i in pending.index), 8)
      raise UserError(
        f'NaN or infinity at step {pending.step}: loss {values["loss"]:.4g}, '
        f'gradient norm {values["grad_norm"]:.4g}, lr {values["lr"]:.3g}; '
        f'files of that batch: {names}. {self._way_back()}'
      )
    return pending

  def _check_finite(self) -> None:
    """Refuse to evaluate or save a state that holds NaN or infinity."""
    parts = to_parts(self.state)
    # what else is there may begin with an infinite value, as the best loss so far
    parts['rest'] = {path: x for path, x in parts['rest'].items() if 'opt_state' in path}
    if path := checkpoint.not_finite(parts):
      raise UserError(f'NaN or infinity in {path} at step {self.step}. {self._way_back()}')

  def _way_back(self) -> str:
    """Tell how a run goes on whose numbers are no longer finite."""
    latest, lr = self.checkpoints.latest(), self.run.c.optim.lr
    change = f'--config.optim.lr={lr / 10:.2g} or --config.optim.clip=1'
    if latest is None:
      return f'Nothing was saved before it: begin again in the same folder with {change}'
    return (
      f'The checkpoint of step {latest} is from before it: add --resume_from=best or '
      f'--resume_from=last, and {change}, to go on from there in the same folder'
    )

  def _log_step(
    self, phase: optim.Phase, number: int, throughput: chrono.Throughput, files: Sequence[str]
  ) -> None:
    """Log the metrics of the step before, every train.log_steps."""
    run, pending = self.run, self._read_pending(files)
    if pending is None or pending.step % run.c.train.log_steps:
      return
    if not throughput.has_steps(self.step):
      return
    values, epoch = pending.values, pending.step / run.steps_per_epoch
    rate = throughput.rate(self.step)
    images_left = (run.total_steps - self.step) * run.c.train.batch_size
    line = {
      'epoch': epoch,
      'phase': number,
      'images_per_s': rate.images_per_s,
      'data_wait': rate.data_wait,
      'compile_seconds': self._compile_timer.seconds,
      **log.memory(),
      **values,
    }
    self.log.write(pending.step, 'train', line)
    accuracies = ' '.join(f'{level} {values[f"acc/{level}"]:.3f}' for level in phase.levels)
    self.log.say(
      f'step {pending.step}/{run.total_steps} epoch {epoch:.2f} '
      f'loss {values["loss"]:.3f} {accuracies} lr {values["lr"]:.2g} | '
      f'{rate.images_per_s:.1f} images/s, '
      f'{chrono.clock(images_left / rate.images_per_s)} left'
    )
    throughput.restart(self.step)

  def _log_first_step(self, throughput: chrono.Throughput, compiled: float) -> None:
    """Log how long the first step took, which was compiled and so is not the training's rate."""
    jax.block_until_ready(self._pending.metrics)
    self.log.say(
      f'first step after {throughput.seconds:.1f} s, '
      f'of which {self._compile_timer.seconds - compiled:.1f} s compilation'
    )
    throughput.restart(self.step)

  def _evaluate_or_save(self, is_due: bool, val: sources.Examples, files: Sequence[str]) -> None:
    """Evaluate and save where that is due, or save where a process has asked for it."""
    if is_due:
      self._read_pending(files)
      self.evaluate(val)
      self._is_stopping |= self.is_stop_requested()
    elif self._saver.is_requested:
      self._read_pending(files)
      self._save()

  def _save(self) -> None:
    """Save a state that is not evaluated."""
    self._check_finite()
    self._saver.save(self.step, self.state, None)

  def _validate(self, val: sources.Examples) -> dict[str, float]:
    """The val metrics of the averaged variables, or of the current ones."""
    run = self.run
    self._check_finite()
    try:
      outputs = collect.collect(
        *(self.eval_step, eval_variables(self.state), val, run.c, run.mesh),
        progress=self._progress,
        reduction=lambda outputs: summary.reduce_to_log(outputs, run.taxonomy),
      )
    except collect.NotFiniteError as e:
      raise UserError(f'{e} (step {self.step}). {self._way_back()}') from None
    self.unreadable.update(outputs.broken)
    self._share_unreadable()
    values = summary.validate(outputs, run.taxonomy, run.task.weights)
    # what is decided by them must not depend on the rounding of another kind of processor
    return parallel.exchange(values)[0]

  def evaluate(self, val: sources.Examples) -> None:
    """Evaluate on the validation split, log it, and save."""
    run, start = self.run, time.monotonic()
    values, epoch = self._validate(val), self.step / run.steps_per_epoch
    for hook in self._hooks:
      hook.after_validation(self, values)
    seconds = time.monotonic() - start
    self.log.write(self.step, 'val', {'epoch': epoch, 'seconds': seconds, **values})
    value = values.get(run.best, metrics.worst(run.best))
    best, bad = float(self.state.monitor['best']), int(self.state.monitor['bad'])
    is_best = metrics.is_better(run.best, value, best)
    text = ' '.join(f'{name.removeprefix("top1/")} {x:.4f}' for name, x in values.items())
    self.log.say(
      f'val at step {self.step} (epoch {epoch:.2f}): {text}'
      + (f'  best {run.best} so far' if is_best else '')
    )
    monitor = {
      'best': np.float32(value if is_best else best),
      'bad': np.int32(0 if is_best else bad + 1),
      'evaluated': np.int32(self.step),
    }
    self.state = self.state.replace(monitor=parallel.put_replicated(monitor, run.mesh))
    if run.plateau:
      plateau = jax.device_get(self.state.plateau)
      _, plateau = run.plateau.update({}, plateau, value=values['loss'])
      plateau = parallel.put_replicated(jax.device_get(plateau), run.mesh)
      self.state = self.state.replace(plateau=plateau)
    self._saver.save(self.step, self.state, values)

  def _progress(self, *_) -> None:
    """Stop in the middle of a split; several processes finish it, as all must do the same."""
    if self._signals.received and jax.process_count() == 1:
      self._interrupt()

  def _share_unreadable(self) -> None:
    """Collect the names of unreadable images over all processes."""
    self.unreadable = set().union(*parallel.exchange(sorted(self.unreadable)))

  def _interrupt(self) -> None:
    """Save and stop."""
    self._save()
    self.checkpoints.wait()
    self._share_unreadable()
    raise Interrupted(self._signals.received, self.step)
