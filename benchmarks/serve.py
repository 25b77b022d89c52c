"""The server under load: latency and rate of good clients, and what hostile ones do to it.

usage: serve.py FOLDER [--clients 1 8 64] [--seconds 60] [--hostile 600] [--connections 1000]

FOLDER is what `hierjax export` wrote. Printed are the rate of the runtime alone, in batches of 32,
and its CPU time an image; then for each number of clients, each of which sends a JPEG of 500 x 375
as soon as it has the answer to the one before, p50 and p99 of the latency in ms, images a second,
their share of the runtime's rate, and the CPU time of the server an image. Under hostile load: the
answers by kind of request and status (0: the server closed the connection), the wrong ones, the
latency of good clients beside it, and the memory of the server before, at most and after. The
clients run on the same cores as the server.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import simplejpeg

from hierjax import runtime

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOOD = 4  # clients beside the hostile ones
HOSTILE = 4  # clients of each hostile kind
PART = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.jpg"\r\n\r\n'


def picture() -> bytes:
  """Draw a JPEG whose size in bytes is that of a photo."""
  rng = np.random.default_rng(0)
  small = rng.integers(64, 192, (375 // 5, 500 // 5, 3), np.uint8)
  return simplejpeg.encode_jpeg(np.ascontiguousarray(small.repeat(5, 0).repeat(5, 1)), 60)


def head(
  length: int | str, kind: str = 'multipart/form-data; boundary=x', path='/predict'
) -> bytes:
  """The head of a request."""
  lines = (f'POST {path} HTTP/1.1', 'Host: localhost', f'Content-Type: {kind}')
  return '\r\n'.join([*lines, f'Content-Length: {length}', '', '']).encode()


def form(image: bytes) -> bytes:
  """A whole request with an image."""
  body = PART + image + b'\r\n--x--\r\n'
  return head(len(body)) + body


async def answer(reader: asyncio.StreamReader) -> int:
  """Read an answer; its status, or 0 where the connection has ended."""
  try:
    lines = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').lower().split('\r\n')
    length = [line.split(':')[1] for line in lines if line.startswith('content-length')]
    await reader.readexactly(int(length[0]) if length else 0)
    return int(lines[0].split()[1])
  except (asyncio.IncompleteReadError, ConnectionError):
    return 0


async def good_client(port: int, request: bytes, end: float, latencies: list) -> None:
  """Send a request after the other, and note (status, seconds)."""
  reader = writer = None
  while time.monotonic() < end:
    start = time.monotonic()
    if writer is None:
      reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(request)
    status = await answer(reader)
    latencies.append((status, time.monotonic() - start))
    if status == 0:
      writer = None
  if writer:
    writer.close()


def bomb() -> bytes:
  """A PNG whose header claims 3.6 gigapixels."""
  chunk = b'IHDR' + struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + bytes(200)


def json_request(body: bytes) -> bytes:
  """A request of JSON."""
  return head(len(body), 'application/json') + body


def kinds(image: bytes) -> dict:
  """{kind: (pieces that are sent, seconds between them, statuses that are right)}; 0: closed.

  The server may refuse before it has read all, and closes what does not end in time.
  """
  upload, huge = form(image), [b'a' * 65_536] * 2000
  return {
    'truncated image': ([form(image[: len(image) // 2])], 0, {200}),
    'bomb': ([form(bomb())], 0, {200}),
    'truncated body': ([upload[: len(upload) // 2], None], 0, {0, 499}),
    'huge, announced': ([head(10**10), *huge], 0, {413, 0}),
    'huge form': ([head(10**10) + PART, *huge], 0, {413, 0}),
    'wrong type': ([head(10, 'image/png') + bytes(10)], 0, {415}),
    'no form': ([head(10) + bytes(10)], 0, {422}),
    'brackets': ([json_request(b'[' * 10**6)], 0, {413}),
    'NaN': ([json_request(b'{"images": NaN}')], 0, {422}),
    'no HTTP': ([b'\x16\x03\x01' + bytes(100) + b'\r\n\r\n'], 0, {400}),
    'wrong class': ([upload.replace(b'/predict', b'/predict?classes=no%20such')], 0, {422}),
    'wrong risk': ([upload.replace(b'/predict', b'/predict?risk=x')], 0, {400}),
    'other host': ([upload.replace(b'localhost', b'evil.example')], 0, {421}),
    'slow head': ([bytes([c]) for c in upload[:400]], 1, {0}),
    'slow body': ([upload[:300], *(bytes([c]) for c in upload[300:700])], 1, {504, 0}),
    'aborted': ([upload[:2000], None], 0.05, {0}),
    'no reader': ([upload] * 50 + [None], 0, {0, 200}),
  }


async def send(writer: asyncio.StreamWriter, case: tuple, task: asyncio.Task, end: float) -> None:
  """Send the pieces of a request until it is answered; `None` aborts the connection."""
  pieces, pause, _ = case
  for piece in pieces:
    if task.done() or time.monotonic() > end:
      return
    if piece is None:
      writer.transport.abort()
      return
    writer.write(piece)
    await writer.drain()
    await asyncio.sleep(pause)


async def hostile_client(port: int, case: tuple, end: float, statuses: dict) -> None:
  """Send requests of a kind, each on a connection of its own."""
  while time.monotonic() < end:
    status = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
      reader, writer = await asyncio.open_connection('127.0.0.1', port)
      task = asyncio.create_task(answer(reader))
      with contextlib.suppress(ConnectionError):
        await send(writer, case, task, end + 20)
      async with asyncio.timeout(90):
        status = await task
      writer.transport.abort()
    statuses[status] += 1
    await asyncio.sleep(0.05)


async def idle(port: int, count: int, end: float) -> None:
  """Hold connections that send nothing, and open new ones where the server closes them."""

  async def one():
    while time.monotonic() < end:
      with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        async with asyncio.timeout(max(0, end - time.monotonic())):
          await reader.read(1)
        writer.close()
      await asyncio.sleep(0.1)

  await asyncio.gather(*(one() for _ in range(count)))


def memory(pid: int) -> float:
  """The resident memory of a process in MiB."""
  (line,) = (
    x for x in pathlib.Path(f'/proc/{pid}/status').read_text().splitlines() if 'RSS' in x[:6]
  )
  return int(line.split()[1]) / 1024


async def watch(pid: int, end: float) -> float:
  """The largest memory until the end."""
  largest = 0.0
  while time.monotonic() < end:
    largest = max(largest, memory(pid))
    await asyncio.sleep(0.5)
  return largest


def cpu(pid: int) -> float:
  """Seconds of CPU of a process."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def describe(latencies: list, seconds: float) -> dict:
  """Percentiles of the latency in ms, and answers a second."""
  times = np.array([t for status, t in latencies if status == 200]) * 1000
  p50, p99 = np.percentile(times, (50, 99)).round(1).tolist()
  failed = sum(status != 200 for status, _ in latencies)
  return {'p50': p50, 'p99': p99, 'rate': round(len(times) / seconds, 1), 'failed': failed}


async def load(port: int, pid: int, clients: int, seconds: float, image: bytes) -> dict:
  """Run good clients."""
  latencies, start, end = [], cpu(pid), time.monotonic() + seconds
  request = form(image)
  await asyncio.gather(*(good_client(port, request, end, latencies) for _ in range(clients)))
  result = describe(latencies, seconds)
  return result | {'CPU ms': round(1000 * (cpu(pid) - start) / len(latencies), 2)}


async def attack(port: int, pid: int, seconds: float, connections: int, image: bytes) -> dict:
  """Run hostile clients of all kinds with good ones beside them."""
  cases = kinds(image)
  statuses = {kind: collections.Counter() for kind in cases}
  before, latencies, end = memory(pid), [], time.monotonic() + seconds
  hostile = [
    hostile_client(port, case, end, statuses[kind])
    for kind, case in cases.items()
    for _ in range(HOSTILE)
  ]
  request = form(image)
  good = [good_client(port, request, end, latencies) for _ in range(GOOD)]
  largest, *_ = await asyncio.gather(watch(pid, end), idle(port, connections, end), *hostile, *good)
  await asyncio.sleep(15)  # until idle connections are closed
  wrong = {k: dict(n) for k, n in statuses.items() if not {*n} <= cases[k][2]}
  sizes = {'before': before, 'most': largest, 'after': memory(pid)}
  return {
    'statuses': {k: dict(n) for k, n in statuses.items()},
    'wrong': wrong,
    'good': describe(latencies, seconds),
    'MiB': {k: round(x, 1) for k, x in sizes.items()},
  }


def runtime_rate(folder: str, seconds: float, image: bytes) -> tuple[float, float]:
  """Images a second of the runtime alone in batches of 32, and ms of CPU an image."""
  model = runtime.load(folder)
  model.predict([image] * 64)
  start, start_cpu = time.monotonic(), time.process_time()

  def images():
    while time.monotonic() < start + seconds:
      yield image

  count = sum(1 for _ in model.predict_iter(images(), batch_size=32))
  milliseconds = 1000 * (time.process_time() - start_cpu) / count
  return count / (time.monotonic() - start), round(milliseconds, 2)


def main() -> None:
  """Print a line of JSON for each measurement."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder')
  parser.add_argument('--clients', type=int, nargs='*', default=[1, 8, 64])
  parser.add_argument('--seconds', type=float, default=60)
  parser.add_argument('--hostile', type=float, default=600, help='seconds; 0 for none')
  parser.add_argument('--connections', type=int, default=1000)
  args = parser.parse_args()
  image = picture()
  rate, alone = runtime_rate(args.folder, args.seconds, image)
  facts = {'load': os.getloadavg()[0], 'runtime': round(rate, 1), 'CPU ms': alone}
  print(json.dumps(facts | {'bytes': len(image)}))
  command = [sys.executable, 'main.py', 'serve', args.folder, '--port=0']
  with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
    port = int(process.stderr.readline().partition(' on ')[2].partition(';')[0].split(':')[2])
    log = []  # read as it comes: a server whose pipe is full stands still
    threading.Thread(target=lambda: log.extend(process.stderr), daemon=True).start()
    try:
      asyncio.run(load(port, process.pid, 8, min(3, args.seconds), image))
      for clients in args.clients:
        result = asyncio.run(load(port, process.pid, clients, args.seconds, image))
        share = round(result['rate'] / rate, 2)
        print(
          json.dumps({'clients': clients, **result, 'share': share, 'MiB': memory(process.pid)})
        )
      if args.hostile:
        work = attack(port, process.pid, args.hostile, args.connections, image)
        print(json.dumps({**asyncio.run(work), 'lines logged': len(log)}))
    finally:
      process.terminate()
  print(json.dumps({'exit': process.returncode, 'load': os.getloadavg()[0]}))


if __name__ == '__main__':
  main()
