"""The server in a process, on a real socket: how it starts, ends, and drops idle connections."""

import contextlib
import gc
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import weakref

import pytest
import uvicorn
from test_serve import LIMITS, png

from hierjax import runtime
from hierjax.cli import errors, serve
from hierjax.serve import app

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def served(exported):
  """(model, port, uvicorn's server) of a server in a thread."""
  model = runtime.load(exported)
  listener = socket.create_server(('127.0.0.1', 0))
  config = uvicorn.Config(app.Server(model, LIMITS), http=serve.Connection, log_config=None)
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, args=([listener],))
  thread.start()
  yield model, listener.getsockname()[1], server
  server.should_exit = True
  thread.join(20)
  assert not thread.is_alive()


def post(port: int, body: bytes) -> bytes:
  """Send an image and return the answer."""
  content = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + body
  headers = {'Content-Type': 'multipart/form-data; boundary=x'}
  url = f'http://127.0.0.1:{port}/predict'
  request = urllib.request.Request(url, content + b'\r\n--x--\r\n', headers)
  with urllib.request.urlopen(request, timeout=20) as answer:
    return answer.read()


def holding(model, monkeypatch) -> tuple[threading.Event, threading.Event]:
  """Let the model wait for the second event; the first is set when it begins to compute."""
  begun, go_on, run = threading.Event(), threading.Event(), model.run

  def slow(pixels):
    begun.set()
    assert go_on.wait(10)
    return run(pixels)

  monkeypatch.setattr(model, 'run', slow)
  return begun, go_on


def upload() -> bytes:
  """A request with an image, as its bytes."""
  form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + png(0)
  form += b'\r\n--x--\r\n'
  head = f'POST /predict HTTP/1.1\r\nContent-Length: {len(form)}\r\n'
  head += 'Content-Type: multipart/form-data; boundary=x\r\n\r\n'
  return head.encode() + form


def test_what_is_queued_is_answered_before_the_end(served, monkeypatch):
  """A signal to end comes while an image is computed and others wait."""
  model, port, server = served
  begun, go_on = holding(model, monkeypatch)
  answers = []
  clients = [
    threading.Thread(target=lambda i=i: answers.append(post(port, png(i)))) for i in range(3)
  ]
  for client in clients:
    client.start()
    assert begun.wait(10)
  time.sleep(0.05)
  server.should_exit = True
  time.sleep(0.15)
  go_on.set()
  for client in clients:
    client.join(10)
  assert len(answers) == 3 and all(b'"path"' in answer for answer in answers)
  with pytest.raises(OSError):
    post(port, png(0))


@pytest.mark.parametrize('head', [b'', b'POST /predict HT', b'GET /healthz HTTP/1.1\r\nA: b\r\n'])
def test_idle_connections_are_closed(served, head, monkeypatch):
  """Those that send nothing or a part of a head, also after a request; others are served."""
  monkeypatch.setattr(serve, 'SECONDS', 0.15)
  _, port, _ = served
  with socket.create_connection(('127.0.0.1', port)) as connection:
    connection.settimeout(5)
    connection.sendall(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n' * (len(head) > 20) + head)
    post(port, png(0))
    with contextlib.suppress(ConnectionResetError):
      while connection.recv(1000):
        pass


GET = b'GET /healthz HTTP/1.1\r\nHost: x\r\n'
CHUNKED = b'POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n'


@pytest.mark.parametrize(
  ('first', 'flood'),
  [
    (GET, b'A: b\r\n'),
    (GET + b'A: ', b'b'),
    (b'GET /', b'a'),
    (CHUNKED, b'1;' + b'a' * 100 + b'\r\nb\r\n'),
    (CHUNKED + b'0\r\n', b'A: b\r\n'),
    (b'', GET + b'\r\n'),
  ],
)
def test_what_has_no_end_beside_the_body_is_refused(served, first, flood):
  """A head, an address, chunks with long extensions, trailers, and requests without reading."""
  _, port, _ = served
  with socket.create_connection(('127.0.0.1', port)) as connection:
    connection.settimeout(10)
    connection.sendall(first)
    sent = 0
    with contextlib.suppress(ConnectionError):
      while sent < 5_000_000:
        connection.sendall(flood * 1000)
        sent += 1000 * len(flood)
    assert sent < 5_000_000
  post(port, png(0))


def test_requests_may_be_sent_ahead_and_bodies_come_in_chunks(served):
  """Each of a few is answered, in order; the parts of a body have a head each."""
  _, port, _ = served
  with socket.create_connection(('127.0.0.1', port)) as connection:
    connection.settimeout(10)
    connection.sendall((GET + b'\r\n') * serve.PIPELINED)
    read = b''
    while read.count(b'"ok"') < serve.PIPELINED:
      read += connection.recv(10_000)
    assert read.count(b'200 OK') == serve.PIPELINED
    form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + png(0)
    form += bytes(150_000) + b'\r\n--x--\r\n'
    kind = b'\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n'
    connection.sendall(CHUNKED.replace(b'\r\n\r\n', kind))
    for i in range(0, len(form), 10):
      part = form[i : i + 10]
      connection.sendall(b'%x\r\n%s\r\n' % (len(part), part))
    connection.sendall(b'0\r\n\r\n')
    assert b'200 OK' in connection.recv(10_000)


def test_a_client_that_leaves_while_it_is_answered_is_no_error(served, monkeypatch, caplog):
  """It has sent others ahead, which have not begun."""
  model, port, _ = served
  begun, go_on = holding(model, monkeypatch)
  connection = socket.create_connection(('127.0.0.1', port))
  connection.sendall(5 * upload())
  assert begun.wait(10)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
  connection.close()
  time.sleep(0.1)
  go_on.set()
  post(port, png(0))
  time.sleep(0.2)
  assert not [record for record in caplog.records if record.levelname == 'ERROR']


def test_a_closed_connection_holds_nothing(served, monkeypatch):
  """Neither its timer nor a cycle of references keeps what it has read."""
  _, port, server = served
  original = serve.Connection.connection_made
  connections = weakref.WeakSet()
  monkeypatch.setattr(
    serve.Connection, 'connection_made', lambda c, x: connections.add(c) or original(c, x)
  )
  gc.disable()
  try:
    post(port, png(0))
    with socket.create_connection(('127.0.0.1', port)) as connection:
      # more than are read before the first is answered
      connection.sendall(5 * upload())
    end = time.monotonic() + 5
    while connections and time.monotonic() < end:
      time.sleep(0.01)
    assert not connections and not server.server_state.connections
  finally:
    gc.enable()


def test_the_command_serves_until_a_signal(exported):
  """It says where, needs no jax, and ends in order."""
  code = 'import sys; sys.modules["jax"] = None; from hierjax import cli; cli.main(sys.argv)'
  command = [sys.executable, '-c', code, 'serve', str(exported), '--port=0', '--token=secret']
  with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
    line = process.stderr.readline()
    address = line.partition(' on ')[2].partition(';')[0]
    assert address.startswith('http://127.0.0.1:'), line
    with urllib.request.urlopen(f'{address}/healthz', timeout=20) as answer:
      assert answer.read() == b'{"status": "ok"}'
    with pytest.raises(urllib.error.HTTPError, match='401'):
      urllib.request.urlopen(f'{address}/taxonomy', timeout=20)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.read() == ''
  assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
  ('flags', 'text'),
  [
    ((), 'needs one folder'),
    (('a', 'b'), 'needs one folder'),
    (('a', '--host=0.0.0.0'), '--token=TEXT'),
    (('a', '--host=::'), '--token=TEXT'),
    (('a', '--port=70000'), '--port=70000'),
    (('a', '--queue=0'), '--queue=0'),
    (('a', '--log_bytes=0'), '--log_bytes=0'),
    (('a', '--config.seed=1', '--limit=3'), '--limit is only valid'),
    (('no_such_folder', '--port=0'), 'no exported model'),
  ],
)
def test_wrong_arguments_are_one_line(flags, text, capsys, monkeypatch):
  """Nothing listens."""
  from hierjax import cli

  monkeypatch.delenv('HIERJAX_TOKEN', raising=False)
  with pytest.raises(SystemExit) as end:
    cli.main(['hierjax', 'serve', *flags])
  error = capsys.readouterr().err
  assert end.value.code == errors.EXIT_CODE and text in error and error.count('\n') == 1
