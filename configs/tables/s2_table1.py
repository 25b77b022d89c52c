r"""Paper S2, Table 1: HCAL against plain and multi-task training, on CIFAR-100 or FGVC-Aircraft.

  python main.py table --config=configs/tables/s2_table1.py --config.data.root=CIFAR100 \
    --workdir=runs/s2_table1
  python main.py table --config=configs/tables/s2_table1.py:aircraft \
    --config.data.root=AIRCRAFT --workdir=runs/s2_table1_aircraft

All rows share HCAL's protocol (configs/hcal.py): backbone, SGD, batch, augmentation; only MMoE has
Adam 1e-3 on the pooled features, as in the authors' code. The balancers weigh the gradients of the
shared weights of the `parallel` row. The paper's 500 epochs a row are for a GPU:
--config.train.epochs=20. Every row starts from scratch here and from ImageNet weights there
(--config.model.pretrained=hf:timm/resnet18.tv_in1k). The paper picks the best epoch on its test
set, which these rows never see. Its third data set, Classroom, is not public.
"""

from configs import hcal
from hierjax.core.errors import check_choice
from hierjax.experiments import fit
from hierjax.experiments.table import Row, Table

# On CIFAR-100: fine, coarse, HVR; on Aircraft: variant, family, manufacturer, HVR.
FIGURES = {
  'flat': (None, None),
  'parallel': (None, None),
  'mmoe': ((0.5181, 0.6594, 0.0975), (0.5521, 0.7402, 0.8497, 0.1602)),
  'dmt': ((0.5905, 0.7150, 0.1149), (0.4821, 0.6544, 0.7732, 0.2772)),
  'cagrad': ((0.5850, 0.7233, 0.1059), (0.6328, 0.7864, 0.8695, 0.1116)),
  'imtl': ((0.5908, 0.7208, 0.1132), (0.6361, 0.7765, 0.8755, 0.1176)),
  'nash': ((0.5940, 0.7219, 0.1098), (0.6262, 0.7921, 0.8707, 0.1137)),
  'cmt': ((0.7340, 0.8426, 0.0601), (0.5581, 0.7486, 0.8683, 0.1299)),
  'paper': ((0.7480, 0.8458, 0.0582), (0.6829, 0.8233, 0.8806, 0.1012)),
  'code': ((0.7480, 0.8458, 0.0582), (0.6829, 0.8233, 0.8806, 0.1012)),
}
LABELS = {
  'flat': ('Plain', 'cross-entropy, one head'),
  'parallel': ('Plain', 'cross-entropy, a head a level'),
  'mmoe': ('Multi-task', 'MMoE'),
  'dmt': ('Multi-task', 'DMT-style: cross-talk heads, matched distributions'),
  'cagrad': ('Multi-task', 'CAGrad'),
  'imtl': ('Multi-task', 'IMTL'),
  'nash': ('Multi-task', 'Nash-MTL'),
  'cmt': ('Multi-task', 'CMT'),
  'paper': ('HCAL', 'HCAL, as in the paper'),
  'code': ('HCAL', "HCAL, as in its authors' code"),
}
NOTES = {
  'dmt': 'the paper describes routed modules and a distillation term, and shows no code; this is '
  'the nearest to it that hierjax has'
}


def get_config(text: str = 'flat'):
  method, _, data = ('flat', '', text) if text in hcal.DATA else text.partition(',')
  check_choice('configs/tables/s2_table1.py: no method', method, FIGURES)
  c = hcal.get_config(f'{method if method in hcal.READINGS else "code"},{data}')
  if method not in hcal.READINGS:
    c = fit.baseline_config(c)
    c.model.heads = {'flat': 'flat', 'mmoe': 'mmoe', 'dmt': 'crosstalk'}.get(method, 'parallel')
  if method == 'mmoe':
    c.model.backbone, c.model.stem, c.model.neck = (
      'resnet18',
      'standard' if data == 'aircraft' else 'small',
      None,
    )
    c.optim.name, c.optim.lr, c.optim.weight_decay = 'adam', 1e-3, 0.0
  elif method in ('cagrad', 'imtl', 'nash'):
    c.balance.name = method
  elif method in ('dmt', 'cmt'):
    terms = ('distribution_matching', 'co_annotation')
    c.loss.terms = terms[:1] if method == 'dmt' else terms
  c.name = f's2 {text}'
  return c


def get_table(data: str = 'cifar100') -> Table:
  check_choice('configs/tables/s2_table1.py: no data', data, hcal.DATA)
  index = hcal.DATA.index(data)
  rows = [
    Row(
      f'{method},{data}',
      label,
      FIGURES[method][index] or (),
      group,
      '' if method == 'flat' else f'flat,{data}',
      note=NOTES.get(method, ''),
    )
    for method, (group, label) in LABELS.items()
  ]
  names = (
    {'paper, fine': 'top1/finest', 'paper, coarse': 'top1/coarsest'},
    {
      'paper, variant': 'top1/finest',
      'paper, family': 'top1/family',
      'paper, manufacturer': 'top1/coarsest',
    },
  )[index]
  return Table(
    title=f'S2, Table 1: {("CIFAR-100", "FGVC-Aircraft")[index]}',
    rows=rows,
    published={**names, 'paper, HVR': 'hvr'},
    source=f'Jiang, Liu, Liu and Yu (HCAL), Table 1, {("CIFAR-100", "FGVC-Aircraft")[index]}, '
    'test; the figures of HCAL stand next to both of its readings',
    columns=('top1/all', 'fpa', 'hvr', 'hvr_eq14', 'joint:top1/finest'),
    chart=('top1/finest', 'top1/coarsest'),
    seeds=(0, 1, 2),
  )
