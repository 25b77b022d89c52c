"""Worker processes that read images: they outlive no parent, and a signal to all ends none."""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

import cv2

from hierjax.core.errors import UserError

BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
  """Start processes that inherit, and keep, that these signals are blocked.

  A signal to the group must not end one before the parent has saved, not even while it starts. The
  parent gets a signal of that moment right after it.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
  resource_tracker.ensure_running()  # it unblocks the first two
  signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(index: int = 0, count: int = 1) -> None:
  """Keep OpenCV to one thread, and end with the parent, however it ends: a worker's first call.

  Args:
    index, count: of the worker, as Grain passes them.
  """
  cv2.setNumThreads(1)
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def ordered_map(
  call: Callable, tasks: Iterable[tuple], threads: int = 2, workers: int = 0
) -> Iterator[Any]:
  """Call a function with each of many arguments, some calls ahead; the results are in order.

  Args:
    call: the function; with workers it is pickled, as are its arguments and results.
    tasks: the arguments of each call, without end if they like. They are taken in the caller's
      thread, at most two a thread or process ahead of the result that is waited for.
    threads: of this process.
    workers: processes in place of the threads; 0 for none.

  Yields:
    The results.

  Raises:
    UserError: a worker process has died.
  """
  pool = ThreadPoolExecutor(threads)
  if workers:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), start)
  pending, ahead = collections.deque(), 2 * (workers or threads)
  try:
    for task in tasks:
      with signals_blocked() if workers else contextlib.nullcontext():
        pending.append(pool.submit(call, *task))
      while pending and (len(pending) > ahead or pending[0].done()):
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  except BrokenProcessPool:
    raise UserError(
      'a process that reads images has died, perhaps for want of memory; --config.data.workers=0 '
      'reads with threads'
    ) from None
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
