"""Paper S1, Table VII: model and make accuracy at weight 1 of the model and three weights of the make, dropout .25 and .5, with augmentation.

  python main.py --mode=table --config=configs/tables/s1_table7.py --config.data.root=FOLDER --workdir=runs/s1_table7

Which augmentation the paper does not say; hierjax's own is on here. A single-task model has no loss weights, so it stands here once, though the paper
prints it once for each pair. The paper's parallel and cascaded figures of MaxViT-T at 1 .7, dropout .5, and of ConvNeXt-B at 1 .2, dropout .25, are the
same four numbers. Small budgets and some rows only: as in s1_table5.py.
"""

from configs import s1
from hierjax.experiments.table import Table

WEIGHTS = (('1', '.2'), ('1', '.5'), ('1', '.7'))
FIGURES = {  # for each dropout: single-task, then parallel and cascaded for each pair of weights; (model, make)
  'densenet121': {
    '.25': ((.858, .923), (.878, .924), (.858, .908), (.869, .928), (.859, .920), (.872, .928), (.862, .918)),
    '.5': ((.860, None), (.864, .921), (.877, .921), (.873, .928), (.865, .924), (.872, .923), (.864, .916))},
  'maxvit_t': {
    '.25': ((.895, .949), (.893, .950), (.887, .938), (.894, .950), (.887, .949), (.889, .950), (.889, .943)),
    '.5': ((.892, .951), (.891, .953), (.891, .936), (.883, .945), (.885, .947), (.894, .953), (.865, .948))},
  'convnext_base': {
    '.25': ((.895, .952), (.894, .953), (.865, .948), (.881, .933), (.889, .938), (.883, .941), (.888, .945)),
    '.5': ((.886, .948), (.861, .921), (.861, .913), (.888, .935), (.879, .949), (.889, .942), (.877, .942))}}
NOTES = {('densenet121', '.5'): 'the paper prints .915, .927 and .934 for the make of this one model'}


def get_config(model: str = 'densenet121,parallel,.25,1,.2'):
  c = s1.get_config(model)
  c.data.augment.enabled = True
  return c


def get_table() -> Table:
  rows = []
  for backbone, drops in FIGURES.items():
    for dropout, (single, *multi) in drops.items():
      rows.append(s1.row(single, backbone, 'flat', dropout, note=NOTES.get((backbone, dropout), '')))
      for i, weights in enumerate(WEIGHTS):
        rows += [s1.row(multi[2 * i + k], backbone, heads, dropout, weights) for k, heads in enumerate(('parallel', 'cascaded'))]
  return Table(
    title='S1, Table VII: model and make', rows=rows, published={'paper, model': 'top1/finest', 'paper, make': 'top1/coarsest'},
    source="Manole and Dioşan, Table VII: accuracies on a tenth of Stanford Cars' 8,144 labelled images, held out as test; a single-task model's make is read "
           'off its model; λ are the weights of model/make',
    columns=('top1/coarsest,finest', 'fpa', 'hvr', 'joint:top1/coarsest,finest'), chart=('top1/coarsest,finest',))
