r"""Paper S1, Figure 8: top-1, top-3 and top-5 of the model, for each backbone's best setting.

  python main.py table --config=configs/tables/s1_figure8.py --config.data.root=FOLDER \
    --workdir=runs/s1_table7

The rows are of Table VII: in the --workdir of s1_table7.py nothing is trained again. The figure's
bars have no numbers: top-1 is as in Table VII, and the text gives the one top-5 of parallel
MaxViT-T. It also says that single-task MaxViT-T is ahead of the others in top-1, which Table VII
(.892 against .894) does not.
"""

from configs import s1
from configs.tables import s1_table7
from hierjax.experiments.table import Table

get_config = s1_table7.get_config

BEST = {
  'densenet121': ('.5', ('1', '.5')),
  'maxvit_t': ('.5', ('1', '.7')),
  'convnext_base': ('.25', ('1', '.2')),
}
TOP5 = {('maxvit_t', 'parallel'): 0.989}


def get_table() -> Table:
  rows = []
  for backbone, (dropout, weights) in BEST.items():
    figures = s1_table7.FIGURES[backbone][dropout]
    start = 1 + 2 * s1_table7.WEIGHTS.index(weights)
    rows += [
      s1.row((top1, None, TOP5.get((backbone, heads))), backbone, heads, dropout, weights)
      for heads, (top1, _) in zip(s1.HEADS, (figures[0], *figures[start : start + 2]))
    ]
  return Table(
    title='S1, Figure 8: among the first three and five',
    rows=rows,
    published={
      'paper, top-1': 'top1/finest',
      'paper, top-3': 'top3/finest',
      'paper, top-5': 'top5/finest',
    },
    source='Manole and Dioşan, Figure 8, Table VII and section IV.C: model accuracies on a tenth '
    'of the 8,144 labelled images of Stanford Cars, held out as test',
    columns=('top1/finest', 'top3/finest', 'top5/finest'),
    chart=('top1/finest', 'top3/finest', 'top5/finest'),
  )
