"""Every option of hierjax: its type, default, range or choices, and what it does.

A level of the taxonomy is named by its name or by one of the words `coarsest`, `finest`, `coarser`
(all but the finest) and `all`.
"""

from hierjax.core import curriculum, options
from hierjax.core.options import Option

GROUPS = {
  '': 'The run',
  'data': 'Data: where images and labels come from and how images are read',
  'data.augment': 'Augmentation of training images',
  'data.toy': 'The drawn data set',
  'model': 'The model',
  'model.head': 'Heads: each is read by some forms only; None is the default of the form',
  'loss': 'Losses of the levels, and further terms',
  'balance': 'How the losses are weighed against each other; None is the default of the method',
  'optim': 'Optimiser and learning rate',
  'train': 'How long to train, when to evaluate and to save',
  'log': 'Logs besides metrics.jsonl',
  'eval': 'Evaluation and prediction',
}


def _names(name: str, default: tuple[str, ...] | None, text: str, **fields) -> Option:
  fields = {'parse': options.names, **fields}
  return Option(name, tuple, default, text, check=options.check_names, **fields)


def _durations(prefix: str, text: str, epochs: float | None) -> tuple[Option, ...]:
  positive = {'interval': '(0, inf)', 'is_optional': True}
  return (
    Option(f'{prefix}epochs', float, epochs, f'{text}, in epochs', **positive),
    Option(f'{prefix}steps', int, None, f'{text}, in steps', **positive),
    Option(f'{prefix}examples', int, None, f'{text}, in examples', **positive),
  )


_RUN = (
  Option('name', str, None, 'shown in the report; the default --workdir is runs/NAME'),
  Option('seed', int, 0, 'seed of all that is random', f'[0, {2**63 - 1}]'),
  Option(
    'baseline',
    str,
    None,
    "one-head run to compare with: 'train' trains it into WORKDIR/baseline, or the folder of a run",
    levels='exclusive',
  ),
  _names(
    'plugins', (), 'modules or .py files that register your own backbones, heads, losses, metrics'
  ),
  Option(
    'curriculum',
    tuple,
    (),
    'phases, in order; what comes after them trains everything; see config.phase',
    parse=curriculum.parse,
    check=curriculum.check,
  ),
)

_DATA = (
  Option(
    'data.source',
    str,
    'auto',
    'layout of the data; auto: the drawn set without data.root, else what the folder holds',
    choices=(
      'auto',
      'csv',
      'folders',
      'parquet',
      'toy',
      'stanford_cars',
      'compcars',
      'fgvc_aircraft',
      'cifar100',
      'cub200',
      'tfds',
    ),
  ),
  Option(
    'data.root',
    str,
    None,
    'FOLDER, hf:OWNER/NAME[@REVISION], tfds:NAME[/CONFIG][:VERSION], or classes:make=49,model=196 '
    'for --mode=describe without data',
  ),
  Option(
    'data.taxonomy', str, None, 'taxonomy CSV; None: ROOT/taxonomy.csv, or derived from the labels'
  ),
  Option('data.train', str, 'train', 'name of the split to train on'),
  Option('data.val', str, 'val', 'name of the split to validate on'),
  _names(
    'data.multi',
    (),
    "tag levels, of which an image may have any number of classes; ('all',): every level",
  ),
  Option(
    'data.val_share',
    float,
    0.2,
    'share of the images for val, stratified, where the data name no split',
    '[0, 1)',
  ),
  Option(
    'data.test_share',
    float,
    0.0,
    'share of the images for test, where the data name no split',
    '[0, 1)',
  ),
  Option('data.split_seed', int, 0, 'seed of the splits that are made', '[0, inf)'),
  Option('data.crop_boxes', bool, False, "show only an image's bounding box, where there is one"),
  Option(
    'data.crop_margin',
    float,
    0.0,
    'enlarges the box by this share of its width and height on each side',
    '[0, 10]',
  ),
  Option(
    'data.limit',
    int,
    None,
    'at most so many images of each split, every class in its proportion',
    '[1, inf)',
  ),
  Option(
    'data.unlabelled',
    float,
    0.0,
    "share of each finest class's training images whose finest label is hidden",
    '[0, 1)',
    levels='exclusive',
  ),
  Option(
    'data.partial',
    str,
    'keep',
    'training images without a finest label: keep them for the coarser levels, or drop them',
    choices=('keep', 'drop'),
    levels='exclusive',
  ),
  _names(
    'data.hold_out',
    (),
    'classes that training must not know, as names or a share below each parent (1/3); separated '
    'by ; in text',
    parse=options.names_by_semicolon,
  ),
  Option(
    'data.strict', bool, False, 'an unreadable image is an error; otherwise it is skipped, counted'
  ),
  Option('data.size', int, 224, 'height and width of the input in pixels', '[8, 8192]'),
  Option(
    'data.resize',
    str,
    'squash',
    'evaluation: squash to the square, resize and crop the centre, or pad',
    choices=('squash', 'crop', 'pad'),
  ),
  Option(
    'data.balance',
    str,
    None,
    'inverse class frequency: sample draws images by it, loss weighs them by it',
    choices=('sample', 'loss'),
    levels='exclusive',
  ),
  Option('data.balance_level', str, 'finest', 'level whose classes data.balance counts'),
  Option(
    'data.workers', int, 0, 'processes that read images; 0: threads of this process', '[0, 1024]'
  ),
  Option('data.threads', int, 2, 'threads that read images, in each process', '[1, 1024]'),
  Option('data.augment.enabled', bool, True, 'augment training images'),
  Option(
    'data.augment.crop',
    tuple,
    (0.5, 1.0),
    'share of the area that a random crop keeps, least and most',
    '(0, 1]',
    parse=options.numbers,
    check=options.check_pair,
  ),
  Option(
    'data.augment.ratio',
    tuple,
    (0.75, 4 / 3),
    'width over height of a random crop, least and most',
    '(0, inf)',
    parse=options.numbers,
    check=options.check_pair,
  ),
  Option('data.augment.flip', float, 0.5, 'probability of a horizontal flip', '[0, 1]'),
  Option('data.augment.rotate', float, 15.0, 'largest rotation in degrees, either way', '[0, 180]'),
  Option('data.augment.brightness', float, 0.3, 'largest relative change of brightness', '[0, 1]'),
  Option('data.augment.contrast', float, 0.3, 'largest relative change of contrast', '[0, 1]'),
  Option('data.augment.saturation', float, 0.3, 'largest relative change of saturation', '[0, 1]'),
  Option('data.augment.hue', float, 0.0, 'largest shift of the hue, in turns', '[0, 0.5]'),
  Option('data.toy.train', int, 2400, 'training images', '[1, 10000000]'),
  Option('data.toy.val', int, 600, 'validation images', '[1, 10000000]'),
  Option('data.toy.seed', int, 0, 'seed of the drawings', '[0, inf)'),
  Option('data.toy.difficulty', float, 1.4, 'how much the drawings vary', '[0, inf)'),
)

_MODEL = (
  Option('model.backbone', str, 'efficientnet_lite0', 'name of a registered backbone'),
  Option(
    'model.stem',
    str,
    'standard',
    'small: 3x3 stride 1 without max-pool, for images of 32 pixels (ResNets)',
    choices=('standard', 'small'),
  ),
  Option(
    'model.pretrained',
    str,
    None,
    'weights of the backbone: FILE.safetensors, FILE.pth, hf:REPO, or package',
  ),
  *(
    Option(
      f'model.{name}',
      tuple,
      None,
      f'{text} of the RGB input in 0..255; None: as the pretrained weights or the backbone have it',
      interval,
      parse=options.numbers,
      check=options.check_triple,
    )
    for name, text, interval in (
      ('mean', 'mean', '[0, 255]'),
      ('std', 'standard deviation', '(0, inf)'),
    )
  ),
  Option(
    'model.neck',
    int,
    None,
    'width of a linear layer between the backbone and the heads',
    '[1, 1000000]',
  ),
  Option('model.normalize', bool, False, 'scale the features that the heads read to unit length'),
  _names('model.levels', ('all',), 'the levels that have a head'),
  Option(
    'model.heads',
    str,
    'parallel',
    'form of the heads; flat is one linear head on the finest of the levels',
  ),
  _names('model.head.order', None, 'cascaded: the order of the levels; None: coarse to fine'),
  Option(
    'model.head.stop_gradient',
    bool,
    False,
    'cascaded: no gradient through the logits that the next level reads',
  ),
  Option(
    'model.head.layers', int, None, 'crosstalk, residual: dense layers of a level (1)', '[1, 100]'
  ),
  Option(
    'model.head.width',
    int,
    None,
    'width of these layers (512); mmoe: of an expert (128)',
    '[1, 1000000]',
  ),
  Option('model.head.experts', int, None, 'mmoe: number of experts (3)', '[1, 1000]'),
  Option('model.head.tower', int, None, "mmoe: width of a level's tower (256)", '[1, 1000000]'),
  Option(
    'model.head.slices',
    tuple,
    None,
    "split: widths of the levels' slices, coarse to fine; None: equal ones",
    '[1, 1000000]',
    parse=options.numbers,
  ),
  Option(
    'model.head.temperature', float, None, 'prototypes: divisor of the cosines (.1)', '(0, inf)'
  ),
  Option(
    'model.head.noise',
    float,
    None,
    'prototypes: largest change of each coordinate in training (0)',
    '[0, inf)',
  ),
  Option(
    'model.head.dot_product',
    bool,
    False,
    'prototypes: products with the features as they are, not as unit vectors',
  ),
  Option(
    'model.parts',
    tuple,
    (),
    '(level, class, n): a class merged of n, kept as n rows; --mode=migrate sets it',
    parse=options.tuples,
  ),
  Option('model.dropout', float, 0.0, 'dropout before the heads', '[0, 1)'),
  Option(
    'model.dtype',
    str,
    'float32',
    'type of the computation; parameters stay float32',
    choices=('float32', 'bfloat16'),
  ),
  Option(
    'model.remat',
    bool,
    False,
    'compute each block again in the backward pass: less memory, more time',
  ),
)

_LOSS = (
  Option(
    'loss.weights',
    tuple,
    (),
    "(name, weight) of levels and terms, in text 'make=1,tree_path=.1'; 1 where not named",
    parse=options.weights,
    check=options.check_weights,
  ),
  Option(
    'loss.smoothing',
    float,
    None,
    'hierarchical label smoothing of the finest head: the share that goes to siblings',
    '(0, 1)',
    levels='exclusive',
  ),
  _names('loss.siblings', ('coarsest',), 'siblings are classes that share these levels'),
  Option(
    'loss.lca',
    float,
    None,
    'soft targets of the finest head: softmax(-lca * LCA height / largest)',
    '(0, inf)',
    levels='exclusive',
  ),
  Option(
    'loss.hxe',
    float,
    None,
    'hierarchical cross-entropy of the finest head: k steps down weigh exp(-hxe * k)',
    '(0, inf)',
    levels='exclusive',
  ),
  Option(
    'loss.any_level',
    bool,
    False,
    'the finest head learns from coarser labels too: any class below them',
    levels='exclusive',
  ),
  Option(
    'loss.aggregate',
    str,
    None,
    "HCAL: coarser heads learn from the mean features of their classes' samples or children",
    choices=('samples', 'children'),
    levels='exclusive',
  ),
  Option(
    'loss.positives',
    str,
    'perturbed',
    'prototype heads: the perturbed prototype of the class, or the undisturbed one as well',
    choices=('perturbed', 'both'),
    levels='exclusive',
  ),
  _names('loss.terms', (), 'further losses, by their registered names', levels='exclusive'),
  Option(
    'loss.temperature', float, 0.1, 'temperature of the term supervised_contrastive', '(0, inf)'
  ),
  Option(
    'loss.distill_temperature',
    float,
    2.0,
    'temperature of the term distill: the higher, the more unlikely classes count',
    '(0, inf)',
  ),
  Option(
    'loss.binary',
    str,
    'bce',
    'tag levels: binary cross-entropy, or focal loss',
    choices=('bce', 'focal'),
    levels='tags',
  ),
  Option(
    'loss.focal_gamma',
    float,
    2.0,
    'focal: easy examples count less, by (1 - p)^focal_gamma',
    '[0, inf)',
    levels='tags',
  ),
  Option(
    'loss.pos_weight',
    float,
    None,
    'bce: positives weigh negatives / positives of their class, at most this, at least its inverse',
    '[1, inf)',
    levels='tags',
  ),
)

_BALANCE = (
  Option(
    'balance.name', str, 'fixed', 'method; fixed is the sum, equal the sum without loss.weights'
  ),
  Option(
    'balance.at',
    str,
    'weights',
    'gradients to compare: of the shared weights, or, far cheaper, of the features',
    choices=('weights', 'features'),
  ),
  Option('balance.alpha', float, None, 'gradnorm (1.5), fairgrad (1)', '[0, inf)'),
  Option('balance.beta', float, None, 'gradvac (.5), db_mtl (.9)', '[0, 1]'),
  Option('balance.c', float, None, 'cagrad (.4)', '[0, 1)'),
  Option('balance.decay', float, None, 'dtp (.9), famo (.001)', '[0, 1)'),
  Option('balance.gamma', float, None, 'dtp (1), awa (.5)', '[0, inf)'),
  Option('balance.lr', float, None, 'uw, imtl_l, imtl, famo, gradnorm (.025)', '[0, inf)'),
  Option('balance.power', float, None, 'db_mtl (.5)', '[0, inf)'),
  Option('balance.temperature', float, None, 'dwa (2)', '(0, inf)'),
)

_OPTIM = (
  Option('optim.name', str, 'adamw', 'optimiser', choices=('adam', 'adamw', 'sgd')),
  Option('optim.lr', float, 1e-3, 'learning rate at its peak', '(0, inf)'),
  Option('optim.heads_lr', float, 1.0, 'factor on lr for the heads', '(0, inf)'),
  Option(
    'optim.heads_growth',
    float,
    1.0,
    'further factor for each level upwards from the finest',
    '(0, inf)',
  ),
  Option(
    'optim.weight_decay',
    float,
    1e-4,
    'adamw: decoupled; adam, sgd: added to the gradient',
    '[0, inf)',
  ),
  Option('optim.momentum', float, 0.9, 'momentum of sgd', '[0, 1)'),
  Option(
    'optim.schedule',
    str,
    'cosine',
    'course of the learning rate',
    choices=('constant', 'cosine', 'onecycle', 'plateau'),
  ),
  *_durations('optim.warmup_', 'linear warm-up from 0', None),
  Option('optim.onecycle_rise', float, 0.2, 'share of the steps up to the peak', '[0, 1)'),
  Option('optim.plateau_factor', float, 0.5, 'factor on lr at a plateau', '(0, 1)'),
  Option(
    'optim.plateau_patience', int, 2, 'evaluations without a lower val loss before it', '[0, inf)'
  ),
  Option('optim.clip', float, None, 'largest global norm of the gradient', '(0, inf)'),
  Option(
    'optim.accumulate', int, 1, 'micro-batches a step; batch norm sees one at a time', '[1, inf)'
  ),
  Option(
    'optim.ema', float, None, 'decay a step of the averaged weights that are evaluated', '(0, 1)'
  ),
  Option(
    'optim.rules',
    tuple,
    ((r'.*/kernel', 1.0, 1.0), (r'.*', 1.0, 0.0)),
    '(regular expression of a parameter path, factor on lr, factor on weight decay): first match',
    parse=options.tuples,
    check=options.check_rules,
  ),
)

_TRAIN = (
  Option('train.batch_size', int, 32, 'examples a step, over all devices', '[1, inf)'),
  *_durations('train.', 'length of the training', 20.0),
  *_durations('train.eval_', 'evaluate on val and save this often; all None: at the end', 1.0),
  Option('train.log_steps', int, 20, 'steps between lines of the log', '[1, inf)'),
  Option(
    'train.save_minutes',
    float,
    10.0,
    'save between evaluations when the last save is this long ago',
    '(0, inf)',
    is_optional=True,
  ),
  Option(
    'train.best',
    str,
    'top1/finest',
    'val metric that chooses the checkpoint: loss, fpa, hvr, joint_fpa, top1/LEVEL; of tag levels '
    'map/LEVEL, micro_map/LEVEL, f1/LEVEL',
  ),
  Option(
    'train.early_stop', int, None, 'stop after so many evaluations without a better one', '[1, inf)'
  ),
)

_LOG = (
  Option('log.tensorboard', bool, True, 'write WORKDIR/tensorboard'),
  Option('log.wandb', bool, False, 'Weights & Biases; the project is $WANDB_PROJECT or hierjax'),
)

_EVAL = (
  Option('eval.batch_size', int, 64, 'images a batch', '[1, inf)'),
  Option(
    'eval.tta',
    int,
    1,
    'views an image: 1, 2 (+ flip), 3 (+ crop), 5 (+ 2 crops)',
    choices=(1, 2, 3, 5),
  ),
  Option('eval.checkpoint', str, 'best', 'checkpoint to use', choices=('best', 'last')),
  Option(
    'eval.novelty',
    float,
    None,
    'share of images of unknown classes to be called new, at every node of the taxonomy',
    '(0, 1)',
  ),
  Option(
    'eval.novelty_score',
    str,
    'auto',
    'score of novelty; auto: the best at telling left-out classes, for each level',
    choices=('auto', 'softmax', 'energy', 'mahalanobis', 'cosine', 'cosine_softmax', 'logistic'),
  ),
)

OPTIONS: dict[str, Option] = {
  option.name: option
  for group in (_RUN, _DATA, _MODEL, _LOSS, _BALANCE, _OPTIM, _TRAIN, _LOG, _EVAL)
  for option in group
}


def group_of(name: str) -> str:
  """Return the key in `GROUPS` that an option belongs to: 'optim' for 'optim.lr'."""
  return name.rpartition('.')[0]
