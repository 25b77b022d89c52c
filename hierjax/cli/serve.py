"""hierjax serve: an exported model behind a page and an API."""

import asyncio
import dataclasses
import ipaddress
import os
import resource
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hierjax import runtime
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.core.errors import UserError
from hierjax.serve.app import Server
from hierjax.serve.inputs import Limits

TOKEN = 'HIERJAX_TOKEN'
CONNECTIONS = 4096
SECONDS = 10  # for the head of a request


class Connection(H11Protocol):
  """A connection that begins a request in time or ends; uvicorn waits for the head for ever."""

  def connection_made(self, transport: asyncio.Transport) -> None:
    """Look after a new connection."""
    super().connection_made(transport)
    self.loop.call_later(SECONDS, self._look, None)

  def _look(self, last):
    is_idle = self.cycle is None or self.cycle.response_complete
    if self.transport.is_closing() or (is_idle and self.cycle is last):
      self.transport.abort()
    else:
      self.loop.call_later(SECONDS, self._look, self.cycle)


def run(args: Arguments) -> int:
  """Serve until a signal comes; requests that have begun are answered.

  Args:
    args: the arguments.
  """
  token = args.token or os.environ.get(TOKEN) or None
  listener = _listen(args, token)
  model = runtime.load(args.patterns[0])
  if args.max_pixels:
    how = model.view.how._replace(max_pixels=min(args.max_pixels, model.view.how.max_pixels))
    model.view = dataclasses.replace(model.view, how=how)
  limits = Limits(args.max_body, args.max_files, args.queue, args.timeout)
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is an open file
  config = uvicorn.Config(
    Server(model, limits, token),
    http=Connection,
    ws='none',
    log_config=None,
    log_level='error',
    server_header=False,
    limit_concurrency=CONNECTIONS,
    timeout_graceful_shutdown=2 * args.timeout,
  )
  host = f'[{args.host}]' if ':' in args.host else args.host
  address = f'http://{host}:{listener.getsockname()[1]}'
  terminal.say(f'serving {args.patterns[0]} on {address}; Ctrl-C ends it')
  uvicorn.Server(config).run([listener])
  return 0


def _listen(args, token):
  """A socket that listens; not where strangers reach it, unless the user says so."""
  try:
    addresses = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)
    is_local = all(ipaddress.ip_address(a[4][0]).is_loopback for a in addresses)
    if not (is_local or token or args.public):
      raise UserError(
        f'--host={args.host}: others can reach it; give --token=TEXT, or {TOKEN} in the '
        'environment, or --public, which answers everyone'
      )
    family, *_, address = addresses[0]
    return socket.create_server(address[:2], family=family, backlog=1024)
  except OSError as e:
    raise UserError(f'--host={args.host} --port={args.port}: {e.strerror or e}') from None
