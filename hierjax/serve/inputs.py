"""The images of a request, read whole into memory and within limits."""

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from hierjax.core import json_files

# Bodies of this many times `max_body` bytes may be in memory at once.
BODIES = 8


@contextlib.asynccontextmanager
async def read(request: Request, limits: SimpleNamespace, counts: Counter) -> AsyncIterator[list]:
  """Read the images of a form, or of JSON {"images": [base64, ...]}: (name, bytes) of each.

  A `request` beyond its `limits` raises an HTTPException. As long as the context lasts, `counts`
  has the bytes of its body.
  """
  size = 0

  async def chunks():
    nonlocal size
    async for chunk in request.stream():
      size += len(chunk)
      counts['body_bytes'] += len(chunk)
      if size > limits.max_body:
        raise HTTPException(413, f'the request has more than {limits.max_body} bytes')
      if counts['body_bytes'] > BODIES * limits.max_body:
        raise HTTPException(503, 'too many requests are read; try again', {'Retry-After': '1'})
      yield chunk

  kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
  if kind not in READERS:
    raise HTTPException(415, f'the body must be {" or ".join(READERS)}')
  if int(request.headers.get('content-length', 0)) > limits.max_body:
    raise HTTPException(413, f'the request has more than {limits.max_body} bytes')
  try:
    async with asyncio.timeout(limits.timeout):
      images = await READERS[kind](request, chunks(), limits.max_files)
    if not images:
      raise HTTPException(422, 'the request has no images')
    yield [(name or f'image {i}', data) for i, (name, data) in enumerate(images)]
  finally:
    counts['body_bytes'] -= size


async def _of_form(request, chunks, max_files):
  parser = MultiPartParser(request.headers, chunks, max_files=max_files, max_fields=0)
  parser.spool_max_size = 0  # by default large parts become files
  try:
    form = await parser.parse()
  except MultiPartException as e:
    raise HTTPException(413 if 'Too many' in e.message else 422, e.message) from None
  return [(part.filename, part.file.read()) for _, part in form.multi_items()]


async def _of_json(request, chunks, max_files):
  body = bytearray()
  async for chunk in chunks:
    body += chunk
  # Base64 has none of these: what takes much memory as objects is refused before it is parsed.
  if sum(map(body.count, (b',', b'[', b'{'))) > max_files + 1:
    raise HTTPException(413, f'the JSON has more than "images", a list of {max_files} texts')
  try:
    texts = json_files.parse(bytes(body))['images']
    return [('', base64.b64decode(text, validate=True)) for text in texts]
  except (ValueError, KeyError, TypeError) as e:
    raise HTTPException(422, f'the JSON must be {{"images": ["base64", ...]}} ({e})') from None


READERS = {'multipart/form-data': _of_form, 'application/json': _of_json}
