r"""Novelty: which images of val are of a class that training never saw, and under which parent?

  python main.py table --config=configs/tables/novelty.py --config.data.root=FOLDER \
    --workdir=runs/novelty

  third      a third of the finest classes below each parent is held out
  CLASS      a whole class of the coarsest level is held out: the rows are for birds, dogs and
             reptiles; --config.data.hold_out=NAME names another
  tuned_...  the same with all layers trained at 64 px, as configs/tables/s3.py does
The others are linear probes: the backbone is frozen at ImageNet's weights, so that known classes
that are left out are as new to the features as held-out ones are. The 64 px images are enlarged to
128. Where ImageNet has the held-out classes, as it has these birds, dogs and reptiles, the backbone
has seen them.
"""

from configs.tables import s3
from hierjax import config
from hierjax.core.errors import check_choice
from hierjax.experiments.table import Row, Table

ROWS = {
  'third': ('1/3', 'a third of each parent'),
  'reptile': ('reptile', 'reptile'),
  'dog': ('dog', 'dog'),
  'bird': ('bird', 'bird'),
}
KINDS = {'': 'linear probe', 'tuned_': 'all layers trained, 64 px'}
NAMES = [kind + row for kind in KINDS for row in ROWS]


def get_config(name: str = 'third'):
  check_choice('configs/tables/novelty.py: no row', name, NAMES)
  c = s3.get_config()
  c.name, c.data.hold_out = f'novelty {name}', (ROWS[name.removeprefix('tuned_')][0],)
  c.decide.novelty = 0.05
  if not name.startswith('tuned_'):
    # Without augmentation the frozen features are computed once.
    c.data.size, c.data.augment.enabled = 128, False
    c.curriculum = (config.phase(share=1.0, freeze=('backbone',)),)
    c.train.epochs, c.train.eval_epochs = 30, 5.0
  return c


def get_table() -> Table:
  return Table(
    title='Novelty: held-out classes',
    rows=[
      Row(kind + row, label, group=group)
      for kind, group in KINDS.items()
      for row, (_, label) in ROWS.items()
    ],
    source='S3 (Huang) asks for data whose subclasses and superclasses come later, and reports no '
    'figure of it',
    columns=(
      'joint:novel_auroc/coarsest,finest',
      'joint:novel_softmax/coarsest,finest',
      'joint:novel_known/coarsest,finest',
      'joint:novel_parent/finest',
      'joint:novel_placed/coarsest,finest',
      'joint:top1/finest',
    ),
    chart=('joint:novel_auroc/coarsest,finest', 'joint:novel_softmax/coarsest,finest'),
  )
