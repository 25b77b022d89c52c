"""Several processes, the mesh, and arrays over it: the axes `data` and `model`.

Parameters are replicated, or shared out between steps; batches are split over both axes, and the
classes of the heads over `model`, which has one device unless `train.class_devices` asks for more.
Every process runs the same program on its own rows of each batch. What reads or decides something
on the host must come out the same on all of them, or the next collective waits for ever: `exchange`
is for that.
"""

import ctypes
import json
import math
import os
import pathlib
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hierjax.core import files, terminal
from hierjax.core.errors import UserError

AXIS = 'data'
CLASS_AXIS = 'model'  # over which the heads' classes are split
MIN_SHARED_OUT = 1 << 14  # values of an array; smaller ones are replicated
# as Kubeflow Trainer sets them; jax itself reads the first one only
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# exit status where another process is gone: EX_TEMPFAIL, "try again"
LOST = 75
# what the messages of failed collectives speak of
COLLECTIVES = re.compile('gloo|nccl|coordination.?service|barrier', re.IGNORECASE)
# the C handler of SIGABRT, referenced here so that Python does not collect it
_abort = None


def start(
  coordinator: str = '',
  processes: int | None = None,
  process: int | None = None,
  wait: int = 300,
  silence: int = 100,
) -> None:
  """Join this process to the others, before any use of a device.

  Without arguments `VARIABLES` tell them, or else jax finds SLURM, Open MPI, GKE or Cloud TPU.
  Where something has joined them before, they stay as they are.

  Args:
    coordinator: HOST:PORT of process 0.
    processes: the number of processes.
    process: which of them this is, from 0.
    wait: seconds for all to come.
    silence: seconds without a sign of life after which a process is dead and all others stop.

  Raises:
    UserError: the arguments don't fit, or the others cannot be reached.
  """
  explicit = bool(coordinator), processes is not None, process is not None
  if any(explicit) and not all(explicit):
    raise UserError(
      '--coordinator=HOST:PORT, --num_processes=N and --process_id=I go together: '
      'give all three, or none where the cluster is found by itself'
    )
  values = [os.environ.get(name, '') for name in VARIABLES]
  if not coordinator and values[0] and all(map(str.isdecimal, values[1:])):
    coordinator, processes, process = values[0], *map(int, values[1:])
  if coordinator:
    _check(coordinator, processes, process, wait)
  # the preemption service would swallow SIGTERM; the training step agrees on who stops when
  jax.config.update('jax_enable_preemption_service', False)
  address = f', {coordinator}' if coordinator else ''
  _on_abort(
    f'not all processes came together within {wait} s (--start_timeout): were all of them '
    f'started, and can they reach the coordinator{address}?'
  )
  try:
    limits = {'initialization_timeout': wait, 'heartbeat_timeout_seconds': silence}
    if not jax.distributed.is_initialized():  # an engine may have joined them: Ray Train does
      jax.distributed.initialize(coordinator or None, processes, process, **limits)
  except (ValueError, RuntimeError) as e:
    reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
    if 'should be defined' in reason or 'must be defined' in reason:
      reason = 'found no cluster (SLURM, Open MPI, GKE, Cloud TPU)'
    raise UserError(
      f'--distributed: {reason}; give --coordinator=HOST:PORT --num_processes=N --process_id=I, '
      'or leave --distributed out'
    ) from e
  _on_abort(lost_text(silence))
  # from the cache, XLA's programs for CPUs run their collectives in an order that differs between
  # processes (jax 0.10.2)
  if jax.default_backend() == 'cpu':
    jax.config.update('jax_enable_compilation_cache', False)


def _check(coordinator: str, processes: int, process: int, wait: int) -> None:
  """The mistakes in explicit flags for which jax would end the program without an explanation."""
  host, _, port = coordinator.rpartition(':')
  option = f'--coordinator={coordinator}'
  if not host or not port.isdigit():
    raise UserError(f'{option}: not HOST:PORT')
  if not 0 <= process < processes:
    raise UserError(
      f'--process_id={process}: must be from 0 to {processes - 1}, as --num_processes={processes}'
    )
  if process == 0:
    try:
      socket.create_server(('', int(port))).close()
    except OSError as e:
      reason = e.strerror or e
      raise UserError(f'{option}: process 0 cannot listen there ({reason})') from e
    return
  end, address = time.monotonic() + wait, (host.strip('[]'), int(port))
  while True:
    try:
      socket.create_connection(address, timeout=max(end - time.monotonic(), 0.1)).close()
      return
    except OSError as e:
      if time.monotonic() >= end:
        raise UserError(
          f'{option}: no answer within {wait} s ({e.strerror or e}): is process 0 running there? '
          '(--start_timeout=SECONDS waits longer)'
        ) from e
    time.sleep(min(1, max(end - time.monotonic(), 0)))


def _on_abort(text: str) -> None:
  """Print a text when jax's runtime ends this process.

  The runtime does so from a thread of its own, with abort(), and Python does not notice. So this is
  a handler in C, which abort() calls before it returns.
  """
  global _abort

  def handle(_):
    print(f'\nerror: {text}', file=sys.stderr)
    _leave(LOST)

  _abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
  ctypes.CDLL(None).signal(signal.SIGABRT, _abort)


def _leave(code: int) -> None:
  """End the process at once, with what it has printed."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def lost_text(silence: int | None = None) -> str:
  """Explain that this process stops because another one is gone.

  Args:
    silence: seconds after which a process counts as dead, if that is known.
  """
  reason = ''
  if silence:
    reason = f' (for {silence} s, --peer_timeout, or its connection was closed)'
  return (
    f'process {jax.process_index()} of {jax.process_count()} stops, since another one has stopped, '
    f'died or cannot be reached{reason}; where that one gives no other reason, start all of them '
    'again with the same command: training goes on from its last checkpoint'
  )


def is_lost_process(error: BaseException) -> bool:
  """Whether a collective has failed, which is another process's death."""
  return jax.process_count() > 1 and bool(COLLECTIVES.search(str(error)))


def explain(error: BaseException) -> int:
  """Print why this process stops; another one's death has no traceback that is worth reading.

  Args:
    error: what was raised.

  Returns:
    The exit status.
  """
  if is_lost_process(error):
    reason = str(error).strip().splitlines()[0][:200]
    terminal.say(f'error: {lost_text()} ({reason})')
    return LOST
  traceback.print_exception(error)
  return 1


def stop(code: int, together: bool) -> None:
  """End a process that `start` has joined.

  Args:
    code: its exit status.
    together: whether to wait for the others; else it leaves at once, so that they notice.
  """
  if not jax.distributed.is_initialized():
    return
  if together:
    jax.distributed.shutdown()
  else:
    _leave(code)


def use_compilation_cache() -> None:
  """Let jax cache what it compiles in ~/.cache/hierjax/jax, unless it has a folder for that.

  JAX_COMPILATION_CACHE_DIR names another one, and JAX_ENABLE_COMPILATION_CACHE=false does without.
  """
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(files.cache_folder('jax')))
  # with several CPU devices in a process, programs from the cache confuse their collectives
  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    jax.config.update('jax_enable_compilation_cache', False)
  least = min(0.5, jax.config.jax_persistent_cache_min_compile_time_secs)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


def first() -> bool:
  """Whether this process is the one that writes files and logs."""
  return jax.process_index() == 0


def exchange(value: Any) -> list:
  """Gather a value of every process on every process. All must call it at the same place.

  Args:
    value: what JSON can hold.

  Returns:
    The values in the order of the processes.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  # few sizes, so that few programs are compiled
  row = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)
  row[: len(data)] = data
  rows = multihost_utils.process_allgather(row)
  return [json.loads(r[:n].tobytes()) for r, n in zip(rows, lengths)]


def check_same(workdir: pathlib.Path, facts: Mapping[str, str]) -> None:
  """Check that all processes have the same facts, and see process 0's files in a folder.

  Args:
    workdir: the folder, which process 0 has made.
    facts: {what it is: value}.

  Raises:
    UserError: on all processes, where one differs.
  """
  all_facts = exchange({**facts, 'mark': f'.process0.{os.getpid()}.{time.time_ns()}'})
  for i, others in enumerate(all_facts):
    different = [name for name in facts if others[name] != all_facts[0][name]]
    if different:
      raise UserError(
        f'process {i} has other {", ".join(different)} than process 0: '
        'start all processes with the same command, on the same data'
      )
  mark = workdir / all_facts[0]['mark']
  if first():
    mark.touch()
  exchange(None)  # until it exists
  blind = [str(i) for i, is_visible in enumerate(exchange(mark.exists())) if not is_visible]
  if first():
    mark.unlink()
  if blind:
    raise UserError(
      f'{workdir}: process(es) {", ".join(blind)} do not see what process 0 writes there; '
      '--workdir must be a folder that all share'
    )


def mesh(class_devices: int | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Put devices on the two axes.

  Args:
    class_devices: how many share out the classes, `train.class_devices`; None is one.
    devices: None is all devices of all processes.

  Raises:
    UserError: they are no multiple of class_devices.
  """
  devices, of_classes = devices or jax.devices(), class_devices or 1
  if len(devices) % of_classes:
    raise UserError(
      f'--config.train.class_devices={class_devices}: the number of devices, {len(devices)}, must '
      'be a multiple of it'
    )
  # Auto axes: linen's Dropout does not run under Explicit ones
  shape, axis_types = (len(devices) // of_classes, of_classes), (AxisType.Auto,) * 2
  return jax.make_mesh(shape, (AXIS, CLASS_AXIS), axis_types, devices=devices)


def replicated(m: Mesh) -> NamedSharding:
  """Return the sharding of parameters: each device has all of them."""
  return NamedSharding(m, P())


def shared_out(
  shape: Sequence[int], m: Mesh, axes: tuple[str, ...] = (CLASS_AXIS, AXIS)
) -> NamedSharding:
  """Return the sharding of an array of which each device along some axes holds a part.

  It is cut along its longest axis that these devices divide evenly; a small array, or one without
  such an axis, is replicated.

  Args:
    shape: of the array.
    m: the devices.
    axes: of the mesh; () replicates.
  """
  num_parts = math.prod(m.shape[axis] for axis in axes)
  even_lengths = [length if length % num_parts == 0 else 0 for length in shape]
  if num_parts == 1 or math.prod(shape) < MIN_SHARED_OUT or not any(even_lengths):
    return replicated(m)
  axis = even_lengths.index(max(even_lengths))
  whole_axes = [None] * axis
  return NamedSharding(m, P(*whole_axes, axes))


def split(m: Mesh) -> NamedSharding:
  """Return the sharding of a batch: each device has its rows."""
  return NamedSharding(m, P((AXIS, CLASS_AXIS)))


def check_batch(size: int, m: Mesh, option: str, micro: int = 1) -> None:
  """Check that a batch can be split evenly.

  Args:
    size: of the batch.
    m: the devices.
    option: its option, for the error.
    micro: the number of micro-batches.

  Raises:
    UserError: it cannot.
  """
  if size % (m.size * micro):
    parts = f' x {micro} micro-batches' if micro > 1 else ''
    raise UserError(f'{option}={size} must be a multiple of {m.size} device(s){parts}')


def put_batch(batch: Mapping[str, np.ndarray], m: Mesh) -> dict[str, jax.Array]:
  """Put this process's rows of a batch into global arrays split over the mesh."""
  return {k: jax.make_array_from_process_local_data(split(m), v) for k, v in batch.items()}


def put_images(images: np.ndarray, m: Mesh) -> jax.Array | np.ndarray:
  """Put this process's rows of images where a step that only reads them takes them from.

  On one device that is where they are: a compiled function takes arrays of the host faster than it
  takes those that were put onto the device before (.8 ms less for one image on a CPU).
  """
  return images if m.size == 1 else put_batch({'x': images}, m)['x']


def put_train(
  batch: Mapping[str, np.ndarray], flags: Mapping[str, bool], m: Mesh
) -> dict[str, jax.Array | dict[str, jax.Array]]:
  """Put what a training step takes onto the mesh.

  Args:
    batch: this process's rows, with 'image' and 'labels'.
    flags: {name: whether this process raises it}.
    m: the devices.

  Returns:
    'image', 'labels', and 'flags' {name: float32 [devices]}, 1 on this process's devices where
    raised.
  """
  raised = {}
  for name, is_raised in flags.items():
    raised[name] = np.full(len(m.local_devices), is_raised, np.float32)
  images = {'image': batch['image'], 'labels': batch['labels']}
  return {**put_batch(images, m), 'flags': put_batch(raised, m)}


def put(tree: Any, shardings: Any) -> Any:
  """Put the same host values of every process into global arrays.

  They are copied, so that donating them later leaves the caller's values alone.

  Args:
    tree: of arrays.
    shardings: the sharding of each, in a tree of the same structure.
  """

  def put_one(x, sharding):
    x = np.array(x)
    return jax.make_array_from_process_local_data(sharding, x, x.shape)

  return jax.tree.map(put_one, tree, shardings)


def put_replicated(tree: Any, m: Mesh) -> Any:
  """Put the same host values of every process into replicated arrays; see `put`."""
  return put(tree, jax.tree.map(lambda _: replicated(m), tree))


def to_host(x: Any) -> np.ndarray:
  """Return an array on the host; all processes must ask for one that is shared out over them."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def local(tree: Any) -> Any:
  """Return this process's rows of arrays that are split over the mesh, as numpy."""

  def rows(x):
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])

  return jax.tree.map(np.asarray if jax.process_count() == 1 else rows, tree)


def gather(tree: Any) -> Any:
  """Put the rows of numpy arrays of all processes, as many each, together on every process."""
  if jax.process_count() == 1:
    return tree
  # in words of at most four bytes, as devices have no larger numbers
  words = jax.tree.map(lambda x: np.ascontiguousarray(x).view(f'u{min(x.itemsize, 4)}'), tree)
  words = multihost_utils.process_allgather(words, tiled=True)
  return jax.tree.map(lambda x, all_words: np.asarray(all_words).view(x.dtype), tree, words)
