"""The application: requests of HTTP become predictions, within limits and with their statuses."""

import asyncio
import contextlib
import csv
import functools
import hmac
import pathlib
import time
from collections import Counter
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from hierjax.core import json_files
from hierjax.core.errors import UserError
from hierjax.runtime import Exported
from hierjax.serve import inputs
from hierjax.serve.batcher import Batcher
from hierjax.taxonomy.table import spellings

PAGE = pathlib.Path(__file__).parent / 'page'
# The one declaration of the routes; those with 'security' of their own need no token.
API = json_files.read_object(PAGE / 'openapi.json')
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MAX_TOP, MAX_SUBSETS = 100, 64
SECURITY = (
  (
    b'content-security-policy',
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ),
  (b'x-content-type-options', b'nosniff'),
  (b'referrer-policy', b'no-referrer'),
  (b'cross-origin-resource-policy', b'same-origin'),
  (b'cache-control', b'no-store'),
)
STATUSES = {TimeoutError: (504, 'not done in time'), ClientDisconnect: (499, 'the client is gone')}


def _failed(request, error):
  status, text = STATUSES.get(type(error), (500, 'the server has failed; its log says how'))
  if isinstance(error, HTTPException):
    status, text = error.status_code, error.detail
  headers = getattr(error, 'headers', None)
  return Response(json_files.dump({'error': text}), status, headers, 'application/json')


def _observe(counts, seconds):
  """Add the time of a request to the histogram."""
  buckets = {f'request_seconds_bucket{{le="{limit}"}}': seconds <= limit for limit in SECONDS}
  counts.update(buckets | {'request_seconds_bucket{le="+Inf"}': 1, 'request_seconds_count': 1})
  counts['request_seconds_sum'] += seconds


def _lines(counts):
  """Counters in the text format of Prometheus; the name of one may have labels."""
  names = sorted({key.partition('{')[0] for key in counts if '_total' in key})
  lines = [f'# TYPE hierjax_{name} counter' for name in names]
  lines.append('# TYPE hierjax_request_seconds histogram')
  return '\n'.join(lines + [f'hierjax_{key} {n:.15g}' for key, n in counts.items()]) + '\n'


class Server:
  """The application, by ASGI.

  Args:
    model: predicts.
    limits: what requests may ask for.
    token: that most operations need; None for none.
  """

  def __init__(self, model: Exported, limits: inputs.Limits, token: str | None = None):
    self.model, self.limits = model, limits
    self.token = None if token is None else f'Bearer {token}'.encode()
    self.counts = Counter(images_waiting=0, body_bytes=0)
    self.batcher = Batcher(model, limits.queue, self.counts)
    taxonomy = model.taxonomy
    self._names = {name for t in taxonomy.tables for k in t.levels for name in spellings(t, k)}
    self._within = functools.lru_cache(MAX_SUBSETS)(model.within)
    facts = {'hash': taxonomy.hash(), 'levels': taxonomy.levels, 'heads': model.levels}
    self._contents = {f'/{file.name}': file.read_bytes() for file in PAGE.iterdir()}
    self._contents['/'] = self._contents.pop('/page.html')
    self._contents['/healthz'] = b'{"status": "ok"}'
    self._contents['/taxonomy'] = json_files.dump(facts | {'rows': taxonomy.rows()}).encode()
    endpoints = {'/predict': self._predict, '/metrics': self._metrics}
    self._app = Starlette(
      routes=[
        Route(path, endpoints.get(path, self._content), methods=[*operations])
        for path, operations in API['paths'].items()
      ],
      exception_handlers=dict.fromkeys((HTTPException, *STATUSES, Exception), _failed),
      lifespan=self._running,
    )

  @contextlib.asynccontextmanager
  async def _running(self, app) -> AsyncIterator[None]:
    task = asyncio.create_task(self.batcher.run())
    yield
    task.cancel()

  async def _content(self, request):
    path = request.url.path
    (media,) = API['paths'][path]['get']['responses']['200']['content']
    return Response(self._contents[path], media_type=media)

  async def _metrics(self, request):
    return Response(_lines(self.counts), media_type='text/plain; version=0.0.4')

  async def _predict(self, request):
    top = request.query_params.get('top', '5')
    if top not in map(str, range(1, MAX_TOP + 1)):
      raise HTTPException(422, f'top must be a whole number from 1 to {MAX_TOP}')
    model = await asyncio.to_thread(self._restricted, request.query_params.getlist('classes'))
    async with inputs.read(request, self.limits, self.counts) as images:
      async with asyncio.timeout(self.limits.timeout):
        records = await self.batcher.predict(images, (model, int(top)))
    for record in records:
      self.counts[f'images_total{{result="{"error" if "error" in record else "ok"}"}}'] += 1
    content = json_files.dump({'predictions': records})
    return Response(content, media_type='application/json')

  def _restricted(self, lists):
    """The model within the classes that lists name; the model itself where they name none."""
    try:
      names = {name.strip() for row in csv.reader(lists, skipinitialspace=True) for name in row}
      names.discard('')
      # the error of `within` looks for similar names, which takes long
      if wrong := names - self._names:
        raise UserError(f'{min(wrong)!r} is no class of {", ".join(self.model.taxonomy.levels)}')
      return self._within(frozenset(names)) if names else self.model
    except (UserError, csv.Error) as e:
      raise HTTPException(422, f'classes: {e}') from None

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request if its token and host are right, with headers, and count it."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    start, status = time.monotonic(), 0

    async def guarded_send(message: Message) -> None:
      nonlocal status
      if message['type'] == 'http.response.start':
        status, message['headers'] = message['status'], [*message['headers'], *SECURITY]
      await send(message)

    try:
      # body and answer have their own limits: this one ends a client that does not read its answer
      async with asyncio.timeout(3 * self.limits.timeout):
        refusal = self._refusal(scope)
        app = _failed(None, refusal) if refusal else self._app
        await app(scope, receive, guarded_send)
    finally:
      path = scope['path'] if scope['path'] in API['paths'] else 'other'
      self.counts[f'requests_total{{path="{path}",status="{status}"}}'] += 1
      _observe(self.counts, time.monotonic() - start)

  def _refusal(self, scope):
    headers, operations = dict(scope['headers']), API['paths'].get(scope['path'], {})
    is_open = self.token is None or all('security' in x for x in operations.values())
    # compared in a time that says nothing of how much is right
    if is_open or hmac.compare_digest(headers.get(b'authorization', b''), self.token):
      return None
    return HTTPException(401, 'the token is missing or wrong', {'WWW-Authenticate': 'Bearer'})
