"""The log of inputs is complete, bounded, and never in the way of a request."""

import errno
import hashlib
import json
import os
import pathlib
from collections import Counter
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient
from test_serve import LIMITS, parts, png

from hierjax import runtime
from hierjax.core import terminal
from hierjax.serve import app, input_log

FULL = SimpleNamespace(**vars(LIMITS), log_bytes=2**20)


def lines(folder: pathlib.Path) -> list[dict]:
  """The content of log.jsonl."""
  return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]


@pytest.fixture
def messages(monkeypatch) -> list[str]:
  """What the user is shown."""
  texts = []
  monkeypatch.setattr(terminal, 'say', texts.append)
  return texts


def test_each_image_is_stored_once_whatever_its_name(exported, tmp_path):
  """By its sha256; names that lead elsewhere are text; what is no image has a line alone."""
  image, other, folder = png(0), png(1), tmp_path / 'a' / 'log'
  names = ['../../evil', '/etc/passwd', 'a\x00b\n{', '.partial', 'log.jsonl', 'c' * 3000]
  contents = [image, other, image, b'no image', image, image]
  with TestClient(app.Server(runtime.load(exported), FULL, log=str(folder))) as client:
    files = [('images', pair) for pair in zip(names, contents)]
    answer = client.post('/predict?top=1', files=files)
    assert answer.status_code == 200
    assert 'hierjax_inputs_logged_total 6\n' in client.get('/metrics').text
  records = answer.json()['predictions']
  digests = [hashlib.sha256(content).hexdigest() for content in contents]
  assert [(row['sha256'], row['record'], row['query']) for row in lines(folder)] == [
    (digest, record, 'top=1') for digest, record in zip(digests, records)
  ]
  stored = {path.name: path.read_bytes() for path in (folder / 'images').iterdir()}
  assert stored == {digests[0]: image, digests[1]: other}
  assert {path.name for path in tmp_path.rglob('*')} == {'a', 'log', 'images', 'log.jsonl', *stored}
  assert (folder / 'images').stat().st_mode & 0o77 == 0


def test_it_is_off_by_default(exported, tmp_path, monkeypatch):
  """Nothing is written where the server runs."""
  monkeypatch.chdir(tmp_path)
  with TestClient(app.Server(runtime.load(exported), LIMITS)) as client:
    assert client.post('/predict', files=parts(png(0))).status_code == 200
  assert not [*tmp_path.iterdir()]


def test_it_is_bounded_also_over_restarts(tmp_path, messages):
  """It ends with the last image that finds room, says so once, and counts what it left out."""
  size = 3 * input_log.BLOCK
  for start in (0, 8):
    counts, images = Counter(), [b'%d' % i * 100 for i in range(start, start + 8)]
    log = input_log.InputLog(tmp_path, size, counts)
    log.write(images[:4], [{}] * 4)
    log.write(images[4:], [{}] * 4)
    rows, stored = lines(tmp_path), {path.name for path in (tmp_path / 'images').iterdir()}
    assert len(rows) == 2 and stored == {row['sha256'] for row in rows}
    assert len(messages) == 1 and f'--log_bytes={size} are reached' in messages.pop()
    assert counts['inputs_logged_total'] == 2 * (start == 0)
    assert counts['inputs_not_logged_total'] == 8 - counts['inputs_logged_total']
    with pytest.raises(BlockingIOError):
      input_log.InputLog(tmp_path, size, Counter())
    del log


def test_a_full_disk_fails_no_request(exported, tmp_path, messages, monkeypatch):
  """Neither where the line finds no room nor where the image finds none."""
  model = runtime.load(exported)

  def full(path, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  for case in ('line', 'image'):
    folder = tmp_path / case
    folder.mkdir()
    if case == 'line':
      (folder / 'log.jsonl').symlink_to('/dev/full')
    else:
      monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
    with TestClient(app.Server(model, FULL, log=str(folder))) as client:
      for i in (0, 1):
        answer = client.post('/predict', files=parts(png(i), b'no image'))
        assert answer.status_code == 200 and 'path' in answer.json()['predictions'][0]
      assert 'hierjax_inputs_not_logged_total 4\n' in client.get('/metrics').text
    assert len(messages) == 1 and 'No space left on device' in messages.pop()
    assert '.partial' not in os.listdir(folder / 'images')


def test_a_short_write_leaves_whole_lines(tmp_path, messages):
  """The system may write a part of a line before the disk is full."""
  counts, data = Counter(), b'x' * 100
  log = input_log.InputLog(tmp_path, 2**20, counts)
  log.write([data], [{}])
  file = log._file

  class Short:
    tell, truncate = file.tell, file.truncate

    def write(self, line):
      return file.write(line[:10])

  log._file = Short()
  log.write([data] * 2, [{}] * 2)
  assert len(lines(tmp_path)) == 1 and messages and counts['inputs_not_logged_total'] == 2


def test_a_folder_that_cannot_be_written_is_one_line(exported, tmp_path, capsys):
  """Before the server listens."""
  from hierjax import cli

  (tmp_path / 'file').touch()
  with pytest.raises(SystemExit):
    cli.main(['hierjax', 'serve', str(exported), '--port=0', f'--log_inputs={tmp_path / "file"}'])
  error = capsys.readouterr().err
  assert 'error: --log_inputs=' in error and error.count('\n') == 1
