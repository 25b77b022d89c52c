r"""Heads and losses that use the hierarchy, each against one plain head with the same budget.

  python main.py table --config=configs/tables/hierarchy_pays.py --config.data.root=FOLDER \
    --workdir=runs/pays --seeds=0,1,2

Some rows: --rows='flat path_sum*'. With half of the finest labels missing:
--config.data.unlabelled=.5; with fewer images: --config.data.train_limit=N. All else is as in
3head.py, which is the row parallel_margin. The values are those of the methods' authors or in their
range, and S1's .9 and .1 for the weights of the finest and the coarser levels; none was chosen on
val.
"""

import importlib

from hierjax.core import config
from hierjax.core.errors import check_choice
from hierjax.experiments.table import Row, Table

S1 = {'loss.weights': 'finest=.9,coarser=.1'}
FLAT, SUM = {'model.heads': 'flat'}, {'model.heads': 'path_sum'}
LEAF = {'loss.weights': 'finest=1,coarser=0'}
# {group: {row: (label, options)}}
ROWS = {
  'One head on the finest level': {
    'flat': ('cross-entropy', FLAT),
    'flat_lca': ('soft labels by LCA height', {**FLAT, 'loss.lca': 10.0}),
    'flat_hxe': ('hierarchical cross-entropy', {**FLAT, 'loss.hxe': 0.4}),
    'flat_hace': ('HACE', {**FLAT, 'loss.hace': 0.2}),
    'flat_margin': ('soft-max-margin', {**FLAT, 'loss.margin': 5.0}),
    'flat_any_level': ('coarse labels train it', {**FLAT, 'loss.any_level': True}),
    'flat_adjusted': ('logit adjustment', {**FLAT, 'loss.logit_adjust': 1.0}),
  },
  'A head a level': {
    'parallel': ('equal weights', {}),
    'parallel_margin': ('equal weights, soft-max-margin', {'loss.margin': 5.0}),
    'parallel_s1': ('weights .9 and .1', S1),
    'parallel_uw': ('uncertainty weighting', {'balance.name': 'uw'}),
    'parallel_upgrad': ('UPGrad', {'balance.name': 'upgrad', 'balance.at': 'features'}),
    'parallel_distill': ('the joint posterior teaches', {**S1, 'loss.terms': 'joint_distill'}),
    'parallel_adjusted': ('logit adjustment at every level', {**S1, 'loss.logit_adjust': 1.0}),
    'hier_cos': ('Hier-COS', {**S1, 'model.heads': 'hier_cos'}),
  },
  'Levels that are sums over the leaves': {
    'marginal': ('tree-marginal cross-entropy', {'model.heads': 'marginal'}),
    'marginal_s1': ('the same, weights .9 and .1', {**S1, 'model.heads': 'marginal'}),
    'path_sum': ('path sum', {**SUM, **LEAF}),
    'path_sum_levels': ('path sum, cross-entropy a level', SUM),
    'path_sum_s1': ('the same, weights .9 and .1', {**SUM, **S1}),
    'path_sum_margin': ('path sum, soft-max-margin', {**SUM, **LEAF, 'loss.margin': 5.0}),
    'path_sum_adjusted': ('path sum, logit adjustment', {**SUM, **S1, 'loss.logit_adjust': 1.0}),
  },
}
OPTIONS = {name: options for rows in ROWS.values() for name, (_, options) in rows.items()}


def get_config(row: str = 'flat'):
  check_choice('configs/tables/hierarchy_pays.py: no row', row, OPTIONS)
  c = importlib.import_module('configs.3head').get_config()
  c.name, c.loss.margin = f'hierarchy pays: {row}', None
  for path, value in OPTIONS[row].items():
    config.assign(c, path, value)
  return c


def get_table() -> Table:
  return Table(
    title='Does the hierarchy pay?',
    rows=[
      Row(name, label, group=group, baseline='' if name == 'flat' else 'flat')
      for group, rows in ROWS.items()
      for name, (label, _) in rows.items()
    ],
    source='no paper; the methods are described where they are registered',
    columns=('joint:top1/all', 'joint:fpa', 'fpa', 'joint:severity', 'joint:ece/finest'),
    chart=('joint:fpa',),
    seeds=(0, 1, 2),
  )
