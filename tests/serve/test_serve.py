"""The server answers as the model does, and every request with the right status."""

import base64
import concurrent.futures
import copy
import dataclasses
import io
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from hierjax import runtime
from hierjax.decide.backoff import NEVER, Backoff
from hierjax.decide.decisions import AnswerRules
from hierjax.serve import app, batcher, inputs

LIMITS = SimpleNamespace(max_body=200_000, max_files=8, queue=64, timeout=20)


def png(seed: int, size: int = 20) -> bytes:
  """Draw an image of noise."""
  pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'png')
  return file.getvalue()


@pytest.fixture(scope='module')
def model(exported) -> runtime.Exported:
  """The artefact of the finished run."""
  return runtime.load(exported)


@pytest.fixture
def client(model):
  """A client of a server that runs."""
  with TestClient(app.Server(model, LIMITS)) as opened:
    yield opened


def parts(*contents: bytes) -> list:
  """Files of a form."""
  return [('images', (f'{i}.png', content)) for i, content in enumerate(contents)]


def test_it_answers_as_the_model_does(client, model):
  """A form and JSON, one image and several, one that cannot be read, top and classes."""
  images = [png(0), b'no image', png(1)]
  expected = model.predict(images, top=2)
  answer = client.post('/predict?top=2', files=parts(*images))
  records = answer.json()['predictions']
  assert answer.status_code == 200
  assert [r.pop('file') for r in records] == ['0.png', '1.png', '2.png']
  assert [{'file': e['file'], **r} for e, r in zip(expected, records)] == expected
  body = {'images': [base64.b64encode(image).decode() for image in images]}
  assert client.post('/predict?top=2', json=body).json()['predictions'] == expected
  names = model.taxonomy.names[0][:1]
  restricted = client.post(f'/predict?classes={names[0]}', json=body).json()['predictions']
  assert restricted == model.within(names).predict(images) and 'outside' in restricted[0]


def test_requests_share_batches(model, monkeypatch):
  """Those that come together are answered as they are alone, by fewer calls of the graph."""
  images = [png(i) for i in range(24)]
  name = model.taxonomy.names[0][0]
  models = [model, model.within([name])]
  expected = [models[i % 2].predict([image], top=1 + i % 3)[0] for i, image in enumerate(images)]
  calls, run = [], model.run
  monkeypatch.setattr(model, 'run', lambda pixels: calls.append(len(pixels)) or run(pixels))
  with TestClient(app.Server(model, LIMITS)) as client:

    def send(i):
      query = f'top={1 + i % 3}' + (f'&classes={name}' if i % 2 else '')
      return client.post(f'/predict?{query}', files=[('x', ('image 0', images[i]))])

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
      answers = list(pool.map(send, range(24)))
  assert [a.json()['predictions'][0]['file'] for a in answers] == ['image 0'] * 24
  for answer, record in zip(answers, expected):
    (result,) = answer.json()['predictions']
    assert result['path'] == record['path'] and len(result) == len(record)
    assert result['top'].keys() == record['top'].keys()
    for level, rows in record['top'].items():
      assert [row[0] for row in result['top'][level]] == [row[0] for row in rows]
      np.testing.assert_allclose(
        *[[r[1] for r in x] for x in (result['top'][level], rows)], atol=2e-6
      )
  assert sum(calls) == 24 and len(calls) < 24


def test_heat_maps_are_answered_when_asked_for(client, model):
  """With where they lie in the image; not for an image that cannot be read, nor by default."""
  images = [png(0), b'no image', png(1, 33)]
  content = client.post('/predict?maps=1', files=parts(*images)).json()
  expected = model.explaining(maps=True).predict(images)
  assert [r.get('maps') for r in content['predictions']] == [r.get('maps') for r in expected]
  assert [*content['predictions'][0]['maps']] == [*model.levels] and 'error' in expected[1]
  assert content['view'] == {'resize': model.view.resize.mode, 'share': 1.0}
  for query in ('', '?maps=0'):
    content = client.post(f'/predict{query}', files=parts(*images)).json()
    assert [*content] == ['predictions'] and 'maps' not in content['predictions'][0]


def test_similar_training_images_are_answered_when_asked_for(client, model):
  """As many as asked for; requests with and without share a batch."""
  images = [png(0), b'no image', png(1, 33)]
  records = client.post('/predict?similar=3', files=parts(*images)).json()['predictions']
  expected = model.explaining(similar=3).predict(images)
  assert [r.get('similar') for r in records] == [r.get('similar') for r in expected]
  assert len(records[0]['similar']) == 3 and 'similar' not in records[1]
  (record,) = client.post('/predict', files=parts(images[0])).json()['predictions']
  assert 'similar' not in record


@pytest.mark.parametrize(
  ('threads', 'limit', 'sizes'), [(2, 128, [4, 4]), (1, 128, [8]), (4, 8, [2] * 4)]
)
def test_threads_share_what_waits(model, monkeypatch, threads, limit, sizes):
  """In equal parts, and no more at once than is allowed; an image alone waits for no other."""
  monkeypatch.setattr(batcher.os, 'cpu_count', lambda: threads)
  monkeypatch.setattr(batcher, 'IMAGES', limit)
  calls, run = [], model.run
  monkeypatch.setattr(model, 'run', lambda pixels: calls.append(len(pixels)) or run(pixels))
  with TestClient(app.Server(model, LIMITS)) as client:
    for images, expected in ((8, sizes), (1, [1])):
      calls.clear()
      answer = client.post('/predict', files=parts(*[png(i) for i in range(images)]))
      assert answer.status_code == 200 and calls == expected


def test_a_full_queue_and_a_late_answer_have_their_statuses(model, monkeypatch):
  """The images that wait are bounded, and so is the time; what is given up is not computed."""
  limits = SimpleNamespace(**{**vars(LIMITS), 'queue': 2, 'timeout': 0.2})

  def slow(pixels):
    stop.wait(5)
    return run(pixels)

  stop, run = threading.Event(), model.run
  monkeypatch.setattr(model, 'run', slow)
  with TestClient(app.Server(model, limits)) as client:
    assert client.post('/predict', files=parts(*[png(0)] * 3)).status_code == 503
    late = client.post('/predict', files=parts(png(0), png(1)))
    assert (late.status_code, late.json()) == (504, {'error': 'not done in time'})
    stop.set()
    assert client.post('/predict', files=parts(png(0))).status_code == 200
    assert 'hierjax_images_waiting 0\n' in client.get('/metrics').text


JSON = {'Content-Type': 'application/json'}
FORM = {'Content-Type': 'multipart/form-data; boundary=x'}
HOSTILE = {
  'no body': (415, {}, b''),
  'another type': (415, {'Content-Type': 'image/png'}, png(0)),
  'a form for text': (415, {'Content-Type': 'application/x-www-form-urlencoded'}, b'images=1'),
  'no JSON': (422, JSON, b'{"images": ["'),
  'NaN': (422, JSON, b'{"images": NaN}'),
  'no UTF-8': (422, JSON, b'\xff\xfe"'),
  'a million brackets': (413, JSON, b'[' * 100_000),
  'nested': (422, JSON, b'[' * 8),
  'many elements': (413, JSON, b'{"images": [' + b'"",' * 40_000 + b'""]}'),
  'a number': (422, JSON, b'{"images": [1]}'),
  'a text': (422, JSON, b'{"images": "QUJD"}'),
  'a list': (422, JSON, b'["QUJD"]'),
  'an object': (422, JSON, b'{"images": {"a": 1}}'),
  'no images': (422, JSON, b'{"images": []}'),
  'not base64': (422, JSON, b'{"images": ["$$$$"]}'),
  'a key twice': (422, JSON, b'{"images": [], "images": []}'),
  'large JSON': (413, JSON, b' ' * 200_001),
  'no boundary': (422, {'Content-Type': 'multipart/form-data'}, b'x'),
  'no form': (422, FORM, b'hello'),
  'an empty form': (422, FORM, b'--x--\r\n'),
  'a field': (413, FORM, b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'),
  'no name': (
    422,
    FORM,
    b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nb\r\n--x--\r\n',
  ),
  'a large form': (413, FORM, b'--x\r\n' + b'a' * 200_001),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_hostile_body_is_refused(client, case):
  """Each with its status, one line of JSON, and nothing left behind."""
  status, headers, body = HOSTILE[case]
  answer = client.post('/predict', content=body, headers=headers)
  assert answer.status_code == status, answer.text
  assert list(answer.json()) == ['error'] and '\n' not in answer.json()['error']
  assert 'hierjax_body_bytes 0\n' in client.get('/metrics').text


def test_images_that_cannot_be_read_have_errors_of_their_own(model):
  """Truncated, with many pixels, and empty; the request is answered."""
  limited, content = copy.copy(model), png(0)
  limited.view = dataclasses.replace(model.view, how=model.view.how._replace(max_pixels=900))
  with TestClient(app.Server(limited, LIMITS)) as client:
    body = parts(content, content[: len(content) // 2], png(0, 31), b'')
    records = client.post('/predict', files=body).json()['predictions']
    lines = client.get('/metrics').text.splitlines()
  assert 'path' in records[0] and all('path' not in record for record in records[1:])
  assert 'pixels' in records[2]['error'] and 'empty' in records[3]['error']
  assert {
    'hierjax_images_total{result="ok"} 1', 'hierjax_images_total{result="error"} 3',
    'hierjax_requests_total{path="/predict",status="200"} 1', 'hierjax_body_bytes 0',
    'hierjax_batch_images_total 4',
  } <= {*lines}  # fmt: skip


@pytest.mark.parametrize(
  'query',
  [
    *('top=0', 'top=101', 'top=x', 'classes=no such class', 'classes=%22a', 'top=' + '9' * 9999),
    *('maps=2', 'maps=', 'similar=21', 'similar=-1'),
  ],
)
def test_a_wrong_parameter_is_refused(client, query):
  """Before the body is read."""
  answer = client.post(f'/predict?{query}', files=parts(png(0)))
  assert answer.status_code == 422 and len(answer.text) < 400


@pytest.fixture
def calibrated(model) -> runtime.Exported:
  """The model with two risks: at one everything is answered, at the other nothing."""
  rules = [
    Backoff(risk, None, 'one', ((t,) * 3,), (), (99,)) for risk, t in ((0.1, 0.0), (0.05, NEVER))
  ]
  result = copy.copy(model)
  result.rules = model.rules | {'answer': AnswerRules('val', 99, rules[0], others=(rules[1],))}
  return result


def test_answers_at_a_risk(calibrated):
  """By the thresholds of that risk; what cannot be guaranteed is 400 with the risks that can."""
  with TestClient(app.Server(calibrated, LIMITS)) as client:

    def send(query):
      answer = client.post(f'/predict?{query}', files=parts(png(0)))
      return answer.status_code, answer.json()

    for query, depth in (('', 3), ('risk=0.1', 3), ('risk=.05', 0)):
      status, content = send(query)
      assert status == 200 and content['predictions'][0]['answer']['depth'] == depth
    for text in ('.2', '0', 'nan', '1e999', '-.1'):
      status, content = send(f'risk={text}')
      assert status == 400 and 'the model is calibrated for 0.05, 0.1' in content['error']
    assert client.get('/taxonomy').json()['risks'] == [0.05, 0.1]
    assert send('risk=x')[0] == send('risk=')[0] == 400
    name = calibrated.taxonomy.names[0][0]
    status, content = send(f'risk=.1&classes={name}')
    assert status == 400 and 'guarantees nothing within' in content['error']


def test_a_model_without_calibration_says_how(client):
  answer = client.post('/predict?risk=.1', files=parts(png(0)))
  assert answer.status_code == 400 and '--config.decide.risk' in answer.json()['error']


def test_a_name_that_leads_here_is_refused(model):
  """As a page of another site would send it, by DNS rebinding."""
  hosts = ('localhost', '127.0.0.1', '[::1]')
  with TestClient(app.Server(model, LIMITS, hosts=hosts)) as client:
    for host in ('localhost', 'LOCALHOST:8000', '127.0.0.1:80', '[::1]:8000', '[::1]'):
      assert client.get('/healthz', headers={'Host': host}).status_code == 200
    for host in (
      'evil.example',
      'localhost.evil.example:8000',
      '127.0.0.1.evil',
      '',
      'localhost:x',
    ):
      for path in ('/', '/healthz', '/taxonomy'):
        answer = client.get(path, headers={'Host': host})
        assert answer.status_code == 421 and list(answer.json()) == ['error']


def test_many_requests_may_not_hold_much_memory(model, monkeypatch):
  """The bytes of all bodies are bounded as well."""
  monkeypatch.setattr(inputs, 'BODIES', 0)
  with TestClient(app.Server(model, LIMITS)) as client:
    answer = client.post('/predict', files=parts(png(0)))
    assert answer.status_code == 503 and answer.headers['retry-after'] == '1'


def test_a_failure_is_one_answer(model, monkeypatch):
  """The next request is served."""
  run = model.run
  monkeypatch.setattr(model, 'run', lambda pixels: 1 / 0)
  with TestClient(app.Server(model, LIMITS), raise_server_exceptions=False) as client:
    answer = client.post('/predict', files=parts(png(0)))
    assert (answer.status_code, list(answer.json())) == (500, ['error'])
    monkeypatch.setattr(model, 'run', run)
    assert client.post('/predict', files=parts(png(0))).status_code == 200


def test_the_description_names_every_route_and_the_other_ones_are_none(client, model):
  """Each path of OpenAPI is answered, with the headers of security."""
  api = client.get('/openapi.json').json()
  for path, operations in api['paths'].items():
    answer = client.request(*operations, path)
    content = operations[next(iter(operations))]['responses']['200']['content']
    if path != '/predict':
      assert answer.status_code == 200 and answer.headers['content-type'].startswith(*content)
    assert "frame-ancestors 'none'" in answer.headers['content-security-policy']
    assert answer.headers['x-content-type-options'] == 'nosniff'
    assert client.request('PUT', path).status_code == 405
  missing = client.get('/nothing')
  assert missing.status_code == 404 and missing.json() == {'error': 'Not Found'}
  assert (
    'access-control-allow-origin' not in client.get('/', headers={'Origin': 'http://x'}).headers
  )
  facts = client.get('/taxonomy').json()
  assert facts['hash'] == model.taxonomy.hash() and facts['rows'] == model.taxonomy.rows()


def test_a_token_is_needed(model):
  """For all but the page, its description and the question whether the server lives."""
  with TestClient(app.Server(model, LIMITS, 'secret')) as client:
    for path in ('/predict', '/taxonomy', '/metrics'):
      for value in ('', 'Bearer', 'Bearer secre', 'Basic secret', 'Bearer secret '):
        answer = client.request('GET', path, headers={'Authorization': value.strip()})
        is_right = value.strip() == 'Bearer secret'
        assert (answer.status_code == 401) != is_right
    assert client.get('/').status_code == client.get('/healthz').status_code == 200
