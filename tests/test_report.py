"""The report: self-contained and well-formed, its numbers those of the evaluation, and a plain sentence where something is missing."""
import base64
import functools
import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from hierjax import charts, config, decode, explain, metrics, mistakes, page, report, runs
from hierjax.taxonomy import Taxonomy

MAKES = ('Aster', 'Brook', 'Cedar', 'Dune', 'Ember', 'Fjord', 'Grove', 'Heath')
TYPES = ('coupe', 'sedan', 'suv', 'van', 'wagon')
LEVELS = ('make', 'type', 'model')
HOSTILE = '<script>alert("x")</script> & $\\frac{1}$ \'<img src=x onerror=1>'


def make_taxonomy(levels=LEVELS, evil=''):
  rng = np.random.default_rng(1)
  rows = [(MAKES[i % 7], TYPES[rng.integers(5)], f'{MAKES[i % 7]} {100 + i}') for i in range(39)]  # make and type cross
  rows.append((MAKES[7], TYPES[0], evil or 'Heath 1'))
  return Taxonomy.from_rows(levels, rows)


def simulate(taxonomy, labels, heads, skill, seed):
  """Probabilities of heads that see the true class through noise, which they share in part; the coarser ones see it better."""
  rng = np.random.default_rng(seed)
  leaf = 1.9 * rng.normal(size=(len(labels), len(taxonomy.paths)))
  leaf[np.arange(len(labels)), labels[:, -1]] += 1.9 * skill
  probs = []
  for k, level in enumerate(taxonomy.levels):
    p = np.stack([np.exp(leaf[:, taxonomy.paths[:, k] == c]).sum(1) for c in range(taxonomy.num_classes(level))], 1)
    p *= np.exp(.9 * rng.normal(size=p.shape) * (level != taxonomy.levels[-1]))
    p[np.arange(len(labels)), labels[:, k]] *= np.exp(1.1 * (len(taxonomy.levels) - 1 - k > 0))
    probs.append(p / p.sum(-1, keepdims=True) if level in heads else None)
  return probs


def make_run(path, heads=None, name='cars-3head', skill=2.6, n=600, taxonomy=None, seed=0, split='val', skipped=(), steps=1200, pictures=False):
  """A run's directory with plausible contents; heads default to every level."""
  taxonomy = taxonomy or make_taxonomy()
  levels, heads = taxonomy.levels, heads or taxonomy.levels
  path.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  c = config.default()
  c.name, c.data.root, c.train.epochs = name, 'somewhere/drawn_cars', 12.
  c.model.levels, c.loss.smoothing = ','.join(heads), .1 if len(heads) > 1 else 0.
  (path / 'config.json').write_text(config.to_json(c))
  taxonomy.to_csv(path / 'taxonomy.csv')
  phases = [{'start': 0, 'end': steps // 4, 'freeze': [f'heads/{levels[-1]}'], 'levels': list(levels[:-1])},
            {'start': steps // 4, 'end': steps, 'freeze': [], 'levels': list(levels)}]
  (path / 'run.json').write_text(json.dumps({
    'command': f'python main.py --config=configs/3head.py --workdir=runs/{name} --mode=train', 'started': '2025-11-02T10:00:00+00:00',
    'finished': '2025-11-02T10:24:09+00:00', 'versions': {'python': '3.11.9', 'jax': '0.10.2', 'flax': '0.12.1', 'numpy': '2.4.6'},
    'device': '1 x cpu', 'seconds': 1449.2, 'params': 3_698_113, 'heads': list(heads), 'phases': phases,
    'train_examples': 5685, 'val_examples': n, 'classes': {level: taxonomy.num_classes(level) for level in levels},
    'skipped': list(skipped), 'state_sha256': 'ab' * 32,
    'notes': ['split made: 20% of each class for val, seed 0']}))
  with open(path / 'metrics.jsonl', 'w') as file:
    for step in range(10, steps + 1, 10):
      t, epoch, phase = step / steps, 12 * step / steps, int(step >= steps // 4)
      line = {'step': step, 'epoch': epoch, 'kind': 'train', 'phase': phase, 'lr': 1e-3 * .5 * (1 + np.cos(np.pi * t)),
              'images_per_s': 46 + rng.normal(), 'data_wait': .02 + .01 * rng.random(), 'grad_norm': 2 * np.exp(-t) + .2 * rng.random(),
              'loss': 9 * np.exp(-3 * t) + .7 + .2 * rng.random()}
      for k, level in enumerate(levels):
        if level in heads and (phase or k < len(levels) - 1):
          line |= {f'loss/{level}': (2 + k) * np.exp(-3 * t) + .1 * rng.random(),
                   f'acc/{level}': 1 - np.exp(-(4 - k) * t) * .95 + .01 * rng.normal()}
      file.write(json.dumps(line) + '\n')
      if step % (steps // 12) == 0:
        tops = {f'top1/{level}': .98 - np.exp(-(5 - k) * t) * .9 - .08 * k for k, level in enumerate(levels)}
        line = {'step': step, 'epoch': epoch, 'kind': 'val', 'loss': 8 * np.exp(-3 * t) + 1.2, **tops}
        file.write(json.dumps(line | {'fpa': .7 * t ** .5, 'hvr': .5 - .3 * t, 'joint_fpa': .78 * t ** .5}) + '\n')
  labels = taxonomy.paths[np.random.default_rng(7).integers(len(taxonomy.paths), size=n)]
  probs = simulate(taxonomy, labels, heads, skill, seed)
  weights = dict(zip(levels, (.5, .3, 1.)))
  decoded = {'independent': decode.independent(probs, taxonomy), 'leaf': decode.leaf(probs, taxonomy),
             'joint': decode.joint(probs, taxonomy, list(weights.values()))}
  evaluation = {'split': split, 'n': n, 'unreadable': 0, 'tta': 1, 'heads': list(heads), 'weights': weights,
                'decode': {key: metrics.evaluate(d, labels, taxonomy, heads) for key, d in decoded.items()},
                'intervals': {key: metrics.bootstrap(metrics.per_example(d, labels, taxonomy), n=100) for key, d in decoded.items()}}
  (path / f'eval_{split}.json').write_text(json.dumps(evaluation))
  arrays = {'files': np.array([f'images/{i:05d}.jpg' for i in range(n)]), 'labels': labels}
  for key, d in decoded.items():
    arrays[f'pred_{key}'] = d.pred
    arrays[f'prob_{key}'] = np.stack([d.prob[k][np.arange(n), d.pred[:, k]] for k in range(len(levels))], 1).astype(np.float32)
  for k, p in enumerate(probs):
    if p is not None:
      best = np.argsort(-p, axis=1, kind='stable')[:, :5]
      arrays[f'top_{k}'], arrays[f'top_prob_{k}'] = best.astype(np.int32), np.take_along_axis(p, best, 1).astype(np.float32)
  np.savez_compressed(path / f'predictions_{split}.npz', **arrays)
  if pictures: make_pictures(path, split, arrays, taxonomy)
  return path


def make_pictures(path, split, predictions, taxonomy):
  """explain_SPLIT.npz with drawn images, each in a colour of its own row."""
  rows = explain.shown(predictions, taxonomy)
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 60, (len(rows), 120, 160, 3))
  jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray((noise[i] + colour_of(row)).astype(np.uint8)), quality=explain.QUALITY) for i, row in enumerate(rows)]
  n = len(predictions['labels'])
  points = np.sort(rng.permutation(n)[:400])
  np.savez_compressed(
    path / f'explain_{split}.npz', predictions=np.array(explain.digest(path, split)), rows=rows, jpeg=np.frombuffer(b''.join(jpegs), np.uint8),
    ends=np.cumsum([len(j) for j in jpegs]), maps=rng.integers(0, 256, (len(rows), len(explain.heads(predictions)), 4, 4)).astype(np.uint8),
    points=points, xy=(rng.normal(size=(len(points), 2)) + 6 * predictions['labels'][points, :2]).astype(np.float32))


def colour_of(row):
  return np.random.default_rng(int(row)).integers(0, 190, 3)


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  path = make_run(tmp_path_factory.mktemp('report') / 'run', skipped=['images/00017.jpg', 'images/00333.jpg'], pictures=True)
  make_run(path / 'baseline', heads=('model',), name='cars-1head', skill=2.5, seed=1)
  report.write(path)
  return path


class Page(html.parser.HTMLParser):
  """Every element closed in its order; ids, tables as rows of cells, and the addresses that a browser would load."""
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
    if tag not in self.VOID: self.open.append(tag)
    if tag == 'tr': self.rows.append([])
    if tag in ('td', 'th') and self.rows: self.rows[-1].append('')

  def handle_startendtag(self, tag, attrs):
    self.tags.add(tag)
    self.note(tag, attrs)

  def note(self, tag, attrs):
    for key, value in attrs:
      if key == 'id': self.ids.append(value)
      if key in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action', 'poster') and tag != 'a': self.loads.append(value)
      assert not key.startswith('on'), f'{tag} has {key}'

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
    self.open.pop()

  def handle_data(self, text):
    if 'style' not in self.open: self.words.append(text)
    if {'td', 'th'} & set(self.open) and 'small' not in self.open: self.rows[-1][-1] += text.strip()

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


def made_page(path):
  return Page((path / 'report.html').read_text(encoding='utf-8'))


def test_well_formed_and_self_contained(full):
  text, made = (full / 'report.html').read_text(encoding='utf-8'), made_page(full)
  assert len(text) < 4_000_000
  assert len(made.ids) == len(set(made.ids))
  assert 'script' not in made.tags and 'iframe' not in made.tags
  for address in made.loads + re.findall(r'url\(([^)]*)\)', text):
    assert address.startswith(('#', 'data:')), address
  for target in re.findall(r'(?:href="#|url\(#)([^")]*)', text): assert target in made.ids, f'nothing has the id {target}'
  assert '@import' not in text and "default-src 'none'" in text
  assert 'prefers-color-scheme: dark' in text and 'name="viewport"' in text
  assert text.count('<figure>') == 11 and not re.search('#0102[0-9a-f]{2}', text), 'placeholder colours are left'
  assert 'could not be made' not in text
  for section in report.SECTIONS: assert section.id in made.ids


def test_the_table_holds_the_numbers_of_the_evaluation(full):
  made, evaluation = made_page(full), json.loads((full / 'eval_val.json').read_text())
  baseline = json.loads((full / 'baseline' / 'eval_val.json').read_text())['decode']['leaf']
  columns = [baseline] + [evaluation['decode'][name] for name in ('independent', 'leaf', 'joint')]
  start = next(i for i, row in enumerate(made.rows) if row == ['', 'baseline', 'independent', 'leaf', 'joint'])
  table = made.rows[start + 1:]
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
  assert rows['make-type'] == [f'{100 * column["consistency"]["make-type"]:.1f}%' for column in columns]
  interval = evaluation['intervals']['joint']['fpa']
  assert f'{100 * interval["low"]:.1f}–{100 * interval["high"]:.1f}' in made.text


def test_headline_and_phases_in_words(full):
  text = made_page(full).text
  assert ('efficientnet_lite0 with 3 heads (make, type and model) trained on 5,685 images of drawn_cars '
          '(8 make, 5 type and 40 model classes) for 12 epochs, in 24 min 09 s on 1 x cpu.') in text
  assert 'These are val numbers: 600 images' in text and 'has not finished' not in text
  assert ('Phase 1, at the start: loss of make and type; frozen: heads/model. '
          'Phase 2, from epoch 3: loss of make, type and model; frozen: nothing.') in text


def test_the_best_of_each_row_is_bold(full):
  text = (full / 'report.html').read_text(encoding='utf-8')
  found = 0
  for better, label in ((max, 'full path'), (min, 'HVR'), (min, 'severity'), (max, 'hF1')):
    row = re.search(rf'<tr><th scope="row">{re.escape(label)}</th>(.*?)</tr>', text)[1]
    values = re.findall(r'<td>(<b>)?([\d.]+)', row)
    best = better(float(value) for _, value in values)
    assert [bool(bold) for bold, _ in values] == [float(value) == best for _, value in values]
    found += 1
  assert found == 4


def test_verdict_words_and_interval(full):
  made = made_page(full)
  ours = json.loads((full / 'eval_val.json').read_text())['decode']
  base = json.loads((full / 'baseline' / 'eval_val.json').read_text())['decode']['leaf']
  difference = ours['joint']['fpa'] - base['fpa']
  assert difference > .03  # the made-up heads help
  assert f'Yes. On val, {100 * ours["joint"]["fpa"]:.1f}% of the images are right at every level with joint decoding' in made.text
  assert f'a difference of +{100 * difference:.1f} points (95% interval +' in made.text
  assert 'paired bootstrap over 600 images' in made.text
  assert f'contradict each other on {100 * ours["independent"]["hvr"]:.1f}%' in made.text
  assert 'Besides the heads, the two runs differ in loss.smoothing.' in made.text
  row = next(row for row in made.rows if row[0] == 'full-path accuracy')
  base, joint, loose = (f'{100 * x:.1f}%' for x in (base['fpa'], ours['joint']['fpa'], ours['independent']['fpa']))
  assert [*row[1:4], row[5]] == [base, joint, f'+{100 * difference:.1f}', loose]


@pytest.mark.parametrize('swap, answer', [(False, 'Yes.'), (True, 'No.')])
def test_verdict_follows_the_interval(tmp_path, swap, answer):
  make_run(tmp_path / 'run', skill=1.5 if swap else 2.8)
  make_run(tmp_path / 'run' / 'baseline', heads=('model',), skill=2.8 if swap else 1.5, seed=1)
  made = made_page(report.write(tmp_path / 'run').parent)
  assert f' {answer} On val' in made.text
  assert ('The plain model is better here.' in made.text) == swap


def test_verdict_within_noise_is_not_a_yes(tmp_path):
  make_run(tmp_path / 'run', n=60, seed=3)
  path = make_run(tmp_path / 'run' / 'baseline', heads=('model',), n=60, skill=3.4, seed=1)
  run = runs.read(path.parent)
  low, high = report._intervals(run, 'val', 'joint')[0]['fpa']
  assert low <= 0 <= high
  assert ' Not shown. On val' in made_page(report.write(path.parent).parent).text


def test_runs_measured_differently_are_not_compared(tmp_path):
  make_run(tmp_path / 'run', n=600)
  make_run(tmp_path / 'run' / 'baseline', heads=('model',), n=599)
  made = made_page(report.write(tmp_path / 'run').parent)
  assert 'Not comparable.' in made.text and '600 images here and 599 for the baseline' in made.text


def test_predictions_of_another_evaluation_lend_no_interval(full, tmp_path):
  make_run(tmp_path / 'run')
  make_run(tmp_path / 'run' / 'baseline', heads=('model',), seed=1)
  stale = make_run(tmp_path / 'other', skill=1.)
  (stale / 'predictions_val.npz').replace(tmp_path / 'run' / 'predictions_val.npz')
  text = made_page(report.write(tmp_path / 'run').parent).text
  assert 'the predictions of this run do not belong to its eval_val.json' in text and 'It seems so.' in text


def test_baseline_by_option_and_itself_a_baseline(tmp_path):
  make_run(tmp_path / 'plain', heads=('model',))
  assert 'itself a plain baseline' in made_page(report.write(tmp_path / 'plain').parent).text
  path = make_run(tmp_path / 'run')
  text = made_page(report.write(path).parent).text
  assert '--config.baseline=train' in text and '--config.baseline=RUN_DIR' in text
  options = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(json.dumps(options | {'baseline': str(tmp_path / 'plain')}))
  text = made_page(report.write(path).parent).text
  assert 'against' in text and '--config.baseline=train' not in text


INPUTS = ['run.json', 'metrics.jsonl', 'taxonomy.csv', 'eval_val.json', 'predictions_val.npz', 'explain_val.npz',
          'baseline/eval_val.json', 'baseline/predictions_val.npz']


@pytest.mark.parametrize('damage', [None, b'', b'{"half', b'\xff\xfe\x00'], ids=['missing', 'empty', 'half', 'bytes'])
@pytest.mark.parametrize('name', INPUTS)
def test_missing_or_damaged_inputs_are_said(full, tmp_path, name, damage):
  for file in ['config.json', *INPUTS]:
    for folder in ('', 'baseline/'):
      if (full / (folder + file)).exists():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / (folder + file)).write_bytes((full / (folder + file)).read_bytes())
  if damage is None: (tmp_path / name).unlink()
  else: (tmp_path / name).write_bytes(damage)
  text = made_page(report.write(tmp_path).parent).text
  assert 'could not be made' not in text and 'Traceback' not in text
  if damage and name in ('run.json', 'taxonomy.csv', 'eval_val.json', 'baseline/eval_val.json'): assert 'could not be read' in text
  if damage and name == 'metrics.jsonl': assert 'metrics.jsonl: 1 damaged line left out' in text
  if name == 'metrics.jsonl': assert 'there are no curves' in text
  if name == 'eval_val.json': assert 'the best val line, at step 1,200,' in text
  if 'predictions' in name: assert 'No intervals' in text
  if name == 'predictions_val.npz': assert text.count(mistakes.NO_PREDICTIONS) == 4
  if name == 'explain_val.npz': assert text.count(mistakes.REMAKE) == 3


def test_a_configuration_is_enough_and_without_one_it_is_no_run(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  text = made_page(report.write(tmp_path).parent).text
  assert 'there are no scores yet' in text and 'This run has not finished' in text and 'could not be made' not in text
  with pytest.raises(config.UserError, match=r'no config\.json here'): report.write(tmp_path / 'nowhere')


def test_hostile_names_are_text(tmp_path):
  levels = ('<b>make</b>', 'ty"pe/$x$', "mo'del&amp;")
  path = make_run(tmp_path / 'run', name=HOSTILE, taxonomy=make_taxonomy(levels, HOSTILE), skipped=[HOSTILE, 'a\udc80b.jpg'])
  (path / 'run.json').write_text((path / 'run.json').read_text().replace('split made', json.dumps('</details>' + HOSTILE)[1:-1]))
  make_run(path / 'baseline', heads=levels[-1:], taxonomy=make_taxonomy(levels, HOSTILE), seed=1)
  text, made = (report.write(path)).read_text(encoding='utf-8'), made_page(path)
  assert 'script' not in made.tags and 'img' not in made.tags
  assert '<script' not in text and '&lt;script&gt;' in text and '\\udc80b.jpg' in text
  assert made.text.count('alert("x")') >= 4  # title, heading, skipped, note, configuration
  assert text.count('<figure>') == 11 and 'could not be made' not in text


def test_resumed_and_damaged_metrics(tmp_path):
  lines = [{'step': 10, 'kind': 'train', 'loss': 5.}, {'step': 20, 'kind': 'train', 'loss': float('nan')},
           {'step': 20, 'kind': 'train', 'loss': 4.}, {'step': 10, 'kind': 'val', 'loss': 6.}]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n[1]\n{"step": 30, "kind": "tr')
  train, val, damaged = runs._metrics(tmp_path / 'metrics.jsonl')
  assert [line['loss'] for line in train] == [5., 4.] and [line['loss'] for line in val] == [6.] and damaged == 2


def test_long_runs_and_many_skipped_stay_small(tmp_path):
  path = make_run(tmp_path / 'run', steps=60_000, skipped=[f'images/{"x" * 80}{i}.jpg' for i in range(5000)])
  assert report.write(path).stat().st_size < 1_000_000
  text = made_page(path).text
  assert 'averaged in bins' in text and 'and 4,500 more' in text and '5,000 could not be read' in text


def test_numbers_in_words():
  assert page.number(.70149) == '70.1%' and page.number(1.256, False) == '1.26'
  assert page.number(None) == page.number(float('nan')) == '–'
  assert page.signed(-.0304) == '−3.0' and page.signed(.0004) == '0.0' and page.signed(.12, False) == '+0.12'
  assert page.listed(['a']) == 'a' and page.listed('abc') == 'a, b and c' and page.listed([]) == ''
  assert page.duration(59.6) == '60 s' and page.duration(1449) == '24 min 09 s' and page.duration(7260) == '2 h 01 min'
