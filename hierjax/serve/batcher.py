"""Images of many requests, read in threads and computed in batches."""

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from starlette.exceptions import HTTPException

from hierjax.data.image_groups import Batch
from hierjax.runtime import BATCH_SIZE, Exported, Outputs

# Seconds that the first image of a batch waits for those that are being read.
DELAY = 0.005


class Batcher:
  """Gathers images into batches, of which one is computed while the next are read.

  A batch begins when the one before it ends: with the images that are read by then, and those that
  come within `DELAY` if some are being read. At most `limit` images wait; `counts` has how many.
  """

  def __init__(self, model: Exported, limit: int, counts: Counter):
    self.model, self.limit, self.counts = model, limit, counts
    self._reading, self._queue = 0, asyncio.Queue()
    self._readers, self._computer = ThreadPoolExecutor(os.cpu_count()), ThreadPoolExecutor(1)

  async def predict(self, images: list[tuple[str, bytes]], rules: tuple[Exported, int]) -> list:
    """Return the records of named images as `model.predict` does by rules: (model, top)."""
    if self.counts['images_waiting'] + len(images) > self.limit:
      raise HTTPException(503, f'more than {self.limit} images wait', {'Retry-After': '1'})
    self.counts['images_waiting'] += len(images)
    try:
      return await asyncio.gather(*(self._record(image, rules) for image in images))
    finally:
      self.counts['images_waiting'] -= len(images)

  async def _record(self, image, rules):
    loop = asyncio.get_running_loop()
    self._reading += 1
    try:
      part = await loop.run_in_executor(self._readers, self.model.view.batch, [image], 1)
    finally:
      self._reading -= 1
    if part.errors[0]:
      return {'file': image[0], 'error': part.errors[0]}
    record = loop.create_future()
    self._queue.put_nowait((part, rules, record))
    return await record

  async def run(self) -> None:
    """Compute batches until cancelled; then end the threads."""
    loop = asyncio.get_running_loop()
    with self._readers, self._computer:
      while True:
        items = await self._gather()
        results = await loop.run_in_executor(self._computer, self._compute, items)
        for (*_, record), result in zip(items, results):
          if not record.done():
            is_error = isinstance(result, Exception)
            (record.set_exception if is_error else record.set_result)(result)
        self.counts.update(batches_total=1, batch_images_total=len(items))

  async def _gather(self):
    items = [await self._queue.get()]
    end = asyncio.get_running_loop().time() + DELAY
    with contextlib.suppress(TimeoutError):
      while len(items) < BATCH_SIZE and (self._reading or not self._queue.empty()):
        async with asyncio.timeout_at(end):
          items.append(await self._queue.get())
    # without requests that were given up; equal rules are neighbours
    items = [item for item in items if not item[2].done()]
    return sorted(items, key=lambda item: (id(item[1][0]), item[1][1]))

  def _compute(self, items):
    """The records of a batch, or the error of each."""
    names, records = [part.names[0] for part, *_ in items], []
    try:
      pixels = [part.pixels for part, *_ in items]
      outputs = items and self.model.compute(
        Batch(names, np.concatenate(pixels), [''] * len(items))
      )
      for (model, top), group in itertools.groupby(items, lambda item: item[1]):
        n, start = len(list(group)), len(records)
        rows = slice(start, start + n)
        parts = [{name: x[rows] for name, x in part.items()} for part in outputs[1:]]
        batch = Batch(names[rows], None, [''] * n)
        records += model.records(batch, Outputs(np.arange(n), *parts), top)
    except Exception as e:  # whatever it is, the requests wait for it
      return [e] * len(items)
    return records
