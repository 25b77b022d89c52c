"""Images of many requests, read and computed in batches by threads."""

import asyncio
import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from starlette.exceptions import HTTPException

from hierjax.data.image_groups import Batch
from hierjax.runtime import BATCH_SIZE, Exported, Outputs

# Images that are computed at once, which bounds the memory on machines with many cores.
IMAGES = 4 * BATCH_SIZE


class Batcher:
  """Divides images among threads, each of which reads and computes a batch at a time.

  A thread that is free takes its share of the images that wait: few when many threads are free, so
  that none is idle, and up to `BATCH_SIZE` under load, all threads together up to `IMAGES`. The
  threads of onnxruntime help with any of the batches. At most `limit` images wait; `counts` has how
  many.
  """

  def __init__(self, model: Exported, limit: int, counts: Counter):
    self.model, self.limit, self.counts = model, limit, counts
    self._queue, self._free = asyncio.Queue(), 0

  async def predict(self, images: list[tuple[str, bytes]], rules: tuple[Exported, int]) -> list:
    """Return the records of named images as `model.predict` does by rules: (model, top)."""
    if self.counts['images_waiting'] + len(images) > self.limit:
      raise HTTPException(503, f'more than {self.limit} images wait', {'Retry-After': '1'})
    self.counts['images_waiting'] += len(images)
    loop = asyncio.get_running_loop()
    records = [loop.create_future() for _ in images]
    for image, record in zip(images, records):
      self._queue.put_nowait((image, rules, record))
    try:
      return await asyncio.gather(*records)
    finally:
      self.counts['images_waiting'] -= len(images)

  async def run(self) -> None:
    """Compute batches until cancelled; then end the threads."""
    count = os.cpu_count() or 1
    with ThreadPoolExecutor(count) as pool:
      async with asyncio.TaskGroup() as group:
        for _ in range(count):
          group.create_task(self._work(pool, min(BATCH_SIZE, max(1, IMAGES // count))))

  async def _work(self, pool, most):
    loop = asyncio.get_running_loop()
    while True:
      self._free += 1
      items = [await self._queue.get()]
      share = -(-(1 + self._queue.qsize()) // self._free)  # rounded up
      self._free -= 1
      while len(items) < min(share, most):
        items.append(self._queue.get_nowait())
      # without requests that were given up; equal rules are neighbours
      items = [item for item in items if not item[2].done()]
      items.sort(key=lambda item: (id(item[1][0]), item[1][1]))
      results = await loop.run_in_executor(pool, self._compute, items)
      for (*_, record), result in zip(items, results):
        if not record.done():
          answer = record.set_exception if isinstance(result, Exception) else record.set_result
          answer(result)
      self.counts.update(batches_total=1, batch_images_total=len(items))

  def _compute(self, items):
    """Return the records of a batch, or the error of each."""
    records = []
    try:
      batch = self.model.view.batch([image for image, *_ in items], len(items))
      if all(batch.errors):
        return self.model.records(batch, Outputs(np.arange(0), {}, {}))
      outputs = self.model.compute(batch)
      for (model, top), group in itertools.groupby(items, lambda item: item[1]):
        start = len(records)
        rows = slice(start, start + len(list(group)))
        part = Batch(batch.names[rows], None, batch.errors[rows])
        readable = slice(*np.searchsorted(outputs.index, (rows.start, rows.stop)))
        arrays = [{name: x[readable] for name, x in field.items()} for field in outputs[1:]]
        records += model.records(part, Outputs(outputs.index[readable] - start, *arrays), top)
    except Exception as e:  # whatever it is, the requests wait for it
      return [e] * len(items)
    return records
