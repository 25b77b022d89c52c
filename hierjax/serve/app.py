"""The application: requests of HTTP become predictions, within limits and with their statuses."""

import asyncio
import contextlib
import csv
import functools
import hmac
import pathlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace

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
from hierjax.serve.input_log import InputLog
from hierjax.taxonomy.table import spellings

PAGE = pathlib.Path(__file__).parent / 'page'
# The one declaration of the routes; those with 'security' of their own need no token.
API = json_files.read_object(PAGE / 'openapi.json')
MAX_TOP, MAX_SIMILAR, MAX_SUBSETS = 100, 20, 64
SECURITY = (
  (
    b'content-security-policy',
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  ),
  (b'x-content-type-options', b'nosniff'),
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


def _number(request, name, default, least, most):
  """Parse a whole number of the query."""
  text = request.query_params.get(name, str(default))
  if text not in map(str, range(least, most + 1)):
    raise HTTPException(422, f'{name} must be a whole number from {least} to {most}')
  return int(text)


class Server:
  """The application, by ASGI.

  Args:
    model: predicts.
    limits: what requests may ask for: numbers max_body [bytes], max_files, queue [images that
      wait] and timeout [s], for a body to come and again for its answer.
    token: that most operations need; None for none.
    hosts: the names that requests may call this server by; None for any. A page of another site
      whose name leads to this machine (DNS rebinding) sends its own.
    log: folder of an `InputLog` of at most limits.log_bytes; None for none.
  """

  def __init__(
    self,
    model: Exported,
    limits: SimpleNamespace,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
    log: str | None = None,
  ):
    self.model, self.limits, self.hosts = model, limits, hosts
    self.token = None if token is None else f'Bearer {token}'.encode()
    self.counts = Counter(images_waiting=0, body_bytes=0)
    self.batcher = Batcher(model, limits.queue, self.counts)
    self.log = InputLog(log, limits.log_bytes, self.counts) if log else None
    taxonomy = model.taxonomy
    self._names = {name for t in taxonomy.tables for k in t.levels for name in spellings(t, k)}
    self._within = functools.lru_cache(MAX_SUBSETS)(model.within)
    self._explaining = functools.lru_cache(MAX_SUBSETS)(type(model).explaining)
    self._at_risk = functools.lru_cache(MAX_SUBSETS)(type(model).at_risk)
    facts = {'hash': taxonomy.hash(), 'levels': taxonomy.levels, 'heads': model.levels}
    facts['risks'] = [*model.rules['answer'].risks] if 'answer' in model.rules else []
    self._contents = {f'/{file.name}': file.read_bytes() for file in PAGE.iterdir()}
    self._contents['/'] = self._contents.pop('/page.html')
    self._contents['/healthz'] = b'{"status": "ok"}'
    self._contents['/taxonomy'] = json_files.dump(facts | {'rows': taxonomy.rows()}).encode()
    self._app = Starlette(
      routes=[
        Route(path, self._predict if path == '/predict' else self._content, methods=[*operations])
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
    content = self._contents.get(path)
    if content is None:  # metrics, in the text format of Prometheus
      content = ''.join(f'hierjax_{name} {n:.15g}\n' for name, n in self.counts.items())
    (media,) = API['paths'][path]['get']['responses']['200']['content']
    return Response(content, media_type=media)

  async def _predict(self, request):
    top, maps = _number(request, 'top', 5, 1, MAX_TOP), _number(request, 'maps', 0, 0, 1)
    similar = _number(request, 'similar', 0, 0, MAX_SIMILAR)
    model = self.model
    if classes := request.query_params.getlist('classes'):
      model = await asyncio.to_thread(self._restricted, classes)
    if 'risk' in request.query_params:
      try:
        model = self._at_risk(model, float(request.query_params['risk']))
      except ValueError as e:  # of float, or a UserError
        raise HTTPException(400, str(e)) from None
    if maps or similar:
      model = self._explaining(model, bool(maps), similar)
    async with inputs.read(request, self.limits, self.counts) as images:
      async with asyncio.timeout(self.limits.timeout):
        records = await self.batcher.predict(images, (model, top))
      if self.log:
        contents = [content for _, content in images]
        await asyncio.to_thread(self.log.write, contents, records, request.url.query)
    for record in records:
      self.counts[f'images_total{{result="{"error" if "error" in record else "ok"}"}}'] += 1
    content = {'predictions': records}
    if any('maps' in record for record in records):
      view = self.model.view.resize
      content['view'] = {'resize': view.mode, 'share': view.share}
    return Response(json_files.dump(content), media_type='application/json')

  def _restricted(self, lists):
    """Restrict the model to the classes that lists name; to all where they name none."""
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
      return await self._app(scope, receive, send)
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
      self.counts['request_seconds_total'] += time.monotonic() - start

  def _refusal(self, scope):
    headers, operations = dict(scope['headers']), API['paths'].get(scope['path'], {})
    host = re.sub(rb':\d*$', b'', headers.get(b'host', b'')).decode('latin-1').lower()
    if self.hosts and host not in self.hosts:
      return HTTPException(421, f'this server is {" or ".join(self.hosts)}, not {host!r}')
    is_open = self.token is None or all('security' in x for x in operations.values())
    # compared in a time that says nothing of how much is right
    if is_open or hmac.compare_digest(headers.get(b'authorization', b''), self.token):
      return None
    return HTTPException(401, 'the token is missing or wrong', {'WWW-Authenticate': 'Bearer'})
