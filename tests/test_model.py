"""A trained run, used: predictions, evaluation elsewhere, bad images, describe."""

import json

import cv2
import numpy as np
import pytest
import tiny

import hierjax
from hierjax import decide
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.evaluate import collect, metrics, summary
from hierjax.experiments import describe
from hierjax.model import run_config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A short run on class folders; every name of a class is unique. It is only read by the tests."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    root = tmp_path_factory.mktemp('images')
    toy = sources.load(tiny.run_config().data)
    for i in range(60):
      make, _, model = (
        toy.taxonomy.names[k][c] for k, c in enumerate(toy.splits['train'].labels[i])
      )
      folder = root / make / model
      folder.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(folder / f'{i}.png'), toy.splits['train'].reader(i)[..., ::-1])
    workdir = tmp_path_factory.mktemp('run')
    result = hierjax.fit(
      tiny.run_config(
        **{
          'data.source': 'folders',
          'data.root': str(root),
          'data.val_share': 0.3,
          'train.steps': 6,
        }
      ),
      workdir,
    )
    yield root, workdir, result


def test_a_large_split_is_evaluated_batch_by_batch(model, monkeypatch, tmp_path):
  """Nothing is held of all classes of all images, and the files are the same."""
  val = model.c.data.val
  examples = model.split(val)
  for name in ('whole', 'parts'):
    (tmp_path / name).mkdir()
  result = model.evaluate(val, into=tmp_path / 'whole', outputs=model.collect(examples))
  assert model.evaluate(val, into=tmp_path / 'parts') == result
  names = f'eval_{val}.json', f'predictions_{val}.npz'
  for name in names:
    assert (tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes()
  # rules are fitted on an even subset of the images, metrics are of all
  monkeypatch.setattr(collect, 'MAX_FITTED', 3 * len(model.taxonomy.paths))
  fitted = collect.to_fit(examples, model.taxonomy)
  assert 1 < len(fitted.labels) <= 3 and {*fitted.files} < {*examples.files}
  monkeypatch.setattr(model, 'workdir', tmp_path)
  outputs = model.collect(fitted)
  rules = decide.tune(outputs.probs, outputs.labels, model.taxonomy)
  assert model.evaluate(val, examples, tune=True)['n'] == result['n']
  assert model.rules == rules


@pytest.fixture
def model(run, monkeypatch):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  return hierjax.load(run[1])


def test_predict_paths_bytes_and_arrays_agree(run, model):
  file = next(run[0].rglob('*.png'))
  array = cv2.imread(str(file))[..., ::-1]
  one, two, three = model.predict([file, file.read_bytes(), array])
  assert one['file'] == str(file) and two['file'] == 'image 1'
  for key in ('path', 'prob', 'top'):
    assert one[key] == two[key] == three[key]
  t = model.taxonomy
  ids = [t.names[k].index(one['path'][level]) for k, level in enumerate(t.levels)]
  assert ids in t.paths.tolist()
  assert (
    0 < one['prob'][t.levels[-1]] <= one['prob'][t.levels[0]] <= 1 + 1e-6
  )  # a child is never more likely than its parent
  assert all(
    len(rows) == min(5, t.num_classes(level)) and rows == sorted(rows, key=lambda r: -r[1])
    for level, rows in one['top'].items()
  )


def test_prediction_equals_evaluation(run, model):
  examples = model.split('val')
  outputs = model.collect(examples)
  joint = model.decide(outputs.probs)['exclusive']['joint']
  files = [run[0] / f for f in examples.files]
  results = model.predict(files)
  assert [s['path'] for s in results] == [
    {level: model.taxonomy.names[k][p[k]] for k, level in enumerate(model.taxonomy.levels)}
    for p in joint.pred
  ]


def test_probabilities_are_arrays_that_predict_decides_on(run, model, tmp_path):
  """Rows follow the images, NaN where one cannot be read; decisions on them are predict's."""
  bad = tmp_path / 'bad.jpg'
  bad.write_bytes(b'no image')
  files = [*sorted(run[0].rglob('*.png'))[:3], bad]
  probs = model.probabilities(files)
  assert set(probs) == set(model.levels)
  for level, p in probs.items():
    assert p.shape == (4, model.taxonomy.num_classes(level)) and np.isnan(p[3]).all()
    np.testing.assert_allclose(p[:3].sum(1), 1, atol=1e-5)
  readable = {level: p[:3] for level, p in probs.items()}
  records = decide.to_records(model.decide(readable), readable, model.taxonomy)
  assert records == [
    {k: v for k, v in record.items() if k != 'file'} for record in model.predict(files)[:3]
  ]
  assert all(p.shape[0] == 0 for p in model.probabilities([]).values())


def test_unreadable_image_is_named_and_the_others_are_predicted(run, model, tmp_path):
  bad = tmp_path / 'bad.jpg'
  bad.write_bytes(b'no image')
  good = next(run[0].rglob('*.png'))
  results = model.predict([bad, good])
  assert results[0] == {'file': str(bad), 'error': 'not an image'} and 'path' in results[1]
  assert [x.get('error') for x in model.predict([bad])] == ['not an image']
  assert model.predict([]) == []


def test_predict_takes_any_iterable_in_order_and_a_few_batches_at_a_time(run, model):
  files = sorted(run[0].rglob('*.png'))[:9]
  expected = model.predict(files)
  assert [line['file'] for line in expected] == [str(file) for file in files]
  read = []

  def generate():
    for file in files:
      read.append(file)
      yield file

  for form in (tuple(files), np.array([str(f) for f in files]), iter(files), dict.fromkeys(files)):
    assert model.predict(form) == expected
  records = model.predict_iter(generate(), batch_size=1)
  assert next(records) == expected[0] and len(read) <= 6  # two threads, two images ahead of each
  records.close()
  assert model.predict(generate(), batch_size=1) == expected
  assert model.predict(files[0]) == model.predict(str(files[0])) == expected[:1]
  arrays = np.stack([cv2.imread(str(f))[..., ::-1] for f in files])
  lines = model.predict(arrays)
  assert [line['path'] for line in lines] == [line['path'] for line in expected]
  assert [line['file'] for line in lines] == [f'image {i}' for i in range(9)]
  assert model.predict(arrays[2])[0]['path'] == expected[2]['path']
  probs = model.probabilities(file for file in files)
  assert all(len(p) == 9 and np.isfinite(p).all() for p in probs.values())


def test_an_iterator_at_its_end_is_an_error_and_an_empty_list_is_none(run, model):
  files = (file for file in sorted(run[0].rglob('*.png'))[:2])
  assert len(model.predict(files)) == 2
  with pytest.raises(UserError, match='a generator can be read only once'):
    model.predict(files)
  for empty in ([], (), np.zeros((0, 8, 8, 3), np.uint8)):
    assert model.predict(empty) == []


def test_evaluate_counts_all_and_matches_a_loop(run, model):
  result = model.evaluate('train')
  examples = model.split('train')
  assert result['n'] == len(examples.labels) and (run[1] / 'eval_train.json').exists()
  saved = np.load(run[1] / 'predictions_train.npz')
  for name in ('independent', 'leaf', 'joint'):
    right = [int(p == y) for p, y in zip(saved[f'pred_{name}'][:, -1], examples.labels[:, -1])]
    assert np.isclose(
      result['decode'][name]['levels'][model.taxonomy.levels[-1]]['top1'], sum(right) / len(right)
    )
  assert result['intervals']['joint']


def test_within_a_subset_of_the_classes(run, model, tmp_path):
  """Other images are left out and counted; the full evaluation and the model stay as they are."""
  examples, table = model.split('train'), model.taxonomy
  make = table.names[0][0]
  small = model.within([make])
  result = small.evaluate('train', examples, into=tmp_path)
  is_inside = examples.labels[:, 0] == 0
  assert (result['n'], result['subset']['left_out']) == (is_inside.sum(), (~is_inside).sum())
  assert result['decode']['joint']['levels'][table.levels[0]]['top1'] == 1
  outputs = model.collect(examples)
  probs = model.decide(outputs.probs)['exclusive']['joint'].prob[0]
  expected = 1 - probs[is_inside, 0].mean()
  assert result['subset']['outside'] == pytest.approx(expected)
  files = [str(f) for f in sorted(run[0].rglob('*.png'))[:3]]
  for before, after in zip(model.predict(files), small.predict(files)):
    assert after['path'][table.levels[0]] == make
    assert after['outside'] == pytest.approx(
      1 - model.decide(model.probabilities(before['file']))['exclusive']['joint'].prob[0][0, 0],
      abs=1e-6,
    )
    assert 'outside' not in before
  with pytest.raises(UserError, match='no class of'):
    model.within(['Nomake'])


def test_evaluate_on_other_images_of_fewer_classes(run, model, tmp_path):
  """Another root without a taxonomy of its own is read by the model's."""
  source = next(run[0].rglob('*.png'))
  folder = tmp_path / source.parent.parent.name / source.parent.name
  folder.mkdir(parents=True)
  for i in range(3):
    (folder / f'{i}.png').write_bytes(source.read_bytes())
  c = run_config(run[1])
  c.data.root, c.data.val_share = str(tmp_path), 0.0
  try:
    result = hierjax.load(run[1], c).evaluate('train')
  finally:
    (run[1] / 'eval_train.json').unlink(missing_ok=True)
  assert result['n'] == 3
  (tmp_path / 'Nomake' / 'Nomodel').mkdir(parents=True)
  (tmp_path / 'Nomake' / 'Nomodel' / 'x.png').write_bytes(source.read_bytes())
  with pytest.raises(UserError, match='Nom'):
    hierjax.load(run[1], c).evaluate('train')


def test_unreadable_images_in_evaluation_are_counted(run, model, tmp_path):
  source = next(run[0].rglob('*.png'))
  folder = tmp_path / source.parent.parent.name / source.parent.name
  folder.mkdir(parents=True)
  for i in range(3):
    (folder / f'{i}.png').write_bytes(source.read_bytes() if i else b'')
  c = run_config(run[1])
  c.data.root, c.data.val_share = str(tmp_path), 0.0
  model = hierjax.load(run[1], c)
  out = model.collect(model.split('train'))
  assert len(out.index) == 2 and len(out.broken) == 1 and out.broken[0].endswith('0.png')
  c.data.strict = True
  with pytest.raises(UserError, match=r'0\.png'):
    hierjax.load(run[1], c).collect(model.split('train'))


def test_views_are_averaged(run, model):
  """Two views: the mean of the probabilities of the image and of its mirror image."""
  examples = model.split('val')
  mirrored = sources.Examples(
    'val',
    examples.files,
    examples.labels,
    lambda i: np.ascontiguousarray(plain(examples, i)[:, ::-1]),
  )
  straight = sources.Examples('val', examples.files, examples.labels, lambda i: plain(examples, i))
  a, b = (model.collect(e).probs[model.levels[-1]] for e in (straight, mirrored))
  model.c.eval.tta = 2
  both = model.collect(straight).probs[model.levels[-1]]
  np.testing.assert_allclose(both, (a + b) / 2, atol=2e-3)


def plain(examples, i):
  return cv2.imdecode(np.frombuffer(examples.reader(i), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_missing_run_and_split(run, model, tmp_path):
  with pytest.raises(UserError, match=r'not a run \(no config\.json\)'):
    hierjax.load(tmp_path)
  with pytest.raises(UserError, match=r'--split=tset: no such split.*choices: train, val'):
    model.evaluate('tset')


def test_describe():
  """ResNet-50 with 3 heads: 24,028,478 parameters (SPEC.md) for 196, 49 and 9 classes."""
  c = config.default()
  c.model.backbone, c.data.root = 'resnet50', 'classes:make=49,type=9,model=196'
  result, of_heads = describe.describe(c), 2048 * (196 + 49 + 9)
  assert result == {
    'trunk_params': 23_508_032,
    'params': 24_028_478,
    'macs': 4_087_136_256 + of_heads,
    'thop_macs': 4_131_694_592 + of_heads,
    'heads': {'make': 100_401, 'type': 18_441, 'model': 401_604},
  }
  json.dumps(result)


def test_per_level_metrics_with_unknown_labels(model):
  """Examples labelled only at the coarse level count there and nowhere else."""
  t = model.taxonomy
  labels = np.array([[0, -1], [0, np.flatnonzero(t.paths[:, 0] == 0)[0]]], np.int32)
  probs = {
    level: np.full((2, t.num_classes(level)), 1 / t.num_classes(level)) for level in t.levels
  }
  out = collect.Outputs(probs, None, labels, np.arange(2), [])
  values = metrics.evaluate(
    decide.decide(out.probs, t, decide.default_rules(t))['exclusive']['independent'],
    labels,
    t,
    t.levels,
  )
  assert [values['levels'][level]['n'] for level in t.levels] == [2, 1]
  assert np.isclose(
    summary.loss(out, t, dict.fromkeys(t.levels, 1.0)),
    sum(np.log(t.num_classes(level)) for level in t.levels),
  )
