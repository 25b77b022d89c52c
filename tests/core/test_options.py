"""Declarations of options: text, None, ranges, the page in docs/, and configs of version 1."""

import inspect
import json
import pathlib

import pytest

from hierjax.cli import usage
from hierjax.core import config, upgrade
from hierjax.core.declarations import GROUPS, OPTIONS
from hierjax.core.errors import UserError
from hierjax.losses import balancing
from hierjax.models import classifier

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_page_in_docs_is_current():
  """`python -m hierjax.cli.usage > docs/options.md` makes it so."""
  assert (ROOT / 'docs' / 'options.md').read_text() == usage.page()


def test_every_option_is_in_a_group_and_has_a_sound_default():
  for name, option in OPTIONS.items():
    assert name.rpartition('.')[0] in GROUPS and option.help
    option.validate(option.default)
    assert f'--config.{name}\n' in usage.text()


@pytest.mark.parametrize(
  ('name', 'text', 'value'),
  [
    ('model.levels', 'make, model', ('make', 'model')),
    ('model.levels', "('make', 'model')", ('make', 'model')),
    ('data.multi', '', ()),
    ('data.multi', 'all', ('all',)),
    ('data.hold_out', 'owl; 1/3', ('owl', '1/3')),
    ('loss.weights', 'make=.1,model=.9', (('make', 0.1), ('model', 0.9))),
    ('loss.weights', "(('make', .1),)", (('make', 0.1),)),
    ('loss.weights', '', ()),
    ('model.mean', '1,2,3', (1, 2, 3)),
    ('model.mean', '', None),
    ('model.head.order', 'none', None),
    ('data.balance', 'none', None),
    ('data.balance', 'loss', 'loss'),
    ('data.limit', '0', None),
    ('train.epochs', '0', None),
    ('train.epochs', '2.5', 2.5),
    ('optim.clip', '0', None),
    ('optim.clip', 0.0, None),
    ('balance.c', '0', 0.0),
    ('balance.c', 0.0, 0.0),
    ('balance.c', '', None),
    ('data.val_share', '0', 0.0),
    ('optim.rules', "[('.*', 1, 0)]", (('.*', 1, 0),)),
    ('data.strict', 'true', True),
    ('curriculum', "{'steps': 2}", (config.phase(steps=2),)),
    (
      'curriculum',
      "[{'share': .25, 'freeze': 'heads/finest', 'levels': 'coarser'}]",
      (config.phase(share=0.25, freeze=('heads/finest',), levels=('coarser',)),),
    ),
  ],
)
def test_text(name, text, value):
  c = config.default()
  config.assign(c, name, text)
  assert config.value_at(c, name) == value
  assert type(config.value_at(c, name)) is type(value)
  assert config.differences(c, config.from_json(config.to_json(c))) == []


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('optim.clip', 0.0, 'must be above 0, or None for off'),
    ('data.balance', 'none', 'choices: sample, loss or None'),
    ('optim.lr', None, 'must have a value; its default is 0.001'),
    ('data.seed', 1, 'no such option'),
    ('curriculum.p1.steps', '5', 'the curriculum is a list of phases'),
    ('curriculum', 'backbone', 'is not a Python literal'),
    ('loss.weights', (('make', -1.0),), 'a number of at least 0'),
  ],
)
def test_wrong_values(name, value, message):
  with pytest.raises(UserError, match=message):
    if name in OPTIONS:
      OPTIONS[name].validate(value if name != 'curriculum' else OPTIONS[name].convert(value))
    else:
      config.assign(config.default(), name, value)


def test_a_config_of_version_1():
  """What 0, '' and text meant before is what the new values mean."""
  text = (pathlib.Path(__file__).parent / 'config_version1.json').read_text()
  c = config.from_json(text)
  assert (c.balance.alpha, c.balance.lr, c.balance.c) == (1.5, None, None)
  assert (c.data.multi, c.data.hold_out) == (('colour', 'shape'), ('owl', '1/3'))
  assert (c.data.limit, c.data.balance, c.data.root, c.data.val_share) == (100, None, None, 0.2)
  assert c.loss.weights == (('make', 1.0), ('type', 0.5))
  assert (c.loss.terms, c.loss.siblings) == (('tree_path', 'co_annotation'), ('coarsest',))
  assert (c.loss.aggregate, c.loss.lca, c.loss.smoothing) == ('samples', None, 0.1)
  assert (c.model.mean, c.model.neck, c.model.levels) == ((1, 2, 3), 256, ('make', 'model'))
  assert (c.model.head.order, c.model.head.slices) == (('model', 'make'), None)
  assert (c.model.head.noise, c.model.head.temperature, c.model.dropout) == (0.01, None, 0.0)
  assert (c.optim.clip, c.optim.ema, c.optim.warmup_steps) == (1.0, None, 5)
  assert (c.train.epochs, c.train.steps, c.train.eval_epochs, c.train.eval_steps) == (
    *(None, 10, None, 5),
  )
  assert c.curriculum == (
    config.phase(share=0.25, freeze='heads/finest', levels='coarser'),
    config.phase(share=1.0, freeze='backbone,heads/finest'),
  )
  assert json.loads(config.to_json(c))['version'] == upgrade.VERSION


@pytest.mark.parametrize('score', ['energy', 'logistic', None])
def test_novelty_was_an_option_of_eval(score):
  """Its number was the share of new images to detect; logistic is a score no more."""
  tree = json.loads(config.to_json(config.default()))
  del tree['decide']['novelty'], tree['decide']['novelty_score']
  tree['eval'] |= {'novelty': 0.95, 'novelty_score': score}
  c = config.from_json(json.dumps(tree))
  assert c.decide.novelty == 0.05
  assert c.decide.novelty_score == ('energy' if score == 'energy' else 'auto')
  tree['eval'] |= {'novelty': None}
  assert config.from_json(json.dumps(tree)).decide.novelty is None
  assert config.differences(c, config.from_json(config.to_json(c))) == []


def test_a_config_of_a_later_version():
  with pytest.raises(UserError, match='is of version 99'):
    config.from_json('{"version": 99}')


METHODS = {
  name: [p for p in inspect.signature(make).parameters if p != 'epoch_steps']
  for name, make in balancing.BALANCERS.items()
}


@pytest.mark.parametrize(
  ('method', 'name'), [(method, name) for method, names in METHODS.items() for name in names]
)
def test_a_value_given_to_a_balancer_is_the_value_it_gets(method, name, monkeypatch):
  """Also 0, where that is in the range of the option."""
  received = {}
  make = balancing.BALANCERS[method]

  def recorder(*args, **values):
    received.update(values)
    return make(*args, **values)

  recorder.__signature__ = inspect.signature(make)
  monkeypatch.setitem(balancing.BALANCERS, method, recorder)
  for value in (0.0, 0.25):
    c = config.default()
    if value == 0 and (method, name) in {*balancing.DIVISORS, ('dwa', 'temperature')}:
      continue
    c.balance.name, c.balance[name] = method, value
    config.validate(c)
    received.clear()
    balancing.build(c.balance, (), 3)
    assert {k: v for k, v in received.items() if k != 'epoch_steps'} == {name: value}


@pytest.mark.parametrize(
  ('form', 'name', 'value'),
  [
    ('crosstalk', 'layers', 2),
    ('crosstalk', 'width', 8),
    ('residual', 'layers', 2),
    ('mmoe', 'experts', 2),
    ('mmoe', 'tower', 8),
    ('prototypes', 'temperature', 0.5),
    ('prototypes', 'noise', 0.0),
    ('prototypes', 'dot_product', True),
    ('cascaded', 'stop_gradient', True),
    ('cascaded', 'order', ('model', 'make')),
    ('split', 'slices', (3, 5)),
  ],
)
def test_a_value_given_to_heads_is_the_value_they_get(form, name, value):
  c = config.default()
  c.model.heads, c.model.head[name] = form, value
  config.validate(c)
  assert classifier.options(c.model, ('make', 'model'), 8) == {name: value}


@pytest.mark.parametrize(
  'values', [{'share': 2.0}, {'steps': 1.5}, {}, {'steps': 1, 'share': 0.5}, {'epochs': -1}]
)
def test_phases_need_one_sound_duration(values):
  with pytest.raises(UserError, match=r'--config\.curriculum'):
    config.phase(**values)


def test_a_list_becomes_a_tuple():
  """As JSON and config files may give them; a config then equals the one that was saved."""
  value = OPTIONS['data.multi'].convert(['kind', 'colour'])
  assert value == ('kind', 'colour') and isinstance(value, tuple)


@pytest.mark.parametrize('text', ['(0)', '(0.5)', '[1', '(None)', '(True)', '({"a": 1})', '(b"a")'])
def test_a_literal_that_is_no_list_of_names(text):
  """A number in brackets is no list of names."""
  with pytest.raises(UserError, match='is not a'):
    OPTIONS['model.levels'].convert(text)


def test_one_name_in_brackets_is_one_name():
  """It was taken for a list of its letters."""
  assert OPTIONS['model.levels'].convert("('make')") == ('make',)
  assert OPTIONS['model.levels'].convert("('make', 'model')") == ('make', 'model')


@pytest.mark.parametrize(
  'text', ['1e999', '5', 'None', "'heads'", '[1]', '[[1]]', '{1: 2}', '\ud800']
)
def test_a_curriculum_that_is_no_list_of_phases(text):
  """Whatever Python's literals are."""
  with pytest.raises(UserError, match=r'--config\.curriculum'):
    OPTIONS['curriculum'].convert(text)
