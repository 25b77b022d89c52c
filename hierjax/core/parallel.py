"""Several processes, the mesh, and arrays over it: one axis, `data`; parameters replicated, batches split.

Every process runs the same program on its own rows of each batch. What reads or decides something on the host must come out the same on all of them, or the
next collective waits for ever: `exchange` is for that.
"""

import ctypes
import json
import os
import pathlib
import re
import signal
import socket
import sys
import time
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hierjax.core.errors import UserError

AXIS = 'data'
LOST = 75  # exit status where another process is gone: EX_TEMPFAIL, "try again"
_abort = None  # the C handler of SIGABRT; kept from the garbage collector


def start(
  coordinator: str = '',
  processes: int | None = None,
  process: int | None = None,
  wait: int = 300,
  silence: int = 100,
) -> None:
  """Joins this process to the others, before any use of a device. Without arguments jax finds SLURM, Open MPI, GKE or Cloud TPU by itself.

  wait: seconds for all to come; silence: seconds without a sign of life after which a process counts as dead and all others stop.
  """
  explicit = bool(coordinator), processes is not None, process is not None
  if any(explicit) and not all(explicit):
    raise UserError(
      '--coordinator=HOST:PORT, --num_processes=N and --process_id=I go together: give all three, or none where the cluster is found by itself'
    )
  if coordinator:
    _check(coordinator, processes, process, wait)
  # The preemption service would swallow SIGTERM everywhere; who is to stop, and when, is agreed on in the training step.
  jax.config.update('jax_enable_preemption_service', False)
  _on_abort(
    f'not all processes came together within {wait} s (--start_timeout): were all of them started, and can they reach the coordinator'
    f'{", " + coordinator if coordinator else ""}?'
  )
  try:
    jax.distributed.initialize(
      coordinator or None,
      processes,
      process,
      initialization_timeout=wait,
      heartbeat_timeout_seconds=silence,
    )
  except (ValueError, RuntimeError) as e:
    said = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
    if 'should be defined' in said or 'must be defined' in said:
      said = 'found no cluster (SLURM, Open MPI, GKE, Cloud TPU)'
    raise UserError(
      f'--distributed: {said}; give --coordinator=HOST:PORT --num_processes=N --process_id=I, or leave --distributed out'
    ) from e
  _on_abort(lost_text(silence))
  if (
    jax.default_backend() == 'cpu'
  ):  # from the cache, XLA's programs for CPUs run their collectives in an order of each process's own (jax 0.10.2)
    jax.config.update('jax_enable_compilation_cache', False)


def _check(coordinator: str, processes: int, process: int, wait: int) -> None:
  """The mistakes in explicit flags that jax would end the program for, without a word that helps."""
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UserError(f'--coordinator={coordinator}: not HOST:PORT')
  if not 0 <= process < processes:
    raise UserError(
      f'--process_id={process}: must be from 0 to {processes - 1}, as --num_processes={processes}'
    )
  end, address = time.monotonic() + wait, (host.strip('[]'), int(port))
  while True:
    try:
      if process == 0:
        socket.create_server(('', int(port))).close()
      else:
        socket.create_connection(address, timeout=max(end - time.monotonic(), 0.1)).close()
      return
    except OSError as e:
      if process == 0:
        raise UserError(
          f'--coordinator={coordinator}: process 0 cannot listen there ({e.strerror or e})'
        ) from e
      if time.monotonic() >= end:
        raise UserError(
          f'--coordinator={coordinator}: no answer within {wait} s ({e.strerror or e}): is process 0 running there? '
          '(--start_timeout=SECONDS waits longer)'
        ) from e
    time.sleep(min(1, max(end - time.monotonic(), 0)))


def _on_abort(text: str) -> None:
  """Says `text` when jax's runtime ends this process.

  The runtime does so from a thread of its own, with abort(), and tells Python nothing. So this is a handler in C, which abort() calls before it returns.
  """
  global _abort
  _abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(text, LOST))
  ctypes.CDLL(None).signal(signal.SIGABRT, _abort)


def _leave(text: str, code: int) -> None:
  print(f'\nerror: {text}', file=sys.stderr)
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(code)


def lost_text(silence: int | None = None) -> str:
  return (
    f'process {jax.process_index()} of {jax.process_count()} stops, since another one has stopped, died or cannot be reached'
    + (f' (for {silence} s, --peer_timeout, or its connection was closed)' if silence else '')
    + '; where that one gives no other reason, start all of them again with the same command: training goes on from its last checkpoint'
  )


def lost(error: BaseException) -> bool:
  """Whether a collective has failed, which is another process's death."""
  return jax.process_count() > 1 and bool(
    re.search(r'gloo|nccl|coordination.?service|barrier', str(error), re.IGNORECASE)
  )


def explain(error: BaseException) -> int:
  """Says why this process stops; returns its exit status. Another process's death has no traceback here that is worth reading."""
  if lost(error):
    print(f'error: {lost_text()} ({str(error).strip().splitlines()[0][:200]})', file=sys.stderr)
    return LOST
  traceback.print_exception(error)
  return 1


def stop(code: int, together: bool) -> None:
  """Ends a process that `start` has joined: `together` waits for the others, else it leaves at once, so that they notice and nobody waits for it."""
  if not jax.distributed.is_initialized():
    return
  if together:
    jax.distributed.shutdown()
  else:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def first() -> bool:
  """Whether this process is the one that writes files and logs."""
  return jax.process_index() == 0


def exchange(value) -> list:
  """What JSON can hold, of every process → all of them in the processes' order, on every process. All processes must call it at the same place."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  row = np.zeros(
    1 << int(lengths.max()).bit_length(), np.uint8
  )  # few sizes, so that few are compiled
  row[: len(data)] = data
  return [
    json.loads(r[:n].tobytes()) for r, n in zip(multihost_utils.process_allgather(row), lengths)
  ]


def check_same(workdir: pathlib.Path, facts: dict[str, str]) -> None:
  """UserError on all processes unless all have the same facts {name: value} and see process 0's files in the folder. Process 0 has made it."""
  seen = exchange({**facts, 'mark': f'.process0.{os.getpid()}.{time.time_ns()}'})
  for i, theirs in enumerate(seen):
    if other := [name for name in facts if theirs[name] != seen[0][name]]:
      raise UserError(
        f'process {i} has other {", ".join(other)} than process 0: start all processes with the same command, on the same data'
      )
  mark = workdir / seen[0]['mark']
  if first():
    mark.touch()
  exchange(None)  # by now it is there
  sees = exchange(mark.exists())
  if first():
    mark.unlink()
  if not all(sees):
    blind = ', '.join(str(i) for i, s in enumerate(sees) if not s)
    raise UserError(
      f'{workdir}: process(es) {blind} do not see what process 0 writes there; --workdir must be a folder that all share'
    )


def mesh() -> Mesh:
  """All devices of all processes on one axis. Auto axes: linen's Dropout does not run under Explicit ones."""
  return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(m: Mesh) -> NamedSharding:
  return NamedSharding(m, P())


def split(m: Mesh) -> NamedSharding:
  return NamedSharding(m, P(AXIS))


def check_batch(size: int, m: Mesh, option: str, micro: int = 1) -> None:
  if size % (m.size * micro):
    raise UserError(
      f'{option}={size} must be a multiple of {m.size} device(s)'
      + (f' x {micro} micro-batches' if micro > 1 else '')
    )


def put_batch(batch: dict[str, np.ndarray], m: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch → global arrays split over the mesh."""
  return {k: jax.make_array_from_process_local_data(split(m), v) for k, v in batch.items()}


def put_train(
  batch: dict[str, np.ndarray], flags: dict[str, bool], m: Mesh
) -> dict[str, jax.Array | dict[str, jax.Array]]:
  """What a training step takes of this process's batch, with flags {name: float32 [devices]}: 1 on this process's devices where raised."""
  raised = {name: np.full(len(m.local_devices), up, np.float32) for name, up in flags.items()}
  return {
    **put_batch({'image': batch['image'], 'labels': batch['labels']}, m),
    'flags': put_batch(raised, m),
  }


def put_replicated(tree, m: Mesh):
  """The same host values on every process → global replicated arrays. Copies, so that donating them later leaves the caller's values alone."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(replicated(m), np.array(x)), tree
  )


def gather(tree):
  """Global arrays split over processes → the whole, as numpy, on every process."""
  return (
    jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))
    if jax.process_count() > 1
    else jax.tree.map(np.asarray, tree)
  )
