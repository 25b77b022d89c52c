"""Names of strangers in every section of the report: they are text, whatever they hold."""

import json

import numpy as np
import pytest
from test_report import Browser, Page, browser, make_run  # noqa: F401

from hierjax.core import config
from hierjax.report import charts, page
from hierjax.report.sections import SECTIONS
from hierjax.taxonomy import Taxonomy

HOSTILE = (
  '<script>alert(1)</script>',
  '"><img src=x onerror=alert(2)>',
  "' onload='alert(3)",
  '</svg></style></title><base href="http://127.0.0.1:9/">',
  '\\g<9> \\1 \\u0041 C:\\new',
  '{{ 7 * 7 }} {% raw %} ${x} $\\frac{1}{0}$',
  ']]> --> <!-- <![CDATA[',
  '&lt;b&gt; &amp; &#0; &nbsp',
  '\u202eevil\u2066 \u200f right to left',
  'http-equiv=refresh url(javascript:alert(4))',
  'very long ' * 300,
  'unbroken' * 400,
  '<form action=x><input autofocus onfocus=alert(5)>',
  'a\ufeff\u0000b'.replace('\0', '\ufffd'),
)
# Tables of classes with these are refused, JSON may hold them.
CONTROL = '\x1b[31mred\x1b]0;title\x07 \x9b1m \x7f <b>'
LEVELS = (HOSTILE[1], HOSTILE[4], HOSTILE[0])


def name_of(i: int) -> str:
  """One of the hostile names, made unique."""
  return f'{HOSTILE[i % len(HOSTILE)]} {i}'


def benign(i: int) -> str:
  """A harmless name in its place."""
  return f'name {i}'


def write_run(path, name, levels):
  """A run with every section, whose texts are all called by `name`."""
  rows = [(name(i % 4), name(10 + i % 3), name(20 + i)) for i in range(15)]
  taxonomy = Taxonomy.from_rows(levels, rows)
  # the skills of the heads follow the numbers of classes, which are sorted by name
  make_run(path, name=name(1), taxonomy=taxonomy, n=40, steps=120, pictures=True,
           prefix=name(3) + '/', skipped=[name(i) for i in range(9)])  # fmt: skip
  make_run(path / 'baseline', heads=levels[-1:], taxonomy=taxonomy, n=40, steps=120, seed=1,
           prefix=name(3) + '/')  # fmt: skip
  make_run(path / 'start', taxonomy=taxonomy, n=40, steps=120, seed=2, prefix=name(3) + '/')
  c = config.default()
  c.name, c.data.root, c.data.taxonomy, c.model.levels = name(1), name(2), name(4), levels
  (path / 'config.json').write_text(config.to_json(c))
  info = json.loads((path / 'run.json').read_text())
  info |= {key: name(i) for i, key in enumerate(('command', 'device', 'started', 'finished'))}
  info |= {
    'versions': {name(5): name(6), name(7): name(8)},
    'notes': [CONTROL, *map(name, range(20))],
  }
  info['state_sha256'] = name(9)
  (path / 'run.json').write_text(json.dumps(info))
  evaluation = json.loads((path / 'eval_val.json').read_text())
  evaluation |= {'novelty': novelty(name, levels)}
  (path / 'eval_val.json').write_text(json.dumps(evaluation))
  evaluation |= {'split': name(10), 'multi': tags(name)}
  (path / 'eval_z.json').write_text(json.dumps(evaluation))
  (path / 'migration.json').write_text(json.dumps(migration(name, taxonomy)))
  lines = [{'step': 10 * i, 'kind': 'train', f'weight/{name(2)}': i, f'cosine/{name(3)}': i}
           for i in range(1, 9)]  # fmt: skip
  with (path / 'metrics.jsonl').open('a') as f:
    f.writelines(json.dumps(line | {'epoch': line['step'] / 10}) + '\n' for line in lines)
  return page.write(path).read_text(encoding='utf-8')


def novelty(name, levels):
  scores = {'roc': [[0, 0], [0.5, 0.8], [1, 1]], 'score': name(1), 'novel': 3}
  scores |= {'left_out': {name(1): 0.5, name(2): 0.6}, 'by_score': {name(3): 0.7}}
  scores |= dict.fromkeys(('auroc', 'softmax', 'known', 'parent', 'placed'), 0.5)
  node = {
    'of': name(4),
    'node': name(5),
    'level': name(6),
    'images': 3,
    'threshold': 0.1,
    'called': 0.5,
  }
  return {'levels': dict.fromkeys(levels, scores), 'nodes': [node], 'false_alarms': 0.1,
          'split': name(7), 'calibration_images': 9,
          'known_images': 9, 'kept': 0.9}  # fmt: skip


def tags(name):
  scores = {'f1_macro': 0.5, 'f1_micro': 0.5, 'f1': 0.5, 'precision': 0.5, 'recall': 0.5}
  entry = {'positives': 3, 'ap': 0.5, 'threshold': 0.5, 'before': scores, 'after': scores}
  classes = {name(i): entry for i in range(20)}
  level = {'map_macro': 0.5, 'map_micro': 0.5, 'before': scores, 'after': scores}
  return {name(i): level | {'classes': classes} for i in range(2)}


def migration(name, taxonomy):
  classes = {
    level: {n: {'kind': name(7), 'right': 3, 'images': 4} for n in names}
    for level, names in zip(taxonomy.levels, taxonomy.names)
  }
  changes = {level: {name(8): [name(i) for i in range(5)]} for level in taxonomy.levels}
  return {'from': name(9), 'shots': 3, 'classes': classes, 'changes': changes}


class Structure(Page):
  """A page that also lists its kinds of elements, with the names of their attributes."""

  def __init__(self, text):
    self.elements = set()
    super().__init__(text)

  def note(self, tag, attrs):
    """List an element."""
    super().note(tag, attrs)
    self.elements.add((tag, *sorted(key for key, _ in attrs)))


class Labels(Page):
  """A page that lists its labels for screen readers."""

  def __init__(self, text):
    self.labels = []
    super().__init__(text)

  def note(self, tag, attrs):
    """List the label of an element."""
    super().note(tag, attrs)
    self.labels += [value for key, value in attrs if key == 'aria-label']


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
  """The page of hostile names, and that of harmless ones."""
  folder = tmp_path_factory.mktemp('hostile')
  text = write_run(folder / 'hostile', name_of, LEVELS)
  return folder, text, write_run(folder / 'benign', benign, ('make', 'type', 'model'))


def test_every_section_shows_hostile_names_as_text(hostile):
  """No element, attribute or address comes from a name."""
  _, text, other = hostile
  parsed, expected = Structure(text), Structure(other)
  assert 'could not be made' not in text + other
  # the first needs a head of that kind, the second answers that were fitted
  sections = {section.id for section in SECTIONS} - {'embedding', 'decisions'}
  assert sections <= set(parsed.ids) & set(expected.ids)
  assert parsed.tags == expected.tags and not {'script', 'form', 'base', 'iframe'} & parsed.tags
  extra = parsed.elements - expected.elements
  assert not extra, extra
  assert all(address.startswith(('#', 'data:')) for address in parsed.loads)
  assert len(parsed.ids) == len(set(parsed.ids))
  assert text.count(HOSTILE[0]) == 0 and parsed.text.count(HOSTILE[0]) > 20
  assert len(text) < 6_000_000


def test_the_policy_forbids_what_a_name_could_bring(hostile):
  """Scripts, forms, another base for addresses, frames, and whatever else is fetched."""
  policy = hostile[1].split('Content-Security-Policy" content="')[1].split('"')[0]
  assert policy.split('; ') == [
    "default-src 'none'", "style-src 'unsafe-inline'", 'img-src data:',
    "form-action 'none'", "base-uri 'none'", "frame-src 'none'",
  ]  # fmt: skip


def test_in_chromium_hostile_names_do_nothing(hostile, browser):  # noqa: F811
  """No error, no request, no element of theirs."""
  address = (hostile[0] / 'hostile' / 'report.html').as_uri()
  errors, requests = browser.visit(address)
  assert errors == [] and [url for url in requests if not url.startswith('data:')] == [address]
  query = 'document.querySelectorAll("script, form, base, iframe, object, [onerror]").length'
  assert browser.evaluate(query) == 0


@pytest.mark.parametrize('title', [*HOSTILE, CONTROL, '\udcff', ''])
def test_a_chart_holds_its_title_as_text(title):
  """Titles quote names of levels; they were put in as they are, and as a template of `re.sub`."""
  curve = charts.Curve(np.arange(3.0), np.arange(3.0), 0)
  svg = charts.draw(charts.Chart(title, 'x', (curve,), (0, 2)))
  assert Labels(svg).labels == [title]
  assert len(svg) < 40_000 + 6 * len(title)


def test_charts_of_similar_titles_have_ids_of_their_own():
  """'a<' and 'a>' were one prefix."""
  curve = charts.Curve(np.arange(3.0), np.arange(3.0), 0)
  ids = [
    set(Page(charts.draw(charts.Chart(title, 'x', (curve,), (0, 2)))).ids)
    for title in ('a<', 'a>', 'A>', 'a' * 999)
  ]
  assert all(ids) and len(set.union(*ids)) == sum(map(len, ids))
