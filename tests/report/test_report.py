"""The report: well-formed, self-contained, with the numbers of the evaluation."""

import base64
import collections
import csv
import html.parser
import io
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from markupsafe import Markup
from PIL import Image
from scipy import stats

from hierjax.core import config
from hierjax.core.metrics import METRICS, number, signed
from hierjax.decide import paths
from hierjax.evaluate import bootstrap, example_images, explain, metrics
from hierjax.report import charts, formats, page, runs
from hierjax.report.sections import SECTIONS, answers, images, verdict
from hierjax.taxonomy import Taxonomy, read_taxonomy

MAKES = ('Aster', 'Brook', 'Cedar', 'Dune', 'Ember', 'Fjord', 'Grove', 'Heath')
TYPES = ('coupe', 'sedan', 'suv', 'van', 'wagon')
LEVELS = ('make', 'type', 'model')
HOSTILE = '<script>alert("x")</script> & $\\frac{1}$ \'<img src=x onerror=1>'


def make_taxonomy(levels=LEVELS, evil=''):
  rng = np.random.default_rng(1)
  rows = [
    (MAKES[i % 7], TYPES[rng.integers(5)], f'{MAKES[i % 7]} {100 + i}') for i in range(39)
  ]  # make and type cross
  rows.append((MAKES[7], TYPES[0], evil or 'Heath 1'))
  return Taxonomy.from_rows(levels, rows)


def simulate(taxonomy, labels, heads, skill, seed):
  """Probabilities of heads that see the true class through noise, coarser ones better."""
  rng = np.random.default_rng(seed)
  leaf = 1.9 * rng.normal(size=(len(labels), len(taxonomy.paths)))
  leaf[np.arange(len(labels)), labels[:, -1]] += 1.9 * skill
  probs = []
  for k, level in enumerate(taxonomy.levels):
    p = np.stack(
      [
        np.exp(leaf[:, taxonomy.paths[:, k] == c]).sum(1)
        for c in range(taxonomy.num_classes(level))
      ],
      1,
    )
    p *= np.exp(0.9 * rng.normal(size=p.shape) * (level != taxonomy.levels[-1]))
    p[np.arange(len(labels)), labels[:, k]] *= np.exp(1.1 * (len(taxonomy.levels) - 1 - k > 0))
    probs.append(p / p.sum(-1, keepdims=True) if level in heads else None)
  return probs


def make_run(
  path,
  heads=None,
  name='cars-3head',
  skill=2.6,
  n=600,
  taxonomy=None,
  seed=0,
  split='val',
  skipped=(),
  steps=1200,
  pictures=False,
  prefix='images/',
):
  """A run's directory with plausible contents; heads default to every level."""
  taxonomy = taxonomy or make_taxonomy()
  levels, heads = taxonomy.levels, heads or taxonomy.levels
  path.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  c = config.default()
  c.name, c.data.root, c.train.epochs = name, 'somewhere/drawn_cars', 12.0
  c.model.levels, c.loss.smoothing = tuple(heads), 0.1 if len(heads) > 1 else None
  (path / 'config.json').write_text(config.to_json(c))
  taxonomy.to_csv(path / 'taxonomy.csv')
  phases = [
    {'start': 0, 'end': steps // 4, 'freeze': [f'heads/{levels[-1]}'], 'levels': list(levels[:-1])},
    {'start': steps // 4, 'end': steps, 'freeze': [], 'levels': list(levels)},
  ]
  (path / 'run.json').write_text(
    json.dumps(
      {
        'command': f'python main.py --config=configs/3head.py --workdir=runs/{name} --mode=train',
        'started': '2025-11-02T10:00:00+00:00',
        'finished': '2025-11-02T10:24:09+00:00',
        'versions': {'python': '3.11.9', 'jax': '0.10.2', 'flax': '0.12.1', 'numpy': '2.4.6'},
        'device': '1 x cpu',
        'seconds': 1449.2,
        'params': 3_698_113,
        'heads': list(heads),
        'phases': phases,
        'train_examples': 5685,
        'val_examples': n,
        'classes': {level: taxonomy.num_classes(level) for level in levels},
        'skipped': list(skipped),
        'state_sha256': 'ab' * 32,
        'notes': ['split made: 20% of each class for val, seed 0'],
      }
    )
  )
  with open(path / 'metrics.jsonl', 'w') as file:
    for step in range(10, steps + 1, 10):
      t, epoch, phase = step / steps, 12 * step / steps, int(step >= steps // 4)
      line = {
        'step': step,
        'epoch': epoch,
        'kind': 'train',
        'phase': phase,
        'lr': 1e-3 * 0.5 * (1 + np.cos(np.pi * t)),
        'images_per_s': 46 + rng.normal(),
        'data_wait': 0.02 + 0.01 * rng.random(),
        'grad_norm': 2 * np.exp(-t) + 0.2 * rng.random(),
        'loss': 9 * np.exp(-3 * t) + 0.7 + 0.2 * rng.random(),
      }
      for k, level in enumerate(levels):
        if level in heads and (phase or k < len(levels) - 1):
          line |= {
            f'loss/{level}': (2 + k) * np.exp(-3 * t) + 0.1 * rng.random(),
            f'acc/{level}': 1 - np.exp(-(4 - k) * t) * 0.95 + 0.01 * rng.normal(),
          }
      file.write(json.dumps(line) + '\n')
      if step % (steps // 12) == 0:
        tops = {
          f'top1/{level}': 0.98 - np.exp(-(5 - k) * t) * 0.9 - 0.08 * k
          for k, level in enumerate(levels)
        }
        line = {
          'step': step,
          'epoch': epoch,
          'kind': 'val',
          'loss': 8 * np.exp(-3 * t) + 1.2,
          **tops,
        }
        file.write(
          json.dumps(line | {'fpa': 0.7 * t**0.5, 'hvr': 0.5 - 0.3 * t, 'joint_fpa': 0.78 * t**0.5})
          + '\n'
        )
  labels = taxonomy.paths[np.random.default_rng(7).integers(len(taxonomy.paths), size=n)]
  probs = simulate(taxonomy, labels, heads, skill, seed)
  weights = dict(zip(levels, (0.5, 0.3, 1.0)))
  decoded = {
    'independent': paths.independent(probs, taxonomy),
    'leaf': paths.leaf(probs, taxonomy),
    'joint': paths.joint(probs, taxonomy, list(weights.values())),
  }
  evaluation = {
    'split': split,
    'n': n,
    'unreadable': 0,
    'tta': 1,
    'heads': list(heads),
    'weights': weights,
    'decode': {key: metrics.evaluate(d, labels, taxonomy, heads) for key, d in decoded.items()},
    'intervals': {
      key: bootstrap.intervals(metrics.per_example(d, labels, taxonomy), n=100)
      for key, d in decoded.items()
    },
  }
  (path / f'eval_{split}.json').write_text(json.dumps(evaluation))
  arrays = {'files': np.array([f'{prefix}{i:05d}.jpg' for i in range(n)]), 'labels': labels}
  for key, d in decoded.items():
    arrays[f'pred_{key}'] = d.pred
    arrays[f'prob_{key}'] = np.stack(
      [d.prob[k][np.arange(n), d.pred[:, k]] for k in range(len(levels))], 1
    ).astype(np.float32)
  for k, p in enumerate(probs):
    if p is not None:
      best = np.argsort(-p, axis=1, kind='stable')[:, :5]
      arrays[f'top_{k}'], arrays[f'top_prob_{k}'] = (
        best.astype(np.int32),
        np.take_along_axis(p, best, 1).astype(np.float32),
      )
  np.savez_compressed(path / f'predictions_{split}.npz', **arrays)
  if pictures:
    make_pictures(path, split, arrays, taxonomy)
    make_embedding(path, taxonomy)
  return path


def make_pictures(path, split, predictions, taxonomy):
  """explain_SPLIT.npz with drawn images, each in a colour of its own row."""
  rows = example_images.shown_rows(predictions, taxonomy)
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 60, (len(rows), 120, 160, 3))
  jpegs = [
    simplejpeg.encode_jpeg(
      np.ascontiguousarray((noise[i] + colour_of(row)).astype(np.uint8)), quality=explain.QUALITY
    )
    for i, row in enumerate(rows)
  ]
  n = len(predictions['labels'])
  points = np.sort(rng.permutation(n)[:400])
  np.savez_compressed(
    path / f'explain_{split}.npz',
    predictions=np.array(example_images.digest(path, split)),
    rows=rows,
    jpeg=np.frombuffer(b''.join(jpegs), np.uint8),
    ends=np.cumsum([len(j) for j in jpegs]),
    maps=rng.integers(
      0, 256, (len(rows), len(example_images.head_columns(predictions)), 4, 4)
    ).astype(np.uint8),
    points=points,
    xy=(rng.normal(size=(len(points), 2)) + 6 * predictions['labels'][points, :2]).astype(
      np.float32
    ),
  )


def make_embedding(path, taxonomy, n=80):
  """embedding_first.npz and embedding_last.npz, of images around their prototypes."""
  rng = np.random.default_rng(3)
  leaf = rng.normal(size=(len(taxonomy.paths), 16))
  labels = taxonomy.paths[rng.integers(len(leaf), size=n)]
  sums = [np.zeros((len(names), 16)) for names in taxonomy.names]
  for k, total in enumerate(sums):
    np.add.at(total, taxonomy.paths[:, k], leaf)
  for moment, noise in (('first', 9.0), ('last', 0.4)):
    np.savez_compressed(
      path / f'embedding_{moment}.npz',
      features=(leaf[labels[:, -1]] + noise * rng.normal(size=(n, 16))).astype(np.float32),
      labels=labels,
      **{f'prototype_{k}': total.astype(np.float32) for k, total in enumerate(sums)},
    )


def colour_of(row):
  return np.random.default_rng(int(row)).integers(0, 190, 3)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  path = make_run(
    tmp_path_factory.mktemp('report') / 'run',
    skipped=['images/00017.jpg', 'images/00333.jpg'],
    pictures=True,
  )
  make_run(path / 'baseline', heads=('model',), name='cars-1head', skill=2.5, seed=1)
  page.write(path)
  return path


class Page(html.parser.HTMLParser):
  """A well-formed page: ids, tables as rows of cells, and the addresses a browser would load."""

  VOID = ('meta', 'link', 'br', 'img', 'hr', 'input')

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.loads, self.rows, self.tags, self.words = [], [], [], [], set(), []
    self.feed(text)
    self.close()
    assert not self.open, f'not closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.note(tag, attrs)
    if tag not in self.VOID:
      self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th') and self.rows:
      self.rows[-1].append('')

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)
    self.note(tag, attrs)

  def note(self, tag, attrs):
    for key, value in attrs:
      if key == 'id':
        self.ids.append(value)
      if key in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action', 'poster') and tag != 'a':
        self.loads.append(value)
      assert not key.startswith('on'), f'{tag} has {key}'

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
    self.open.pop()

  def handle_data(self, text):
    if 'style' not in self.open:
      self.words.append(text)
    if {'td', 'th'} & set(self.open) and 'small' not in self.open:
      self.rows[-1][-1] += text.strip()

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


@pytest.fixture
def no_charts(monkeypatch):
  """Charts are made, but for half the time of a report not written as SVG: its words are tested."""

  def empty(_, title):
    return Markup('<svg viewBox="0 0 1 1" role="img" aria-label="{}"></svg>').format(title)

  monkeypatch.setattr(charts, '_svg', empty)


def made_page(path):
  return Page((path / 'report.html').read_text(encoding='utf-8'))


# The sections of multi levels, of decide.novelty, of --mode=migrate and of answers with a risk.
ELSEWHERE = ('labels', 'novelty', 'migration', 'decisions')


def test_well_formed_and_self_contained(full):
  text, parsed = (full / 'report.html').read_text(encoding='utf-8'), made_page(full)
  assert len(text) < 4_000_000
  assert len(parsed.ids) == len(set(parsed.ids))
  assert 'script' not in parsed.tags and 'iframe' not in parsed.tags
  for address in parsed.loads + re.findall(r'url\(([^)]*)\)', text):
    assert address.startswith(('#', 'data:')), address
  for target in re.findall(r'(?:href="#|url\(#)([^")]*)', text):
    assert target in parsed.ids, f'nothing has the id {target}'
  assert '@import' not in text and "default-src 'none'" in text
  assert 'prefers-color-scheme: dark' in text and 'name="viewport"' in text
  assert text.count('<figure>') == 11 + 6 and not re.search('#0102[0-9a-f]{2}', text), (
    'placeholder colours are left'
  )
  assert 'could not be made' not in text
  for section in SECTIONS:
    assert (section.id in parsed.ids) == (section.id not in ELSEWHERE), section.id


def test_the_table_holds_the_numbers_of_the_evaluation(full):
  parsed, evaluation = made_page(full), json.loads((full / 'eval_val.json').read_text())
  baseline = json.loads((full / 'baseline' / 'eval_val.json').read_text())['decode']['leaf']
  columns = [baseline] + [evaluation['decode'][name] for name in ('independent', 'leaf', 'joint')]
  start = next(
    i
    for i, row in enumerate(parsed.rows)
    if row == ['', 'baseline', 'independent', 'leaf', 'joint']
  )
  table = parsed.rows[start + 1 :]
  position = 0
  for metric in ('top1', 'top3', 'top5'):
    position += 1  # the name of the group
    for level in LEVELS:
      expected = [f'{100 * column["levels"][level][metric]:.1f}%' for column in columns]
      assert table[position] == [level, *expected], (metric, level)
      position += 1
  rows = {row[0]: row[1:] for row in table[position:]}
  for label, key in (('full path', 'fpa'), ('HVR', 'hvr'), ('hF1', 'hf1')):
    assert rows[label] == [f'{100 * column[key]:.1f}%' for column in columns], label
  for label, key in (('severity', 'severity'), ('AHD@5', 'ahd5')):
    assert rows[label] == [f'{column[key]:.2f}' for column in columns], label
  assert rows['make-type'] == [
    f'{100 * column["consistency"]["make-type"]:.1f}%' for column in columns
  ]
  interval = evaluation['intervals']['joint']['fpa']
  assert f'{100 * interval["low"]:.1f}–{100 * interval["high"]:.1f}' in parsed.text


def test_the_glossary_is_of_the_words_on_the_page(full):
  text = (full / 'report.html').read_text(encoding='utf-8')
  body, words = text.split('<div id="terms">')
  terms = re.findall(r'<dt>(.*?)</dt>', words)
  for term in terms:
    assert re.search(rf'\b{re.escape(term)}', re.sub('<[^>]*>', ' ', body), re.I), term
  assert {'top-1', 'full path', 'AHD@1', 'ECE', 'plain baseline', 'Grad-CAM', 'seed'} <= set(terms)
  assert not {'mAP, macro', 'F1, macro', 'novelty AUROC', 'loss'} & set(terms)
  assert 'right answers count 0' in words and len(set(terms)) == len(terms)


def test_report_json_holds_the_numbers_of_the_page(full):
  contents, parsed = json.loads((full / 'report.json').read_text()), made_page(full)
  columns = contents['scores']['val']
  assert list(columns) == ['baseline', 'independent', 'leaf', 'joint']
  texts = {cell for row in parsed.rows for cell in row}
  for scores in columns.values():
    for name, score in scores.items():
      text = metrics_text(name, score['value'])
      assert text in texts, (name, text)
  fpa = contents['verdict']['rows']['fpa']
  difference = signed(fpa['interval']['mean'])
  assert difference in texts and f'{difference} points' in parsed.text
  assert fpa['interval']['mean'] == pytest.approx(fpa['value'] - fpa['baseline'])
  arrays = predictions_of(full)
  for k, level in enumerate(LEVELS):
    matrix = contents['confusion'][level]
    cells = {(t, p): n for t, p, n in matrix['cells']}
    pairs = zip(arrays['labels'][:, k].tolist(), arrays['pred_joint'][:, k].tolist())
    assert cells == collections.Counter(pairs)
    assert contents['answers']['levels'][level] == columns['joint'][f'top1/{level}']['value']
  assert contents['answers']['weak'][0]['name'] in parsed.text


def metrics_text(name, value):
  return METRICS[name.partition('/')[0]].text(value)


def test_the_worst_classes_are_those_whose_interval_ends_lowest(full):
  run = runs.read(full)
  labels, pred = run.predicted['labels'][:, -1], run.predicted['pred_joint'][:, -1]
  upper = {}
  for c in set(labels.tolist()):
    right, n = int((pred[labels == c] == c).sum()), int((labels == c).sum())
    interval = stats.binomtest(right, n).proportion_ci(0.95, 'wilson')
    ours = bootstrap.wilson(np.array([right]), np.array([n]), stats.norm.ppf(0.975))
    assert np.allclose(np.ravel(ours), (interval.low, interval.high))
    upper[run.taxonomy.names[-1][c]] = interval.high, right, n
  weak = answers.weak_classes(run)
  expected = sorted(upper.items(), key=lambda item: item[1][0])[: answers.WEAK]
  assert {w.name for w in weak} == {name for name, _ in expected}
  assert all(upper[w.name][1:] == (w.right, w.images) for w in weak)


def test_predictions_are_a_table_with_names(full):
  table = read_taxonomy(full / 'taxonomy.csv')
  with open(full / 'predictions_val.csv', newline='') as f:
    lines = list(csv.DictReader(f))
  arrays = predictions_of(full)
  assert [line['file'] for line in lines] == arrays['files'].tolist()
  for k, level in enumerate(LEVELS):
    for i in range(0, len(lines), 37):
      true, pred = arrays['labels'][i, k], arrays['pred_joint'][i, k]
      assert lines[i][f'{level}_true'] == table.names[k][true]
      assert lines[i][f'{level}_predicted'] == table.names[k][pred]
      assert lines[i][f'{level}_correct'] == str(int(true == pred))
      assert float(lines[i][f'{level}_probability']) == pytest.approx(
        arrays['prob_joint'][i, k], abs=5e-5
      )


def test_the_first_screen_answers_and_gives_commands(full, tmp_path):
  text = (full / 'report.html').read_text(encoding='utf-8')
  start = text[: text.index('<section')]
  for question in ('How good', 'Does the hierarchy help', 'Which classes', 'confuse', 'What next'):
    assert question in start
  assert 'One seed of each can show a difference of' in start and start.count('<img') >= 6
  run = runs.read(full)
  command = answers.next_steps(run, 'no baseline')[0].command
  assert command.startswith('python main.py --config=configs/3head.py')
  assert command.endswith('--config.baseline=train --config.baseline_seeds=3')
  path = shutil.copytree(full, tmp_path / 'run')
  info = json.loads((path / 'run.json').read_text())
  splits = ['train', 'val', 'val_novel', 'winter']
  for names in (splits, splits[:3]):
    (path / 'run.json').write_text(json.dumps(info | {'command': '"unclosed', 'splits': names}))
    *others, use = answers.next_steps(runs.read(path), 'no baseline')
    expected = [f'hierjax evaluate --workdir={path} --split=winter'] * (names == splits)
    assert [step.command for step in others] == expected
  assert use.command == f"hierjax predict --workdir={path} --images='photos/*.jpg'"


def test_a_heat_map_of_few_places_is_drawn_as_cells():
  picture = simplejpeg.encode_jpeg(np.full((128, 128, 3), 128, np.uint8))

  def spread(side):
    """How far the brightness varies within a cell on the diagonal."""
    values, cell = (255 * np.eye(side)).astype(np.uint8), 128 / side
    image = np.asarray(Image.open(io.BytesIO(charts.heat_map(picture, values))), float)
    inner = slice(round(2 * cell) + 2, round(3 * cell) - 2)
    return image[inner, inner].std(axis=(0, 1)).max()

  assert spread(4) < 3 and spread(charts.SHARP) > 10


def test_calibration_before_and_after(full, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(full, path)
  assert 'before calibration' not in section(full, 'calibration')
  evaluation = json.loads((path / 'eval_val.json').read_text())
  before = {'make': 0.1234, 'type': 0.0456, 'model': 0.2345}
  evaluation['calibration'] = {'temperature': 1.734, 'examples': 600, 'ece_before': before}
  (path / 'eval_val.json').write_text(json.dumps(evaluation))
  page.write(path)
  text = section(path, 'calibration')
  assert 'before calibration' in text and 'the temperature 1.73' in text
  assert 'of 600 validation images' in text
  assert all(f'{100 * value:.1f}%' in text for value in before.values())
  evaluation['calibration'] |= {'temperature': 1.8, 'examples': 0}
  (path / 'eval_val.json').write_text(json.dumps(evaluation))
  page.write(path)
  assert 'there are too few validation images to fit it' in section(path, 'calibration')


def test_headline_and_phases_in_words(full):
  text = made_page(full).text
  assert (
    'efficientnet_lite0 with 3 heads (make, type and model) trained on 5,685 images of drawn_cars '
    '(8 make, 5 type and 40 model classes) for 12 epochs, in 24 min 09 s on 1 x cpu.'
  ) in text
  assert 'The scores are of the split "val": 600 images' in text and 'has not finished' not in text
  assert (
    'Phase 1, at the start: loss of make and type; frozen: heads/model. '
    'Phase 2, from epoch 3: loss of make, type and model; frozen: nothing.'
  ) in text


def test_the_best_of_each_row_is_bold(full):
  text = (full / 'report.html').read_text(encoding='utf-8')
  matches = 0
  for better, label in ((max, 'full path'), (min, 'HVR'), (min, 'severity'), (max, 'hF1')):
    row = re.search(rf'<tr><th scope="row">{re.escape(label)}</th>(.*?)</tr>', text)[1]
    values = re.findall(r'<td>(<b>)?([\d.]+)', row)
    best = better(float(value) for _, value in values)
    assert [bool(bold) for bold, _ in values] == [float(value) == best for _, value in values]
    matches += 1
  assert matches == 4


def test_verdict_words_and_interval(full):
  parsed = made_page(full)
  ours = json.loads((full / 'eval_val.json').read_text())['decode']
  base = json.loads((full / 'baseline' / 'eval_val.json').read_text())['decode']['leaf']
  difference = ours['joint']['fpa'] - base['fpa']
  assert difference > 0.03  # the made-up heads help
  assert (
    f'Yes. On val, {100 * ours["joint"]["fpa"]:.1f}% of the images are right at every level with '
    'joint decoding' in parsed.text
  )
  assert (
    f'a difference of +{100 * difference:.1f} points (95% interval over the images alone +'
    in parsed.text
  )
  assert 'paired bootstrap over 600 images' in parsed.text
  assert f'contradict each other on {100 * ours["independent"]["hvr"]:.1f}%' in parsed.text
  assert 'Besides the heads, the two runs differ in loss.smoothing.' in parsed.text
  row = next(row for row in parsed.rows if row[0] == 'full-path accuracy')
  base, joint, loose = (
    f'{100 * x:.1f}%' for x in (base['fpa'], ours['joint']['fpa'], ours['independent']['fpa'])
  )
  assert [*row[1:4], row[6]] == [base, joint, f'+{100 * difference:.1f}', loose]


@pytest.mark.parametrize('swap, answer', [(False, 'Yes.'), (True, 'No.')])
@pytest.mark.usefixtures('no_charts')
def test_verdict_follows_the_interval(tmp_path, swap, answer):
  make_run(tmp_path / 'run', skill=1.5 if swap else 2.8)
  make_run(tmp_path / 'run' / 'baseline', heads=('model',), skill=2.8 if swap else 1.5, seed=1)
  parsed = made_page(page.write(tmp_path / 'run').parent)
  assert f' {answer} On val' in parsed.text
  assert ('The plain model is better here.' in parsed.text) == swap


@pytest.mark.usefixtures('no_charts')
def test_verdict_within_noise_is_not_a_yes(tmp_path):
  make_run(tmp_path / 'run', n=60, seed=3)
  path = make_run(tmp_path / 'run' / 'baseline', heads=('model',), n=60, skill=3.4, seed=1)
  run = runs.read(path.parent)
  fpa = verdict._differences([run], 'val', 'joint', ['fpa'])[0]['fpa']
  assert fpa.low < fpa.images[0] <= 0 <= fpa.images[1] < fpa.high
  assert ' No evidence that it helped. On val' in made_page(page.write(path.parent).parent).text


def make_seeds(path, skills, n=600):
  """A run and its baseline, [skills] of both by seed, the further ones in seedN."""
  for seed, (skill, base) in enumerate(skills):
    folder = path / f'seed{seed}' if seed else path
    make_run(folder, skill=skill, seed=2 * seed, n=n)
    make_run(folder / 'baseline', heads=('model',), skill=base, seed=2 * seed + 1, n=n)
  return page.write(path).parent


@pytest.mark.parametrize('partial', ['keep', 'drop'])
@pytest.mark.usefixtures('no_charts')
def test_the_verdict_says_which_images_each_model_used(tmp_path, partial):
  """A baseline without the images that have no finest label, as a run with missing labels has."""
  path = make_run(tmp_path / 'run', n=60)
  make_run(path / 'baseline', heads=('model',), n=60, seed=1)
  for folder, examples in ((path, 5685), (path / 'baseline', 2900)):
    info = json.loads((folder / 'run.json').read_text())
    info |= {'train_examples': examples, 'step': 400}
    (folder / 'run.json').write_text(json.dumps(info))
  c = json.loads((path / 'baseline' / 'config.json').read_text())
  c['data']['partial'] = partial
  (path / 'baseline' / 'config.json').write_text(json.dumps(c))
  sentence = 'The heads trained on 5,685 images, the baseline on the 2,900 of them that have a '
  text = made_page(page.write(path).parent).text
  assert (sentence in text) == (partial == 'drop')
  assert ('the runs took 400 and 400 steps' in text) == (partial == 'drop')


@pytest.mark.usefixtures('no_charts')
def test_one_seed_decides_no_difference_of_three_points(tmp_path):
  """The images alone would decide it, and the page says how large it would have to be."""
  path = make_seeds(tmp_path / 'run', [(2.6, 2.7)], n=4000)
  fpa = verdict._differences([runs.read(path)], 'val', 'joint', ['fpa'])[0]['fpa']
  assert fpa.images[0] > 0 > fpa.low
  text = made_page(path).text
  assert 'No evidence that it helped. On val' in text and '--config.baseline_seeds=3' in text
  limit = max(fpa.mean - fpa.low, fpa.high - fpa.mean)
  assert f'One seed of each cannot decide a difference below {100 * limit:.1f} points' in text
  assert 'move each accuracy by 1.6 points (an assumed standard deviation)' in text
  # of severities nothing is assumed, so nothing is claimed
  assert re.search(r'Its mistakes are [\d.]+ levels from the truth, against [\d.]+\.', text)


@pytest.mark.usefixtures('no_charts')
def test_several_seeds_cover_the_luck_of_the_seed(tmp_path):
  path = make_seeds(tmp_path / 'run', [(2.9, 2.0), (3.0, 2.1), (2.95, 2.05)])
  run = runs.read(path)
  assert [other.path.name for other in run.seeds] == ['seed1', 'seed2']
  parsed = made_page(path)
  text = parsed.text
  assert 'Yes. On val' in text and '(means over 3 seeds of each)' in text
  assert 'assumed' not in text and 'over images and seeds +' in text
  values = [
    json.loads((folder / 'eval_val.json').read_text())['decode']
    for folder in (path, path / 'seed1', path / 'seed2')
  ]
  mean = np.mean([value['joint']['fpa'] for value in values])
  row = next(row for row in parsed.rows if row[0] == 'full-path accuracy')
  assert row[2] == f'{100 * mean:.1f}%'
  noisy = made_page(make_seeds(tmp_path / 'noisy', [(2.9, 2.0), (2.0, 2.4), (2.6, 2.5)])).text
  assert 'No evidence that it helped.' in noisy and 'choice of images and seeds' in noisy


@pytest.mark.usefixtures('no_charts')
def test_a_seed_that_has_not_been_evaluated_does_not_count(tmp_path):
  path = make_seeds(tmp_path / 'run', [(2.9, 2.0), (3.0, 2.1), (2.95, 2.05)], n=100)
  (path / 'seed2' / 'baseline' / 'eval_val.json').unlink()
  # a folder that leads back into itself is read once
  (path / 'seed2' / 'seed3').symlink_to(path)
  assert 'means over 2 seeds' in made_page(page.write(path).parent).text


@pytest.mark.usefixtures('no_charts')
def test_runs_measured_differently_are_not_compared(tmp_path):
  make_run(tmp_path / 'run', n=600)
  make_run(tmp_path / 'run' / 'baseline', heads=('model',), n=599)
  parsed = made_page(page.write(tmp_path / 'run').parent)
  assert (
    'Not comparable.' in parsed.text and '600 images here and 599 for the baseline' in parsed.text
  )


@pytest.mark.usefixtures('no_charts')
def test_predictions_of_another_evaluation_lend_no_interval(full, tmp_path):
  make_run(tmp_path / 'run')
  make_run(tmp_path / 'run' / 'baseline', heads=('model',), seed=1)
  stale = make_run(tmp_path / 'other', skill=1.0)
  (stale / 'predictions_val.npz').replace(tmp_path / 'run' / 'predictions_val.npz')
  text = made_page(page.write(tmp_path / 'run').parent).text
  assert (
    'the predictions of this run do not belong to its eval_val.json' in text
    and 'Unknown. On val' in text
  )


@pytest.mark.usefixtures('no_charts')
def test_baseline_by_option_and_itself_a_baseline(tmp_path):
  make_run(tmp_path / 'plain', heads=('model',))
  assert 'itself a plain baseline' in made_page(page.write(tmp_path / 'plain').parent).text
  path = make_run(tmp_path / 'run')
  text = made_page(page.write(path).parent).text
  assert '--config.baseline=train' in text and '--config.baseline=RUN_DIR' in text
  options = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(json.dumps(options | {'baseline': str(tmp_path / 'plain')}))
  text = made_page(page.write(path).parent).text
  assert 'against' in text and 'There is no baseline' not in text


INPUTS = [
  'run.json',
  'metrics.jsonl',
  'taxonomy.csv',
  'eval_val.json',
  'predictions_val.npz',
  'explain_val.npz',
  'baseline/eval_val.json',
  'baseline/predictions_val.npz',
]


@pytest.mark.parametrize(
  'damage', [None, b'', b'{"half', b'\xff\xfe\x00'], ids=['missing', 'empty', 'half', 'bytes']
)
@pytest.mark.parametrize('name', INPUTS)
@pytest.mark.usefixtures('no_charts')
def test_missing_or_damaged_inputs_are_said(full, tmp_path, name, damage):
  for file in ['config.json', *INPUTS]:
    for folder in ('', 'baseline/'):
      if (full / (folder + file)).exists():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / (folder + file)).write_bytes((full / (folder + file)).read_bytes())
  if damage is None:
    (tmp_path / name).unlink()
  else:
    (tmp_path / name).write_bytes(damage)
  text = made_page(page.write(tmp_path).parent).text
  assert 'could not be made' not in text and 'Traceback' not in text
  if damage and name in ('run.json', 'taxonomy.csv', 'eval_val.json', 'baseline/eval_val.json'):
    assert 'could not be read' in text
  if damage and name == 'metrics.jsonl':
    assert 'metrics.jsonl: 1 damaged line left out' in text
  if name == 'metrics.jsonl':
    assert 'there are no curves' in text
  if name == 'eval_val.json':
    assert 'during training, at step 1,200,' in text
  if 'predictions' in name:
    assert 'No intervals' in text
  if name == 'predictions_val.npz':
    assert text.count(images.NO_PREDICTIONS) == 4
  if name == 'explain_val.npz':
    assert text.count(images.NO_IMAGES) == 3


@pytest.mark.usefixtures('no_charts')
def test_a_configuration_is_enough_and_without_one_it_is_no_run(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  text = made_page(page.write(tmp_path).parent).text
  assert (
    'there are no scores yet' in text
    and 'This run has not finished' in text
    and 'could not be made' not in text
  )
  with pytest.raises(config.UserError, match=r'no config\.json here'):
    page.write(tmp_path / 'nowhere')


def test_hostile_names_are_text(tmp_path):
  levels = ('<b>make</b>', 'ty"pe/$x$', "mo'del&amp;")
  path = make_run(
    tmp_path / 'run',
    name=HOSTILE,
    taxonomy=make_taxonomy(levels, HOSTILE),
    skipped=[HOSTILE, 'a\udc80b.jpg'],
    prefix=HOSTILE,
    pictures=True,
  )
  (path / 'run.json').write_text(
    (path / 'run.json').read_text().replace('split made', json.dumps('</details>' + HOSTILE)[1:-1])
  )
  make_run(path / 'baseline', heads=levels[-1:], taxonomy=make_taxonomy(levels, HOSTILE), seed=1)
  text, parsed = (page.write(path)).read_text(encoding='utf-8'), made_page(path)
  assert 'script' not in parsed.tags and all(
    address.startswith(('#', 'data:')) for address in parsed.loads
  )
  assert (
    'onerror=1&gt;' in section(path, 'gallery')
    and '<b>make</b>' not in text
    and '&lt;b&gt;make&lt;/b&gt;' in section(path, 'gallery')
  )
  assert '<script' not in text and '&lt;script&gt;' in text and '\\udc80b.jpg' in text
  assert parsed.text.count('alert("x")') >= 4  # title, heading, skipped, note, configuration
  assert text.count('<figure>') == 11 + 6 and 'could not be made' not in text


def predictions_of(path):
  with np.load(path / 'predictions_val.npz') as archive:
    return dict(archive)


def section(path, id):
  return re.search(
    rf'<section id="{id}">(.*?)</section>', (path / 'report.html').read_text(encoding='utf-8'), re.S
  )[1]


def squares(svg):
  """{(row, column): shade class} of a confusion matrix."""
  return {
    (int(y), int(x)): name
    for name, path in re.findall(r'<path class="([do] k\d)" d="([^"]*)"', svg)
    for x, y in re.findall(r'M(\d+) (\d+)h1v1h-1z', path)
  }


def test_confusion_matrices_are_the_predictions_in_the_taxonomys_order(full):
  taxonomy, data = read_taxonomy(full / 'taxonomy.csv'), predictions_of(full)
  svgs = re.findall(r'<svg class="matrix.*?</svg>', section(full, 'confusion'), re.S)
  assert len(svgs) == 3
  for k, svg in enumerate(svgs):
    names = re.findall(r'text-anchor="end">([^<]*)<', svg)
    assert sorted(names) == sorted(taxonomy.names[k])
    if k == 2:
      make_names = [name.split()[0] for name in names]
      assert make_names == sorted(make_names) and names != list(
        taxonomy.names[2]
      )  # the file has the makes mixed
    place = {taxonomy.names[k].index(name): i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    for a, b in zip(data['labels'][:, k], data['pred_joint'][:, k]):
      counts[place[a], place[b]] += 1
    cells = squares(svg)
    assert set(cells) == set(zip(*(x.tolist() for x in np.nonzero(counts))))
    for (y, x), name in cells.items():
      share = counts[y, x] / counts[y].sum()
      shade = int(name[-1])
      assert (
        name[0] == ('d' if x == y else 'o')
        and (shade - 1) / 8 < share**0.5 + 1e-9
        and share**0.5 <= shade / 8 + 1e-9
      )
  percents = sorted(int(v) for v in re.findall(r'<text class="figure[^>]*>(\d+)<', svgs[1]))
  counts = np.zeros((5, 5))
  np.add.at(counts, (data['labels'][:, 1], data['pred_joint'][:, 1]), 1)
  shares = (counts / counts.sum(1, keepdims=True)).ravel()
  assert percents == sorted(int(f'{100 * v:.0f}') for v in shares if v >= 0.005)


def test_zoom_into_a_make_counts_all_its_images(full):
  taxonomy, data = read_taxonomy(full / 'taxonomy.csv'), predictions_of(full)
  blocks = re.findall(r'<details class="block">(.*?)</details>', section(full, 'confusion'), re.S)
  assert len(blocks) == 7  # Heath has a single model
  for block in blocks:
    make = re.search('<b>(.*?)</b>', block)[1]
    models = [c for c in range(40) if taxonomy.names[2][c].startswith(make)]
    inside = np.isin(data['labels'][:, 2], models)
    within = re.search(r'mistakes within it (\d+), elsewhere (\d+)', block)
    pred, labels = data['pred_joint'][inside, 2], data['labels'][inside, 2]
    assert (int(within[1]), int(within[2])) == (
      (np.isin(pred, models) & (pred != labels)).sum(),
      (~np.isin(pred, models)).sum(),
    )
    rows = re.findall(r'<tr><th scope="row"><small>\d+</small> (.*?)</th>(.*?)</tr>', block)
    assert sorted(name for name, _ in rows) == sorted(taxonomy.names[2][c] for c in models)
    for name, cells in rows:
      *numbers, total = [int(v or 0) for v in re.findall(r'<td[^>]*>(\d*)</td>', cells)]
      assert sum(numbers) == total == (labels == taxonomy.names[2].index(name)).sum()


def test_worst_confusions_show_their_own_images(full):
  taxonomy, data = read_taxonomy(full / 'taxonomy.csv'), predictions_of(full)
  matches = re.findall(r'<article class="pair">(.*?)</article>', section(full, 'worst'), re.S)
  assert len(matches) == example_images.CONFUSIONS
  for pair in matches:
    true, pred = (
      taxonomy.names[2].index(re.sub('<[^>]*>', '', name).strip())
      for name in re.search(r'<h4>(.*?)<span.*?</span>(.*?)</h4>', pair).groups()
    )
    count, total, height = map(
      int, re.search(r'(\d+) of (\d+) images; LCA height (\d)', pair).groups()
    )
    rows = np.flatnonzero((data['labels'][:, 2] == true) & (data['pred_joint'][:, 2] == pred))
    assert (count, total) == (len(rows), (data['labels'][:, 2] == true).sum()) and height == (
      taxonomy.paths[true] != taxonomy.paths[pred]
    ).sum()
    for source, file in re.findall(r'<img src="([^"]*)" alt="([^"]*)"', pair):
      row = int(re.search(r'(\d+)\.jpg', file)[1])
      assert data['labels'][row, 2] in (true, pred)
      assert (
        np.abs(pixels(source).mean((0, 1)) - colour_of(row) - 29.5).max() < 6
      )  # the picture is that row's


def pixels(source):
  return np.asarray(
    Image.open(
      io.BytesIO(base64.b64decode(source.removeprefix('data:image/jpeg;base64,')))
    ).convert('RGB'),
    float,
  )


def test_galleries_show_each_pattern_with_the_heads_choices(full):
  taxonomy, data = read_taxonomy(full / 'taxonomy.csv'), predictions_of(full)
  right = example_images.heads_right(data, [0, 1, 2])
  panes = section(full, 'gallery').split('<div class="pane">')[1:]
  patterns, counts = np.unique(right, axis=0, return_counts=True)
  assert len(panes) == len(patterns) and f'{len(patterns)} of the 8 possible patterns' in section(
    full, 'gallery'
  )
  patterns_of_panes = set()
  for pane in panes:
    pattern = tuple(
      word == 'right'
      for word in re.findall(r'(?:make|type|model) (right|wrong)', pane.split('</p>')[0])
    )
    n = int(re.match(r'\s*<p class="note">([\d,]+) image', pane)[1])
    assert n == counts[(patterns == pattern).all(1)][0]
    patterns_of_panes.add(pattern)
    cases = re.findall(r'<article class="case">(.*?)</article>', pane, re.S)
    assert len(cases) == min(n, example_images.IMAGES_PER_PATTERN)
    for case in cases:
      row = int(re.search(r'images/(\d+)\.jpg', case)[1])
      assert tuple(right[row]) == pattern
      heads = case.split('<div class="head">')[1:]
      assert len(heads) == 3
      for k, head in enumerate(heads):
        names = re.findall(r'<span>([^<]*)</span><b>', head)
        shares = re.findall(r'<b>([\d.]+)%</b>', head)
        assert names == [taxonomy.names[k][c] for c in data[f'top_{k}'][row]]
        assert shares == [f'{100 * p:.1f}' for p in data[f'top_prob_{k}'][row].astype(float)]
        marked = re.findall(r'<li class="true"[^>]*>.*?<span>([^<]*)</span>', head)
        assert marked == [
          name for name in names if name == taxonomy.names[k][data['labels'][row, k]]
        ]
        assert pixels(re.search(r'<img src="([^"]*)"', head)[1]).shape == (120, 160, 3)
  assert patterns_of_panes == {tuple(p) for p in patterns.tolist()}


def test_the_tree_holds_every_class_with_its_accuracy(full):
  taxonomy, data = read_taxonomy(full / 'taxonomy.csv'), predictions_of(full)
  text = section(full, 'tree')
  rows = re.findall(
    r'<i class="g(\d)"></i><span class="word">([^<]*)</span>.*?'
    r'<span class="of">([\d,]+)</span><span class="own">([^<]*)</span>',
    text,
  )
  prefixes = {tuple(p[: k + 1]) for p in taxonomy.paths.tolist() for k in range(3)}
  assert len(rows) == len(prefixes)
  for k, level in ((0, 'make'), (2, 'model')):
    for c, name in enumerate(taxonomy.names[k]):
      is_class = data['labels'][:, k] == c
      share = (data['pred_joint'][is_class, k] == c).mean() if is_class.any() else None
      matches = [row for row in rows if row[1] == name]
      assert len(matches) == 1, level
      assert matches[0][2:] == (f'{is_class.sum():,}', number(share))
      if share is not None:
        assert [share >= limit for limit in (0.5, 0.7, 0.8, 0.9)] == [
          int(matches[0][0]) > i for i in range(4)
        ]


ENDING = [
  ('animal', 'dog', 'poodle'),
  ('animal', 'dog', 'pug'),
  ('animal', 'cat', ''),
  ('plant', '', ''),
  ('rock', 'basalt', 'dark basalt'),
]


@pytest.mark.parametrize(
  ('levels', 'rows', 'heads'),
  [
    (('class',), [(f'class {i}',) for i in range(9)], None),
    (
      ('a', 'b', 'c', 'd'),
      [(f'a{i % 2}', f'b{i % 3}', f'c{i % 4}', f'd{i}') for i in range(24)],
      None,
    ),
    (('kingdom', 'kind', 'breed'), ENDING, None),
    (('kingdom', 'kind', 'breed'), ENDING, ('breed',)),
  ],
  ids=['one level', 'crossing', 'ending early', 'one head'],
)
@pytest.mark.usefixtures('no_charts')
def test_other_shapes_of_taxonomy(tmp_path, levels, rows, heads):
  path = make_run(
    tmp_path / 'run', taxonomy=Taxonomy.from_rows(levels, rows), heads=heads, n=150, pictures=True
  )
  text = made_page(page.write(path).parent).text
  assert (
    'could not be made' not in text
    and images.NO_IMAGES not in text
    and images.NO_PREDICTIONS not in text
  )
  assert len(re.findall(r'<svg class="matrix', section(path, 'confusion'))) == len(levels)
  branches = re.findall('<span class="word">([^<]*)</span>', section(path, 'tree'))[1:]
  prefixes = {tuple(row[: k + 1]) for row in rows for k in range(len(levels)) if row[k]}
  assert sorted(branches) == sorted(
    prefix[-1] for prefix in prefixes
  )  # a branch that ends early is no longer
  cases = section(path, 'gallery').split('<article class="case">')[1:]
  assert cases and all(case.count('<div class="head">') == len(heads or levels) for case in cases)


def test_unknown_labels_count_nowhere(full, tmp_path):
  for file in full.iterdir():
    if file.is_file():
      shutil.copy(file, tmp_path)
  data = predictions_of(full)
  data['labels'][:100, 2] = -1
  data['labels'][100:150] = -1
  np.savez_compressed(tmp_path / 'predictions_val.npz', **data)
  make_pictures(tmp_path, 'val', data, read_taxonomy(full / 'taxonomy.csv'))
  page.write(tmp_path)
  assert 'could not be made' not in made_page(tmp_path).text
  assert [
    int(n)
    for n in re.findall(
      r'classes, (\d+) images', section(tmp_path, 'confusion').split('Within each')[0]
    )
  ] == [550, 550, 450]
  counts = [
    int(n) for n in re.findall(r'<p class="note">(\d+) image', section(tmp_path, 'gallery'))
  ]
  assert sum(counts) == 450
  leaves = [
    int(n)
    for n in re.findall(
      r'<div class="branch leaf"><span class="twig"><i.*?<span class="of">(\d+)</span>',
      section(tmp_path, 'tree'),
    )
  ]
  assert len(leaves) == 40 and sum(leaves) == 450
  branches = dict(
    re.findall(
      r'<span class="word">([^<]*)</span>.*?<span class="of">(\d+)</span>',
      section(tmp_path, 'tree'),
    )
  )
  assert (
    sum(int(branches[make]) for make in MAKES) == 550
  )  # a make counts the images whose model is not known, too
  assert 'unknown' in section(tmp_path, 'features') and 'unknown' not in section(full, 'features')


def test_reliability_and_points_are_drawn(full):
  assert len(re.findall('aria-label="Reliability diagram', section(full, 'calibration'))) == 3
  text = section(full, 'features')
  svgs = re.findall(r'<svg class="points".*?</svg>', text, re.S)
  assert len(svgs) == 3 and [svg.count('h0') for svg in svgs] == [400] * 3
  with np.load(full / 'explain_val.npz') as archive:
    points = archive['points']
  data = predictions_of(full)
  wrong = (data['labels'][points, 2] != data['pred_joint'][points, 2]).sum()
  assert re.search(r'<path class="t0" d="([^"]*)"', svgs[2])[1].count('M') == wrong


def logged(path, values):
  """Adds values(step) to each training line of the run; the curves' section."""
  lines = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
  for line in lines:
    if line['kind'] == 'train':
      line |= values(line['step'])
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  page.write(path)
  return section(path, 'curves')


def legend_of(text, title):
  return re.findall(
    r'<i class="([^"]*)"></i>([^<]*)</span>',
    re.search(rf'<b>{title}</b>(.*?)</figcaption>', text, re.S)[1],
  )


def test_loss_weights_are_drawn_where_they_move(full, tmp_path):
  assert 'Loss weights' not in section(full, 'curves')
  path = make_run(tmp_path / 'run', n=40)
  constant = logged(
    path,
    lambda step: {
      'weight/make': 0.5,
      'weight/model': 1.0,
      'weight/tree_path': 0.1,
      'memory_gib': 2.5,
    },
  )
  assert (
    'Loss weights' not in constant
    and 'cosine' not in constant
    and '<b>Peak memory in GiB</b>' in constant
  )
  text = logged(path, lambda step: {'weight/make': 1 - step / 2000, 'weight/model': step / 1000})
  # a level has the colour of its other curves
  assert legend_of(text, 'Loss weights') == [
    ('thick c0', 'make'),
    ('thick c2', 'model'),
    ('thick c3', 'tree_path'),
  ]
  assert 'Loss weights are running means over 4 logged steps' in ' '.join(Page(text).words)


def test_cosines_of_the_tasks_gradients(tmp_path):
  path = make_run(tmp_path / 'run', n=40)
  text = logged(path, lambda step: {'cosine/make-model': -0.4})
  assert (
    legend_of(text, 'Cosine of the tasks&#39; gradients') == [('thick c0', 'make-model')]
    and 'Loss weights' not in text
  )
  svg = re.search(
    r'<svg[^>]*aria-label=\"Cosine of the tasks&#39; gradients\".*?</svg>', text, re.S
  )[0]
  assert {'cosine', 'epoch', '-1', '1'} <= set(re.findall(r'>([^<>]+)</text>', svg))
  text = logged(path, lambda step: {f'cosine/task{i}-b': i / 20 for i in range(15)})
  matches = legend_of(text, 'Cosine of the tasks&#39; gradients')
  assert [name for _, name in matches] == [
    'make-model',
    *(f'task{i}-b' for i in range(11)),
  ]  # the lowest
  assert [style for style, _ in matches] == [f'thick c{i}' for i in range(6)] + [
    f'thick dashed c{i}' for i in range(6)
  ]
  assert 'the 4 pairs with the highest cosines are left out' in ' '.join(Page(text).words)


def test_smoothed_curves_keep_their_mean_and_length():
  rng = np.random.default_rng(0)
  lines = [{'step': i, 'x': 2 + rng.normal()} for i in range(300)]
  raw, smooth = (charts.logged_curve(lines, 'step', 'x', 0, smooth=on) for on in (False, True))
  np.testing.assert_array_equal(raw.x, smooth.x)
  np.testing.assert_allclose(
    smooth.y[20:280], [raw.y[i - 5 : i + 5].mean() for i in range(20, 280)]
  )  # of 10 points
  assert smooth.y.std() < 0.5 * raw.y.std() and abs(smooth.y.mean() - raw.y.mean()) < 0.05
  short = charts.logged_curve(lines[:40], 'step', 'x', 0, smooth=True)
  np.testing.assert_array_equal(short.y, raw.y[:40])


def pictures_of(path):
  """(level, {colour: its points}, marks (shape, colour, small, place, name)) of each picture."""
  for level, svg in re.findall(
    r'<figcaption><b>([^<]*)</b></figcaption>\s*(<svg class="points".*?</svg>)',
    section(path, 'embedding'),
    re.S,
  ):
    dots = {
      hue: np.array(re.findall(r'M(\S+) (\S+)h0', d), float)
      for hue, d in re.findall(r'<path class="t(\w+)" d="([^"]*)"', svg)
    }
    marks = re.findall(
      r'<use href="#shape-(\w+)" class="t(\d+)" '
      r'transform="translate\((\S+) (\S+)\)( scale\(.6\))?"><title>([^<]*)</title>',
      svg,
    )
    yield (
      level,
      dots,
      [
        (shape, hue, bool(small), np.array([x, y], float), name)
        for shape, hue, x, y, small, name in marks
      ],
    )


def test_features_and_prototypes_share_a_plane_and_colours(full):
  taxonomy = read_taxonomy(full / 'taxonomy.csv')
  with np.load(full / 'embedding_last.npz') as archive:
    labels = archive['labels']
  legends = [
    dict(re.findall(r'<i class="t(\d+)"></i>([^<]*)</span>', line))
    for line in re.findall(r'<p class="legend"><b>.*?</p>', section(full, 'embedding'), re.S)
  ]
  assert [len(legend) for legend in legends] == [len(set(labels[:, 0])), len(set(labels[:, 1])), 20]
  assert '80 images and ' in section(full, 'embedding') and 'perplexity 30, seed 0' in section(
    full, 'embedding'
  )
  # of the finest level, all of the models of the most frequent makes
  counts = np.bincount(labels[:, 0], minlength=8)
  make_names = [make for make in np.argsort(-counts, kind='stable') if counts[make]]
  frequent = {taxonomy.names[0][make] for make in make_names[:2]}
  labelled = {taxonomy.names[2][leaf] for leaf in labels[:, 2]}
  assert {name for name in labelled if name.split()[0] in frequent} <= set(legends[2].values())
  matches = list(pictures_of(full))
  assert [level for level, _, _ in matches] == [*LEVELS, *LEVELS]
  for picture, (level, dots, marks) in enumerate(matches):
    k = LEVELS.index(level)
    assert sum(map(len, dots.values())) == 80
    for hue, name in legends[k].items():
      assert len(dots[hue]) == (labels[:, k] == taxonomy.names[k].index(name)).sum()
    assert {shape for shape, _, _, _, _ in marks} == ({'star'} if k == 2 else {'star', 'circle'})
    for shape, hue, small, _, name in marks:
      is_own = shape == 'circle' or k == 2
      assert small != is_own and legends[k][hue] == (
        name if is_own else taxonomy.names[k][taxonomy.paths[taxonomy.names[2].index(name), k]]
      )
    if picture == 5:  # in the end the images lie where the prototype of their class does
      apart = [np.linalg.norm(np.median(dots[hue], 0) - place) for _, hue, _, place, _ in marks]
      others = [
        np.linalg.norm(np.median(dots[hue], 0) - place)
        for _, hue, _, _, _ in marks
        for _, _, _, place, _ in marks
      ]
      assert len(marks) == 20 and np.median(apart) < 0.3 * np.median(others)


def test_features_without_prototypes_and_no_section_without_files(tmp_path):
  taxonomy = make_taxonomy()
  (tmp_path / 'config.json').write_text('{}')
  taxonomy.to_csv(tmp_path / 'taxonomy.csv')
  assert 'Features and prototypes' not in made_page(page.write(tmp_path).parent).text
  make_embedding(tmp_path, taxonomy)
  with np.load(tmp_path / 'embedding_last.npz') as archive:
    arrays = {key: archive[key] for key in ('features', 'labels')}
  (tmp_path / 'embedding_first.npz').unlink()
  np.savez(tmp_path / 'embedding_last.npz', **arrays)
  text = made_page(page.write(tmp_path).parent).text
  assert (
    'After training' in text
    and 'At the first evaluation' not in text
    and 'star' not in text
    and '80 images; perplexity 26.3' in text
  )
  assert [len(marks) for _, _, marks in pictures_of(tmp_path)] == [0, 0, 0]
  np.savez(tmp_path / 'embedding_last.npz', **{key: value[:5] for key, value in arrays.items()})
  assert 'There are too few images to place.' in made_page(page.write(tmp_path).parent).text


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (b'', 'could not be read'),
    (b'PK\x03\x04half', 'could not be read'),
    ({'labels': None}, 'labels'),
    ({'labels': np.full((80, 3), 99)}, 'labels are not of this taxonomy'),
    ({'labels': np.zeros((80, 3))}, 'labels are not of this taxonomy'),
    ({'labels': np.zeros((79, 3), int)}, 'not (79, 16)'),
    ({'features': np.full((80, 16), np.nan)}, 'features is not finite'),
    ({'prototype_1': np.zeros((6, 16))}, 'prototype_1 is (6, 16), not (5, 16)'),
  ],
  ids=[
    'empty',
    'half',
    'no labels',
    'other labels',
    'no numbers',
    'another number',
    'not finite',
    'another level',
  ],
)
@pytest.mark.usefixtures('no_charts')
def test_damaged_embeddings_are_said_and_cost_no_more(tmp_path, change, message):
  taxonomy = make_taxonomy()
  (tmp_path / 'config.json').write_text('{}')
  taxonomy.to_csv(tmp_path / 'taxonomy.csv')
  make_embedding(tmp_path, taxonomy)
  (tmp_path / 'embedding_first.npz').unlink()
  with np.load(tmp_path / 'embedding_last.npz') as archive:
    arrays = dict(archive)
  if isinstance(change, bytes):
    (tmp_path / 'embedding_last.npz').write_bytes(change)
  else:
    np.savez(
      tmp_path / 'embedding_last.npz',
      **{key: value for key, value in {**arrays, **change}.items() if value is not None},
    )
  text = made_page(page.write(tmp_path).parent).text
  assert (
    'embedding_last.npz could not be read: ' in text
    and message in text
    and 'Features and prototypes' not in text
    and 'could not be made' not in text
  )


def test_pictures_of_another_evaluation_are_not_shown(full, tmp_path):
  for file in full.iterdir():
    if file.is_file():
      shutil.copy(file, tmp_path)
  np.savez_compressed(
    tmp_path / 'predictions_val.npz',
    **predictions_of(full) | {'prob_leaf': np.zeros((600, 3), np.float32)},
  )
  page.write(tmp_path)
  assert made_page(tmp_path).text.count(images.NO_IMAGES) == 3 and '<img' not in (
    tmp_path / 'report.html'
  ).read_text(encoding='utf-8')


def test_a_report_of_many_classes_and_levels_stays_small(tmp_path):
  n = 10_000
  rng = np.random.default_rng(0)
  rows = [
    (
      f'realm {i % 60 % 7}',
      f'order {i % 60}',
      f'family {i % 600}',
      f'genus {i % 2400}',
      f'a species with a long name {i}',
    )
    for i in range(n)
  ]
  taxonomy = Taxonomy.from_rows(('realm', 'order', 'family', 'genus', 'species'), rows)
  path = tmp_path
  (path / 'config.json').write_text(config.to_json(config.default()))
  taxonomy.to_csv(path / 'taxonomy.csv')
  labels = taxonomy.paths[rng.integers(n, size=50_000)]
  pred = np.where(
    rng.random((50_000, 1)) < 0.7, labels, taxonomy.paths[rng.integers(n, size=50_000)]
  )
  arrays = {'files': np.array([f'images/{i:06d}.jpg' for i in range(50_000)]), 'labels': labels}
  for name in ('independent', 'leaf', 'joint'):
    arrays |= {f'pred_{name}': pred, f'prob_{name}': rng.random(pred.shape).astype(np.float32)}
  for k in range(5):
    arrays[f'top_{k}'] = np.stack(
      [np.where(rng.random(50_000) < 0.7, pred[:, k], labels[:, k])] + [pred[:, k]] * 4, 1
    ).astype(np.int32)
    arrays[f'top_prob_{k}'] = np.full((50_000, 5), 0.2, np.float32)
  np.savez_compressed(path / 'predictions_val.npz', **arrays)
  levels = {
    level: {
      'top1': 0.7,
      'ece': 0.1,
      'n': 50_000,
      'classes': taxonomy.num_classes(level),
      'head': True,
    }
    for level in taxonomy.levels
  }
  decoded = {'n': 50_000, 'levels': levels, 'fpa': 0.7, 'hvr': 0.1}
  (path / 'eval_val.json').write_text(
    json.dumps({'split': 'val', 'n': 50_000, 'decode': {'independent': decoded, 'joint': decoded}})
  )
  make_pictures(path, 'val', arrays, taxonomy)
  make_embedding(path, taxonomy)
  size = page.write(path).stat().st_size
  text = made_page(path).text
  assert 'could not be made' not in text and size < 15_000_000
  assert (
    'There are too many branches below family' in text
    and 'Each square covers 40 consecutive classes' in text
  )
  order = sorted(range(n), key=lambda c: (*taxonomy.paths[c, :4].tolist(), c))
  bins = np.argsort(order) // 40
  cells = squares(re.findall(r'<svg class="matrix.*?</svg>', section(path, 'confusion'), re.S)[-1])
  assert set(cells) == {(int(bins[a]), int(bins[b])) for a, b in zip(labels[:, -1], pred[:, -1])}


# In a browser.

BROWSER = next(
  filter(
    None,
    map(
      shutil.which,
      ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'),
    ),
  ),
  None,
)


HANDOVER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends): os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""  # Chromium reads from its file 3 and writes to its file 4


class Browser:
  """Headless Chromium, spoken to by its DevTools protocol over a pair of pipes: NUL-ended JSON."""

  def __init__(self, folder):
    (theirs_in, self.out), (self.inn, theirs_out) = os.pipe(), os.pipe()
    quiet = (
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    )
    self.process = subprocess.Popen(
      [
        sys.executable,
        '-c',
        HANDOVER,
        str(theirs_in),
        str(theirs_out),
        BROWSER,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        *quiet,
        '--remote-debugging-pipe',
        f'--user-data-dir={folder}',
        'about:blank',
      ],
      pass_fds=(theirs_in, theirs_out),
      stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    self.ids, self.buffer, self.events, self.session = itertools.count(1), b'', [], None
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Network', 'Runtime', 'Log'):
      self.call(f'{domain}.enable')

  def read(self):
    while b'\0' not in self.buffer:
      assert select.select([self.inn], [], [], 60)[0], 'Chromium says nothing for a minute'
      part = os.read(self.inn, 1 << 20)
      assert part, 'Chromium has ended'
      self.buffer += part
    message, self.buffer = self.buffer.split(b'\0', 1)
    return json.loads(message)

  def call(self, method, **params):
    call_id = next(self.ids)
    os.write(
      self.out,
      json.dumps(
        {'id': call_id, 'method': method, 'params': params}
        | ({'sessionId': self.session} if self.session else {})
      ).encode()
      + b'\0',
    )
    while (message := self.read()).get('id') != call_id:
      self.events.append(message)
    assert 'error' not in message, message
    return message['result']

  def visit(self, address, width=1200):
    """Opens a page in a window so wide: (messages and errors, addresses that were requested)."""
    self.events = []
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=900,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    self.call('Page.navigate', url=address)
    while not any(event.get('method') == 'Page.loadEventFired' for event in self.events):
      self.events.append(self.read())
    self.evaluate('new Promise(done => setTimeout(done, 200))')
    errors = [
      event['params']
      for event in self.events
      if event.get('method')
      in ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Log.entryAdded')
    ]
    return errors, [
      event['params']['request']['url']
      for event in self.events
      if event.get('method') == 'Network.requestWillBeSent'
    ]

  def evaluate(self, expression):
    result = self.call(
      'Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def close(self):
    self.process.kill()
    self.process.wait()
    os.close(self.out)
    os.close(self.inn)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  if BROWSER is None:
    pytest.skip('no Chromium is installed')
  opened = Browser(tmp_path_factory.mktemp('profile'))
  yield opened
  opened.close()


def test_in_chromium_there_is_no_error_and_no_request(full, browser):
  address = (full / 'report.html').as_uri()
  errors, requests = browser.visit(address)
  assert errors == [] and [url for url in requests if not url.startswith('data:')] == [address]
  assert browser.evaluate('[...document.querySelectorAll("section")].map(s => s.id)') == [
    part.id for part in SECTIONS if part.id not in ELSEWHERE
  ]


def test_the_browser_test_would_notice(browser, tmp_path):
  bad = '<script>fetch("http://127.0.0.1:9/a"); undefined_function()</script>'
  bad += '<img src="http://127.0.0.1:9/b.png">'
  (tmp_path / 'bad.html').write_text(
    f'<!doctype html><title>x</title><link rel="icon" href="data:,">{bad}'
  )
  errors, requests = browser.visit((tmp_path / 'bad.html').as_uri())
  assert 'undefined_function' in str(errors) and {
    'http://127.0.0.1:9/a',
    'http://127.0.0.1:9/b.png',
  } <= set(requests)


# With every tab and detail open: elements wider than the screen outside what scrolls, texts of a
# matrix that are cut off, broken pictures.
PROBE = """(async () => {
  const wide = new Set(), blank = [];
  const check = e => {
    const box = e.getBoundingClientRect();
    const outside = box.right > WIDTH + 1 || box.left < -1;
    if (box.width && outside && !e.parentElement.closest('.scroll, pre')) {
      const name = e.tagName + '.' + (e.className.baseVal ?? e.className);
      wide.add(name + ' ' + Math.round(box.left) + ' to ' + Math.round(box.right));
    }
  };
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  document.querySelectorAll('main *').forEach(check);
  for (const pick of document.querySelectorAll('.tabs > input')) {
    pick.checked = true;
    pick.parentElement.querySelectorAll('*').forEach(check);
    const pane = pick.nextElementSibling.nextElementSibling;
    for (const text of pane.querySelectorAll('.matrix text')) {
      const a = text.getBoundingClientRect(), b = text.ownerSVGElement.getBoundingClientRect();
      if (a.left < b.left - 1 || a.top < b.top - 1 || a.right > b.right + 1)
        wide.add('cut off: ' + text.textContent);
    }
  }
  for (const image of document.images) {
    image.loading = 'eager';
    await image.decode().catch(() => blank.push(image.alt));
  }
  const small = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.getClientRects().length) continue;
    const m = e.ownerSVGElement ? e.getScreenCTM() : {a: 1, b: 0};
    const size = parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b);
    if (size < 10.99) small.add(e.tagName + ' ' + size + ' ' + e.textContent.slice(0, 20));
  }
  const full = document.documentElement.scrollWidth, count = document.images.length;
  return [innerWidth, full, [...wide].slice(0, 5), blank, count, [...small].slice(0, 5)];
})()"""


@pytest.fixture(scope='module')
def long_names(tmp_path_factory):
  """A run whose every name is long, with spaces and without."""
  rows = [
    (
      f'{"A very long make " * 4}{i % 4}',
      f'{"unbroken" * 12}{i % 3}',
      f'{"Model_with_underscores_" * 4}{i} {"and words " * 5}',
    )
    for i in range(30)
  ]
  taxonomy = Taxonomy.from_rows(('the level of ' + 'x' * 60, 'type', 'model'), rows)
  path = tmp_path_factory.mktemp('long') / 'run'
  make_run(
    path,
    taxonomy=taxonomy,
    name='name' * 40,
    prefix='folder/' + 'file' * 40,
    pictures=True,
    skipped=['s' * 300],
  )
  return page.write(path).parent


@pytest.mark.parametrize('width', [390, 1200])
@pytest.mark.parametrize('run', ['full', 'long_names'])
def test_in_chromium_everything_fits_the_screen(request, browser, run, width):
  browser.visit((request.getfixturevalue(run) / 'report.html').as_uri(), width)
  inner, scroll, wide, blank, images, small = browser.evaluate(PROBE.replace('WIDTH', str(width)))
  assert inner == width and scroll <= width and wide == [] and blank == [] and images > 100
  assert small == []


def test_in_chromium_links_open_the_folds(full, browser):
  browser.visit((full / 'report.html').as_uri())
  is_open = '[...document.querySelectorAll(".fold")].map(d => d.open)'
  assert not any(browser.evaluate(is_open))
  for section in ('calibration', 'curves'):
    browser.evaluate(f'document.querySelector(\'nav a[href="#{section}"]\').click()')
    assert browser.evaluate(f'document.getElementById("{section}").closest("details").open')
  assert sum(browser.evaluate(is_open)) == 2
  top = 'document.querySelector("nav").getBoundingClientRect().top'
  assert browser.evaluate(f'scrollY > 500 && {top} == 0')
  targets = '[...document.querySelectorAll("a[href]")].map(a => a.getAttribute("href").slice(1))'
  missing = f'{targets}.filter(id => !document.getElementById(id))'
  assert browser.evaluate(missing) == []


def test_in_chromium_tabs_switch_by_click(full, browser):
  browser.visit((full / 'report.html').as_uri())
  visible = '[...document.querySelectorAll("#confusion .pane")].map(p => p.offsetHeight > 0)'
  assert browser.evaluate(visible) == [True, False, False]
  browser.evaluate('document.querySelectorAll("#confusion .tabs label")[2].click()')
  assert browser.evaluate(visible) == [False, False, True]


def test_resumed_and_damaged_metrics(tmp_path):
  lines = [
    {'step': 10, 'kind': 'train', 'loss': 5.0},
    {'step': 20, 'kind': 'train', 'loss': float('nan')},
    {'step': 20, 'kind': 'train', 'loss': 4.0},
    {'step': 10, 'kind': 'val', 'loss': 6.0},
  ]
  (tmp_path / 'metrics.jsonl').write_text(
    '\n'.join(map(json.dumps, lines)) + '\n[1]\n{"step": 30, "kind": "tr'
  )
  train, val, damaged = runs._metrics(tmp_path / 'metrics.jsonl')
  assert (
    [line['loss'] for line in train] == [5.0, 4.0]
    and [line['loss'] for line in val] == [6.0]
    and damaged == 2
  )


def test_long_runs_and_many_skipped_stay_small(tmp_path):
  path = make_run(
    tmp_path / 'run', steps=60_000, skipped=[f'images/{"x" * 80}{i}.jpg' for i in range(5000)]
  )
  assert page.write(path).stat().st_size < 1_000_000
  text = made_page(path).text
  assert (
    'averaged in bins' in text and 'and 4,500 more' in text and '5,000 could not be read' in text
  )


def test_numbers_in_words():
  assert number(0.70149) == '70.1%' and number(1.256, False) == '1.26'
  assert number(None) == number(float('nan')) == '–'
  assert signed(-0.0304) == '−3.0' and signed(0.0004) == '0.0' and signed(0.12, False) == '+0.12'
  assert (
    formats.listed(['a']) == 'a'
    and formats.listed('abc') == 'a, b and c'
    and formats.listed([]) == ''
  )
  assert (
    formats.duration(59.6) == '60 s'
    and formats.duration(1449) == '24 min 09 s'
    and formats.duration(7260) == '2 h 01 min'
  )
