r"""Paper S0, Table 1: the ladder from one frozen head to three heads and two views.

  python main.py table --config=configs/tables/s0_table1.py --config.data.root=FOLDER \
    --workdir=runs/s0

The rows are the rungs of configs/ladder.py; rung 10 evaluates the run of rung 9. On a laptop:
--config.model.backbone=efficientnet_lite0 --config.model.pretrained=package --config.data.size=96
--config.train.epochs=5.
"""

from configs import ladder
from hierjax.experiments.table import Row, Table

get_config = ladder.get_config

# Model accuracy, make-model consistency (Table 1), make accuracy (sections 4.1, 4.3), type-model
# consistency (section 4.6).
FIGURES = {
  '1': (0.4172, 1.0, None, None),
  '2': (0.7592, 1.0, 0.8549, None),
  '3': (0.7720, 0.9044, None, None),
  '4': (0.8565, 0.9526, 0.9271, None),
  '5': (0.8602, 0.9442, 0.9177, None),
  '5.5': (0.8551, 0.9577, None, None),
  '6': (0.8536, 0.9444, None, None),
  '7': (0.8615, 0.9521, None, None),
  '8': (0.8648, 0.9660, None, 0.9593),
  '9': (0.8795, 0.9766, None, 0.9658),
  '10': (0.8857, 0.9764, None, None),
}


def get_table() -> Table:
  return Table(
    title='S0, Table 1: the ladder',
    rows=[
      Row(
        rung,
        f'{rung} {ladder.RUNGS[rung]}',
        FIGURES[rung],
        baseline='' if rung in ('1', '2') else '2',
        evaluates='9' if rung == '10' else '',
      )
      for rung in FIGURES
    ],
    published={
      'paper, model': 'top1/finest',
      'paper, make–model consistency': 'consistency/coarsest,finest',
      'paper, make': 'top1/coarsest',
      'paper, type–model consistency': 'consistency/type,model',
    },
    source='Freyr, Engels and Gyüre, Table 1 and sections 4.1 to 4.6: ResNet-50 on the 8,041 test '
    'images of Stanford Cars',
    columns=(
      'top1/all',
      'consistency/coarsest,finest',
      'consistency/type,model',
      'fpa',
      'hvr',
      'joint:top1/finest',
    ),
    chart=('top1/finest',),
  )
