"""hierjax serve: an exported model behind a page and an API."""

import asyncio
import dataclasses
import os
import resource
import socket
import sys
from types import SimpleNamespace

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hierjax import runtime
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.core.errors import UserError
from hierjax.serve.app import Server

LOOPBACK = ('localhost', '127.0.0.1', '::1')
LOOPBACK_NAMES = ('localhost', '127.0.0.1', '[::1]')
CONNECTIONS = 4096
SECONDS = 10  # for the head of a request
MAX_HEAD = 65_536  # bytes of a request beside its body
PIPELINED = 8  # requests that wait for the answer to one before


class Connection(HttpToolsProtocol):
  """A connection that begins a request in time or ends; uvicorn waits for the head for ever.

  Nor does uvicorn bound what httptools has parsed: heads, trailers and requests that wait.
  """

  def connection_made(self, transport: asyncio.Transport) -> None:
    """Look after a new connection."""
    super().connection_made(transport)
    self._beside_body, self._cycles = 0, []
    self._timer = self.loop.call_later(SECONDS, self._look, None)

  def on_headers_complete(self) -> None:
    """Remember the request until it is answered."""
    super().on_headers_complete()
    waiting = [cycle for cycle in self._cycles if not cycle.response_complete]
    self._cycles = [*waiting, self.cycle]

  def connection_lost(self, exc: Exception | None) -> None:
    """Give back what the connection holds at once: timer, cycle and pipeline refer to it.

    uvicorn tells only the last request that its client is gone; of several that came together the
    first is being answered, and would log an exception at its end.
    """
    super().connection_lost(exc)
    for cycle in self._cycles:
      cycle.disconnected = True
      cycle.message_event.set()
    self._cycles = []
    self._timer.cancel()
    self.pipeline.clear()
    self.cycle = None

  def data_received(self, data: bytes) -> None:
    """Refuse what is hardly body; a chunk of a body may have as many bytes around it as in it."""
    self._beside_body += len(data)
    super().data_received(data)
    if self._beside_body > MAX_HEAD and not self.transport.is_closing():
      self.send_400_response(f'More than {MAX_HEAD} bytes beside the body.')

  def on_body(self, body: bytes) -> None:
    """Count what is body."""
    self._beside_body = max(0, self._beside_body - 2 * len(body))
    super().on_body(body)

  def on_message_begin(self) -> None:
    """Begin to count; the parser answers 400 to what is raised here."""
    if len(self.pipeline) >= PIPELINED:
      raise ValueError('too many requests wait')
    self._beside_body = 0
    super().on_message_begin()

  def _look(self, last):
    is_idle = self.cycle is None or self.cycle.response_complete
    if self.transport.is_closing() or (is_idle and self.cycle is last):
      self.transport.abort()
    else:
      self._timer = self.loop.call_later(SECONDS, self._look, self.cycle)


def run(args: Arguments) -> None:
  """Serve until a signal comes; requests that have begun are answered."""
  token = args.token or os.environ.get('HIERJAX_TOKEN') or None
  listener = _listen(args, token)
  model = runtime.load(args.patterns[0], spin=False)
  # with a token, or for all, a proxy may give it any name
  hosts = None if token or args.public else LOOPBACK_NAMES
  sys.setswitchinterval(5e-4)  # threads that compute let the event loop go on sooner
  if args.max_pixels:
    how = model.view.how._replace(max_pixels=min(args.max_pixels, model.view.how.max_pixels))
    model.view = dataclasses.replace(model.view, how=how)
  most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is an open file
  try:
    server = Server(model, SimpleNamespace(**args.flags), token, hosts, args.log_inputs)
  except OSError as e:
    raise UserError(f'--log_inputs={args.log_inputs}: {e.strerror or e}') from None
  config = uvicorn.Config(
    server,
    http=Connection,
    ws='none',
    log_config=None,
    log_level='error',
    limit_concurrency=CONNECTIONS,
  )
  address = f'http://{args.host}:{listener.getsockname()[1]}'
  terminal.say(f'serving {args.patterns[0]} on {address}; Ctrl-C ends it')
  uvicorn.Server(config).run([listener])


def _listen(args, token):
  """Open a socket that listens; not where strangers reach it, unless the user says so."""
  if args.host not in LOOPBACK and not token and not args.public:
    raise UserError(
      f'--host={args.host}: others can reach it; give --token=TEXT, or HIERJAX_TOKEN in the '
      'environment, or --public, which answers everyone'
    )
  family = socket.AF_INET6 if ':' in args.host else socket.AF_INET
  try:
    return socket.create_server((args.host, args.port), family=family, backlog=1024)
  except OSError as e:
    raise UserError(f'--host={args.host} --port={args.port}: {e.strerror or e}') from None
