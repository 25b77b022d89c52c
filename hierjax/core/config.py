"""The tree of options: its defaults, and `validate`, whose errors name the option and its choices.

A config file in `configs/` calls `default()`, changes what its experiment changes and returns the tree; flags (`--config.optim.lr=3e-4`) come last.
Where a level of the taxonomy is asked for, the words `coarsest` and `finest` name one without knowing the data set, `all` names every level and
`coarser` all but the finest; several are separated by commas.
"""

import functools
import json
import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from hierjax.core.errors import UserError, did_you_mean

# Options of the balancers, each read by some (balancing.py)
BALANCE = ('alpha', 'beta', 'c', 'decay', 'gamma', 'lr', 'power', 'temperature')

# Options that mean nothing where no level is exclusive (data.multi), and those that mean something only where some are multi
EXCLUSIVE = (
  'baseline',
  'data.balance',
  'data.unlabelled',
  'data.partial',
  'loss.smoothing',
  'loss.lca',
  'loss.hxe',
  'loss.any_level',
  'loss.aggregate',
  'loss.positives',
  'loss.terms',
)
BINARY = ('loss.binary', 'loss.focal_gamma', 'loss.pos_weight')

CHOICES = {
  'data.source': (
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
  'data.partial': ('keep', 'drop'),
  'data.resize': ('squash', 'crop', 'pad'),
  'data.balance': ('none', 'sample', 'loss'),
  'model.dtype': ('float32', 'bfloat16'),
  'model.stem': ('standard', 'small'),
  'model.heads': (
    'flat',
    'parallel',
    'cascaded',
    'crosstalk',
    'mmoe',
    'residual',
    'split',
    'prototypes',
  ),
  'loss.aggregate': ('none', 'samples', 'children'),
  'loss.positives': ('perturbed', 'both'),
  'loss.binary': ('bce', 'focal'),
  'balance.name': (
    'fixed',
    'equal',
    'uw',
    'dwa',
    'dtp',
    'gradnorm',
    'awa',
    'rlw',
    'gls',
    'famo',
    'pcgrad',
    'gradvac',
    'cagrad',
    'imtl',
    'imtl_l',
    'imtl_g',
    'mgda',
    'nash',
    'aligned',
    'fairgrad',
    'db_mtl',
  ),
  'balance.at': ('weights', 'features'),
  'optim.name': ('adam', 'adamw', 'sgd'),
  'optim.schedule': ('constant', 'cosine', 'onecycle', 'plateau'),
  'eval.tta': (1, 2, 3, 5),
  'eval.checkpoint': ('best', 'last'),
  'eval.novelty_score': (
    'auto',
    'softmax',
    'energy',
    'mahalanobis',
    'cosine',
    'cosine_softmax',
    'logistic',
  ),
}


# Where numbers may lie, each of them where the option has several; NaN lies nowhere.
RANGES = {
  'seed': '[0, 9223372036854775807]',
  'data.split_seed': '[0, inf)',
  'data.toy.seed': '[0, inf)',
  'data.size': '[8, 8192]',
  'data.threads': '[1, 1024]',
  'data.workers': '[0, 1024]',
  'data.val_share': '[0, 1)',
  'data.test_share': '[0, 1)',
  'data.limit': '[0, inf)',
  'data.unlabelled': '[0, 1)',
  'data.crop_margin': '[0, 10]',
  'data.augment.crop': '(0, 1]',
  'data.augment.ratio': '(0, inf)',
  'data.augment.flip': '[0, 1]',
  'data.augment.rotate': '[0, 180]',
  'data.augment.brightness': '[0, 1]',
  'data.augment.contrast': '[0, 1]',
  'data.augment.saturation': '[0, 1]',
  'data.augment.hue': '[0, 0.5]',
  'data.toy.train': '[1, 10000000]',
  'data.toy.val': '[1, 10000000]',
  'data.toy.difficulty': '[0, inf)',
  'model.mean': '[0, 255]',
  'model.std': '(0, inf)',
  'model.dropout': '[0, 1)',
  'model.head.layers': '[0, 100]',
  'model.head.width': '[0, 1000000]',
  'model.head.experts': '[0, 1000]',
  'model.head.tower': '[0, 1000000]',
  'model.head.slices': '[1, 1000000]',
  'model.neck': '[0, 1000000]',
  'model.head.temperature': '[0, inf)',
  'model.head.noise': '[0, inf)',
  'loss.smoothing': '[0, 1)',
  'loss.lca': '[0, inf)',
  'loss.hxe': '[0, inf)',
  'loss.temperature': '(0, inf)',
  'loss.distill_temperature': '(0, inf)',
  'loss.focal_gamma': '[0, inf)',
  'loss.pos_weight': '[0, inf)',
  'optim.heads_lr': '(0, inf)',
  'optim.heads_growth': '(0, inf)',
  'optim.lr': '(0, inf)',
  'optim.weight_decay': '[0, inf)',
  'optim.momentum': '[0, 1)',
  'optim.onecycle_rise': '[0, 1)',
  'optim.clip': '[0, inf)',
  'optim.warmup_steps': '[0, inf)',
  'optim.warmup_epochs': '[0, inf)',
  'optim.warmup_examples': '[0, inf)',
  'optim.plateau_factor': '(0, 1)',
  'optim.plateau_patience': '[0, inf)',
  'optim.accumulate': '[1, inf)',
  'optim.ema': '[0, 1)',
  'balance.alpha': '[0, inf)',
  'balance.beta': '[0, 1]',
  'balance.c': '[0, 1)',
  'balance.decay': '[0, 1)',
  'balance.gamma': '[0, inf)',
  'balance.lr': '[0, inf)',
  'balance.power': '[0, inf)',
  'balance.temperature': '[0, inf)',
  'train.batch_size': '[1, inf)',
  'train.log_steps': '[1, inf)',
  'train.early_stop': '[0, inf)',
  'train.save_minutes': '[0, inf)',
  'eval.batch_size': '[1, inf)',
  'eval.novelty': '[0, 1)',
  **{
    f'train.{prefix}{unit}': '[0, inf)'
    for prefix in ('', 'eval_')
    for unit in ('steps', 'epochs', 'examples')
  },
  **{
    f'curriculum.{phase}.{unit}': '[-1, inf)'
    for phase in ('p1', 'p2', 'p3')
    for unit in ('steps', 'epochs', 'examples')
  },
  **{f'curriculum.{phase}.share': '[0, 1]' for phase in ('p1', 'p2', 'p3')},
}


def default() -> ConfigDict:
  """Every option with its default. Durations: at most one of *_steps, *_epochs and *_examples may be above 0."""
  c = ConfigDict()
  c.name = ''  # shown in the report; train's default --workdir is runs/NAME
  c.seed = 0
  c.baseline = ''  # the one-head run to compare with: 'train' trains it into WORKDIR/baseline, or a run's folder; '' = none

  c.data = ConfigDict()
  # auto: no root = toy; labels.csv = csv; the layout of a published data set (data/layouts.py says how they look); *.parquet = parquet; else class folders
  c.data.source = 'auto'
  # FOLDER | hf:OWNER/NAME[@REVISION], Parquet on the hub | tfds:NAME[/CONFIG][:VERSION], prepared as ArrayRecord below $TFDS_DATA_DIR |
  # classes:make=49,model=196, no images but so many classes a level, for --mode=describe
  c.data.root = ''
  c.data.taxonomy = ''  # '' = ROOT/taxonomy.csv, or derived from the labels where there is none
  c.data.train, c.data.val = 'train', 'val'  # names of the splits
  # levels of which an image may have any number of classes ('tags', 'all'); the others are exclusive and stand above these, or beside one that taxonomy.csv
  # does not have. labels.csv then has a column per level with a set of classes ('sea|sunset', '-' = none of them, empty = unknown), or a column per class
  # with 0, 1 or nothing
  c.data.multi = ''
  c.data.val_share = (
    0.2  # of the images, stratified by the finest class, where the data name no split
  )
  c.data.test_share = (
    0.0  # likewise, a split 'test' beside these two; where the data name none at all
  )
  c.data.split_seed = 0
  c.data.crop_boxes = (
    False  # show only the box of each image, where a published data set has them ...
  )
  c.data.crop_margin = 0.0  # ... and this share of its width and height more on each side
  c.data.limit = (
    0  # images of each split at most, every class in its proportion, for a look; 0 = all
  )
  c.data.unlabelled = 0.0  # this share of each finest class's training images has its finest label taken away, to see what labels at any level are worth
  c.data.partial = 'keep'  # training images without a finest label: keep them for the levels that they have, or drop them
  # classes that training shall not know, apart by ';': names of any level, or a share of the finest classes below each parent, as 1/3. Their images are the
  # splits train_novel, val_novel ...
  c.data.hold_out = ''
  c.data.strict = False  # True: an unreadable image is an error, not a counted skip
  c.data.size = 224  # pixels, height = width
  c.data.resize = 'squash'  # evaluation: squash to the square, resize and centre-crop, or pad
  c.data.balance = 'none'  # classes by inverse frequency: 'sample' draws, 'loss' weighs
  c.data.balance_level = 'finest'
  c.data.workers = 0  # processes; 0 reads in this one, with threads
  c.data.threads = 2
  c.data.augment = ConfigDict()
  c.data.augment.enabled = True
  c.data.augment.crop = (0.5, 1.0)  # share of the area
  c.data.augment.ratio = (0.75, 4 / 3)  # width / height of the crop
  c.data.augment.flip = 0.5
  c.data.augment.rotate = 15.0  # degrees, either way
  c.data.augment.brightness = c.data.augment.contrast = c.data.augment.saturation = 0.3
  c.data.augment.hue = 0.0
  c.data.toy = ConfigDict()
  c.data.toy.train, c.data.toy.val, c.data.toy.seed = 2400, 600, 0
  c.data.toy.difficulty = 1.4

  c.model = ConfigDict()
  c.model.backbone = 'efficientnet_lite0'
  c.model.stem = 'standard'  # 'small': 3x3 stride 1 without max-pool, for images of 32 px (ResNets)
  c.model.pretrained = ''  # PATH.safetensors | PATH.pth | hf:REPO | package
  c.model.mean, c.model.std = (
    (),
    (),
  )  # of RGB in 0..255, as the images are normalised; () = as the pretrained weights or the backbone were trained
  c.model.neck = 0  # width of a linear layer between the backbone and the heads; 0 = none
  c.model.normalize = False  # the features that the heads see have length 1
  c.model.levels = 'all'  # the levels that have a head
  c.model.heads = 'parallel'  # their form; 'flat' is one linear head on the finest of the levels
  c.model.head = (
    ConfigDict()
  )  # of the form; 0, '' and () are its own default, and what it does not read must stay so
  c.model.head.order = ''  # cascaded: 'type,make,model'; '' = coarse to fine
  c.model.head.stop_gradient = False  # cascaded: at the logits that the next level reads
  c.model.head.layers, c.model.head.width = (
    0,
    0,
  )  # dense layers of a level and their width (crosstalk, residual: 1 of 512); mmoe: width of an expert (128)
  c.model.head.experts, c.model.head.tower = (
    0,
    0,
  )  # mmoe: how many (3), and the width of a level's tower (256)
  c.model.head.slices = ()  # split: the widths of the levels' slices, coarse to fine; () = equal ones
  c.model.head.temperature = 0.0  # prototypes: what cosines are divided by (.1)
  c.model.head.noise = 0.0  # prototypes: in training each coordinate is moved by up to so much
  c.model.head.dot_product = (
    False  # prototypes: with the features as they are, not made unit vectors first
  )
  c.model.parts = ()  # (level, class, n): a class that was merged of n, which its head keeps as n rows; --mode=migrate sets it
  c.model.dropout = 0.0  # before the heads
  c.model.dtype = 'float32'  # of the computation; parameters stay float32
  c.model.remat = False  # True: each block is computed again in the backward pass, which takes less memory and more time

  c.loss = ConfigDict()
  c.loss.weights = ''  # 'make=1,type=.5,tree_path=.1'; levels and terms that are not named weigh 1
  c.loss.smoothing = (
    0.0  # hierarchical label smoothing of the finest head: this share goes to the siblings
  )
  c.loss.siblings = (
    'coarsest'  # siblings share these levels: 'make', 'type', or 'make,type' for both
  )
  c.loss.lca = (
    0.0  # soft targets of the finest head, softmax(-lca * LCA height / the largest); 0 = off
  )
  c.loss.hxe = 0.0  # hierarchical cross-entropy of the finest head: a level k steps below the coarsest weighs exp(-hxe * k); 0 = off
  c.loss.any_level = False  # the finest head learns from images without a finest label too: their class is any that their known labels allow
  # HCAL's feature aggregation: a coarser head learns from the mean features of its classes in the batch, over their samples or over their child classes
  c.loss.aggregate = 'none'
  c.loss.positives = (
    'perturbed'  # of prototype heads: the class's perturbed prototype, or also the undisturbed one
  )
  # further losses: tree_path, distribution_matching, co_annotation, supervised_contrastive, and in a run that --mode=migrate has made distill, which holds on
  # to what it began with
  c.loss.terms = ''
  c.loss.temperature = 0.1  # of supervised_contrastive
  c.loss.distill_temperature = (
    2.0  # of distill: the higher, the more the classes count that are unlikely
  )
  c.loss.binary = 'bce'  # of multi levels: binary cross-entropy, or focal loss, which counts what is easy less, by (1 - p)^focal_gamma ...
  c.loss.focal_gamma = 2.0
  c.loss.pos_weight = 0.0  # bce: positives weigh negatives / positives of their class in the training split, at most this and at least 1 / this; 0 = all alike

  c.balance = ConfigDict()  # how the losses of the levels and terms, each times its loss.weights, are weighed against each other in training
  c.balance.name = (
    'fixed'  # their sum; the others are in balancing.py. 'equal' is the sum without loss.weights
  )
  c.balance.at = 'weights'  # the gradients that are compared: of the shared weights, or of the features only, which costs next to nothing
  # of the method; 0 is its own default, and what it does not read must stay so
  for option in BALANCE:
    c.balance[option] = 0.0

  c.optim = ConfigDict()
  c.optim.name = 'adamw'
  c.optim.lr = 1e-3  # the peak
  c.optim.heads_lr = 1.0  # factor on lr for the heads ...
  c.optim.heads_growth = 1.0  # ... and once more for each level upwards from the finest
  c.optim.weight_decay = 1e-4  # adamw: decoupled; adam and sgd: added to the gradient
  c.optim.momentum = 0.9
  c.optim.schedule = 'cosine'
  c.optim.warmup_steps = 0
  c.optim.warmup_epochs = 0.0
  c.optim.warmup_examples = 0
  c.optim.onecycle_rise = 0.2  # share of the steps up to the peak
  c.optim.plateau_factor, c.optim.plateau_patience = (
    0.5,
    2,
  )  # patience counts evaluations without a lower val loss
  c.optim.clip = 0.0  # global gradient norm; 0 = off
  c.optim.accumulate = 1  # micro-batches a step; batch norm sees one at a time
  c.optim.ema = 0.0  # decay per step of the averaged weights that are evaluated; 0 = off
  # (regular expression over the parameter's path, factor on lr, factor on weight decay): the first match wins, each must match.
  c.optim.rules = ((r'.*/kernel', 1.0, 1.0), (r'.*', 1.0, 0.0))

  c.train = ConfigDict()
  c.train.batch_size = 32  # over all devices
  c.train.epochs, c.train.steps, c.train.examples = 20.0, 0, 0
  c.train.eval_epochs, c.train.eval_steps, c.train.eval_examples = (
    1.0,
    0,
    0,
  )  # evaluate on val and save this often
  c.train.log_steps = 20
  c.train.save_minutes = 10.0  # save also between evaluations when the last save is this long ago; 0 = only at evaluations
  # val metric that chooses the checkpoint: loss; of exclusive levels fpa, hvr, joint_fpa or top1/LEVEL; of multi levels map/LEVEL, micro_map/LEVEL or
  # f1/LEVEL. Where all are multi, map/finest is what this default means
  c.train.best = 'top1/finest'
  c.train.early_stop = 0  # evaluations without a better one; 0 = never

  c.log = ConfigDict()  # beside metrics.jsonl
  c.log.tensorboard = True  # WORKDIR/tensorboard
  c.log.wandb = (
    False  # Weights & Biases, where it is installed; the project is $WANDB_PROJECT or 'hierjax'
  )

  # The curriculum: phases in order, each for its epochs, steps or examples (-1 = to the end), or for a share of the whole training (all 0 = absent);
  # what comes after trains all.
  # freeze: parameter groups among backbone and heads/LEVEL; levels: those whose loss counts.
  c.curriculum = ConfigDict()
  for phase in ('p1', 'p2', 'p3'):
    c.curriculum[phase] = ConfigDict(
      {'epochs': 0.0, 'steps': 0, 'examples': 0, 'share': 0.0, 'freeze': '', 'levels': 'all'}
    )

  c.eval = ConfigDict()
  c.eval.batch_size = 64
  c.eval.tta = 1  # views: 1, 2 (+ flip), 3 (+ a crop) or 5 (+ two more crops)
  c.eval.checkpoint = 'best'
  # Novelty, at every node of the taxonomy: the share of images of unknown classes that evaluate and predict shall call new, .95 say, as far as leaving known
  # classes out can tell; 0 = off
  c.eval.novelty = 0.0
  c.eval.novelty_score = 'auto'  # the best of them at telling images of left-out classes, for each level; novelty.py has a word on each
  c.lock()
  return c


def get_config(_: str = '') -> ConfigDict:
  """What `--config=FILE.py:ARG` calls in a config file; here, the defaults."""
  return default()


def split_names(text: str | Sequence[str]) -> list[str]:
  return [t.strip() for t in (text.split(',') if isinstance(text, str) else text) if t.strip()]


def level_words(levels: Sequence[str]) -> dict[str, Sequence[str]]:
  """The words that name levels of any taxonomy."""
  return {'coarsest': levels[:1], 'finest': levels[-1:], 'all': levels, 'coarser': levels[:-1]}


def resolve_levels(
  text: str | Sequence[str], levels: Sequence[str], option: str
) -> tuple[str, ...]:
  """Names of levels from an option's text, in the taxonomy's order. UserError names the option and the choices."""
  words = level_words(levels)
  chosen = set()
  for name in split_names(text):
    if name not in words and name not in levels:
      raise UserError(
        f'{option}: no level {name!r}{did_you_mean(name, levels)}; choices: {", ".join([*levels, *words])}'
      )
    chosen.update((name,) if name in levels else words[name])
  return tuple(l for l in levels if l in chosen)


def head_levels(m: ConfigDict, levels: Sequence[str], multi: Sequence[str] = ()) -> tuple[str, ...]:
  """The levels that have a head in the `model` part of a config, in the taxonomy's order; flat heads are that of the last exclusive one, and beside it those of
  the levels `multi`."""
  chosen = resolve_levels(m.levels, levels, '--config.model.levels')
  left_out = ([l for l in chosen if l not in multi] or chosen)[:-1] if m.heads == 'flat' else ()
  return tuple(l for l in chosen if l not in left_out)


def steps(node: ConfigDict, prefix: str, examples: int, batch_size: int, option: str) -> int:
  """Steps in a duration given as exactly one of PREFIXsteps, PREFIXepochs, PREFIXexamples; -1 stays -1, none given is 0."""
  given = {u: node[prefix + u] for u in ('steps', 'epochs', 'examples') if node[prefix + u]}
  if len(given) > 1:
    raise UserError(
      f'{option}: give only one of {", ".join(f"{prefix}{u}={v}" for u, v in given.items())}; set the others to 0'
    )
  for unit, value in given.items():
    number = {
      'steps': value,
      'epochs': value * examples / batch_size,
      'examples': value / batch_size,
    }[unit]
    if number > 2**31 - 1:  # what the state counts to
      raise UserError(
        f'{option}: {unit}={value} are {number:.3g} steps; at most {2**31 - 1} can be counted'
      )
    return -1 if value < 0 else max(1, round(number))
  return 0


def _within(value: float, interval: str) -> bool:
  low, high = (float(x) for x in interval[1:-1].split(','))
  return (low < value or (low == value and interval[0] == '[')) and (
    value < high or (value == high and interval[-1] == ']')
  )


def paths(node: ConfigDict, prefix: str = '') -> list[str]:
  """The options of a tree: 'optim.lr' ..."""
  return [
    p
    for k, v in node.items()
    for p in (paths(v, f'{prefix}{k}.') if isinstance(v, ConfigDict) else [prefix + k])
  ]


def check_tree(c: ConfigDict) -> None:
  """UserError where a config file's tree is not that of `default()`."""
  if not isinstance(c, ConfigDict):
    raise UserError(
      f'the config is of type {type(c).__name__}; it must be the tree that hierjax.config.default() returns, with some values changed'
    )
  wanted, found = paths(default()), paths(c)
  if missing := [p for p in wanted if p not in found]:
    raise UserError(
      f'the config lacks {", ".join(missing[:5])}; begin it with c = hierjax.config.default()'
    )
  if unknown := [p for p in found if p not in wanted]:
    raise UserError(
      f'the config has an unknown option {unknown[0]}{did_you_mean(unknown[0], wanted)}'
    )


def value_at(c: ConfigDict, path: str):
  """c.PATH, where PATH is 'optim.lr'."""
  for part in path.split('.'):
    c = c[part]
  return c


def validate(c: ConfigDict, backbones: Sequence[str] = ()) -> None:
  """Checks what can be checked without the data. UserError names the option, its value and its choices."""
  check_tree(c)
  get = functools.partial(value_at, c)

  for path, choices in CHOICES.items():
    if get(path) not in choices:
      raise UserError(
        f'--config.{path}={get(path)!r} is not a choice{did_you_mean(str(get(path)), [str(x) for x in choices])}; '
        f'choices: {", ".join(map(str, choices))}'
      )
  if backbones and c.model.backbone not in backbones:
    raise UserError(
      f'--config.model.backbone={c.model.backbone!r} is not a choice{did_you_mean(c.model.backbone, backbones)}; '
      f'choices: {", ".join(backbones)}'
    )
  for path, interval in RANGES.items():
    values = get(path) if isinstance(get(path), tuple) else (get(path),)
    if not all(isinstance(v, int | float) and _within(v, interval) for v in values):
      low, high = interval[1:-1].split(', ')
      words = f'{"at least" if interval[0] == "[" else "above"} {low}'
      if high != 'inf':
        words += f' and {"at most" if interval[-1] == "]" else "below"} {high}'
      elif math.inf in values:
        words += ' and finite'
      raise UserError(f'--config.{path}={get(path)!r} must be {words}')
  for path, (low, high) in {
    'data.augment.crop': (0, 1),
    'data.augment.ratio': (0, math.inf),
  }.items():
    pair = get(path)
    if len(pair) != 2 or not low < pair[0] <= pair[1] <= high or math.isinf(pair[1]):
      raise UserError(
        f'--config.{path}={pair!r} must be two numbers, the smaller first, above {low}'
        + (f' and at most {high}' if high == 1 else '')
      )
  if len(c.model.mean) not in (0, 3) or len(c.model.std) != len(c.model.mean):
    raise UserError(
      f'--config.model.mean={c.model.mean!r} and --config.model.std={c.model.std!r} must be three numbers each, of RGB in 0..255, or both ()'
    )
  for rule in c.optim.rules:
    try:
      pattern, *factors = rule
      re.compile(pattern)
      sound = len(factors) == 2 and all(_within(f, '[0, inf)') for f in factors)
    except (TypeError, ValueError, re.error):
      sound = False
    if not sound:
      raise UserError(
        f'--config.optim.rules: {rule!r} is not (regular expression, factor on lr, factor on weight decay)'
      )
  if c.train.batch_size % c.optim.accumulate:
    raise UserError(
      f'--config.train.batch_size={c.train.batch_size} must be a multiple of --config.optim.accumulate={c.optim.accumulate}'
    )
  if c.data.val_share + c.data.test_share >= 1:
    raise UserError(
      f'--config.data.val_share={c.data.val_share:g} and --config.data.test_share={c.data.test_share:g} leave nothing to train on'
    )
  if (
    len(
      given := [
        f'--config.loss.{k}={c.loss[k]}'
        for k in ('smoothing', 'lca', 'hxe', 'any_level')
        if c.loss[k]
      ]
    )
    > 1
  ):
    raise UserError(f'{" and ".join(given)}: each is another loss of the finest head; choose one')
  if c.loss.positives == 'both' and c.model.heads != 'prototypes':
    raise UserError(
      f'--config.loss.positives=both needs --config.model.heads=prototypes, not {c.model.heads}'
    )
  defaults = default()
  for path in () if c.data.multi else BINARY:
    if get(path) != value_at(defaults, path):
      raise UserError(
        f'--config.{path}={get(path)!r} is for multi levels; name them with --config.data.multi'
      )
  if c.loss.binary == 'focal' and c.loss.pos_weight:
    raise UserError(
      f'--config.loss.binary=focal and --config.loss.pos_weight={c.loss.pos_weight:g}: each is against imbalance; choose one'
    )
  if c.loss.smoothing and 'finest' in split_names(c.loss.siblings):
    raise UserError(
      '--config.loss.siblings: a class has no sibling that shares its finest level; name coarser levels'
    )


def check_multi(c: ConfigDict, levels: Sequence[str]) -> None:
  """What `validate` cannot know: UserError for an option of exclusive levels where the data have none, only the multi `levels`."""
  for path in EXCLUSIVE:
    if value_at(c, path) != value_at(default(), path):
      raise UserError(
        f'--config.{path}={value_at(c, path)!r} is for exclusive levels; --config.data.multi={c.data.multi} has none, as {", ".join(levels)} '
        f'{"are" if len(levels) > 1 else "is"} multi'
      )


def to_json(c: ConfigDict) -> str:
  return json.dumps(c.to_dict(), indent=2, default=list)


def from_json(text: str) -> ConfigDict:
  """The tree that `to_json` wrote. Options that this version does not know are a UserError; ones it added since keep their default."""
  c = default()
  try:
    fill(c, json.loads(text), '')
  except (json.JSONDecodeError, AttributeError, TypeError) as e:
    raise UserError(f'is damaged ({str(e).splitlines()[0][:200]})') from None
  return c


def fill(node: ConfigDict, values: dict, path: str) -> None:
  for k, v in values.items():
    if k not in node:
      raise UserError(f'unknown option {path}{k}{did_you_mean(k, list(node))}')
    if isinstance(v, dict):
      fill(node[k], v, f'{path}{k}.')
    else:
      node[k] = (
        tuple(tuple(x) if isinstance(x, list) else x for x in v) if isinstance(v, list) else v
      )


def assign(c: ConfigDict, path: str, value) -> None:
  """c.PATH = value, where PATH is 'optim.lr'."""
  *parents, last = path.split('.')
  for name in parents:
    c = c[name]
  c[last] = value


def differences(old: ConfigDict, new: ConfigDict, path: str = '') -> list[str]:
  """One line per option that differs: 'optim.lr: 0.001 -> 0.01'."""
  lines = []
  for k in new:
    if isinstance(new[k], ConfigDict):
      lines += differences(old[k], new[k], f'{path}{k}.')
    elif old[k] != new[k]:
      lines.append(f'{path}{k}: {old[k]!r} -> {new[k]!r}')
  return lines
