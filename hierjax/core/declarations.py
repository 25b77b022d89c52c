"""Every option of hierjax: its default, what it does, its range or choices, its type.

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
  'decide': 'Answers with a guarantee',
  'probe': 'The grid of linear heads that hierjax probe tries',
}
RULES = ((r'.*/kernel', 1.0, 1.0), (r'.*', 1.0, 0.0))


def _durations(prefix: str, text: str, epochs: float | None) -> tuple[Option, ...]:
  return (
    Option(f'{prefix}epochs', epochs, f'{text}, in epochs', '(0, inf)', is_optional=True),
    Option(f'{prefix}steps', None, f'{text}, in steps', '(0, inf)', int),
    Option(f'{prefix}examples', None, f'{text}, in examples', '(0, inf)', int),
  )


# fmt: off
SOURCES = ('auto', 'csv', 'folders', 'parquet', 'packed', 'webdataset', 'toy', 'stanford_cars',
           'compcars', 'fgvc_aircraft', 'cifar100', 'cub200', 'tfds')
ENCODINGS = ('utf-8', 'utf-16', 'cp1250', 'cp1251', 'cp1252', 'latin-1', 'shift_jis', 'gb18030',
             'big5', 'euc_kr')
NOVELTY_SCORES = ('auto', 'softmax', 'energy', 'entropy', 'mahalanobis', 'cosine',
                  'cosine_softmax', 'likelihood')

_RUN = (
  Option('name', None, 'shown in the report; the default --workdir is runs/NAME'),
  Option('seed', 0, 'seed of all that is random', f'[0, {2**63 - 1}]'),
  Option('baseline', None,
         "one-head run to compare with: its folder, or 'train' to train it into WORKDIR/baseline",
         levels='exclusive'),
  Option('baseline_seeds', 1,
         'with baseline=train: seeds of this run and of its baseline, the further ones in '
         'WORKDIR/seedN; the verdict of the report then covers the luck of the seed', '[1, 1000]'),
  Option('plan', False,
         'train: choose options that neither the config nor a flag sets by the data and the '
         'machine; hierjax plan shows them with their reasons'),
  Option('plugins', (),
         'modules or .py files that register your own backbones, heads, losses and metrics',
         kind=options.NAMES),
  Option('curriculum', (), 'phases, in order; then everything trains; see config.phase',
         kind=curriculum.PHASES),
)

_DATA = (
  Option('data.source', 'auto', 'layout of the data; auto: what data.root holds, toy without it',
         choices=SOURCES),
  Option('data.root', None,
         'FOLDER, FILE.csv, FILES-{000..123}.tar, hf:OWNER/NAME[@REVISION], '
         'tfds:NAME[/CONFIG][:VERSION], or, for hierjax describe without data, '
         'classes:make=49,model=196'),
  Option('data.taxonomy', None, 'taxonomy CSV; None: ROOT/taxonomy.csv, or by the labels'),
  Option('data.levels', (),
         'names of the levels, coarse to fine: of class folders by depth, of a CSV the columns',
         kind=options.NAMES),
  Option('data.file_column', None, 'CSV: column of image files; None: guessed, as all columns are'),
  Option('data.split_column', None, 'CSV: column of splits'),
  Option('data.image_root', None, "CSV: folder of the images, from the file's; None: the file's"),
  Option('data.delimiter', None, 'CSV: between cells; None: guessed',
         choices=('comma', 'semicolon', 'tab', 'pipe')),
  Option('data.encoding', None, 'CSV: encoding; None: UTF-8, else UTF-16 or Windows-1252',
         choices=ENCODINGS),
  Option('data.tag_separator', None, 'CSV: between the tags of a cell; None: guessed',
         choices=('pipe', 'semicolon', 'comma', 'blank', 'never')),
  Option('data.fold_case', True, 'CSV: names that differ in case only are one class'),
  Option('data.homonyms', 'auto',
         'one name under several classes: auto: several classes where nearly all others have one '
         'class above, otherwise facets', choices=('auto', 'split', 'merge')),
  Option('data.train', 'train', 'name of the split to train on'),
  Option('data.val', 'val', 'name of the split to validate on'),
  Option('data.multi', (), 'tag levels, of which an image may have any number of classes',
         kind=options.NAMES),
  Option('data.val_share', 0.2, 'share of images for val, where the data have none', '[0, 1)'),
  Option('data.test_share', 0.0, 'share of images for test, where the data have none', '[0, 1)'),
  Option('data.calibration', None,
         'split that calibration and the risk of answers are fitted on, apart from train and val; '
         'None: the one that data.calibration_share makes'),
  Option('data.calibration_share', None,
         'share of images for a split calibration, apart from train, val and test', '(0, 1)'),
  Option('data.val_from', None,
         'split that val is drawn from, where the data have none; None: the one to train on'),
  Option('data.divide', None,
         'split of the data to use as if it were all: divided into train, val and test'),
  Option('data.splits', None,
         'CSV with the columns file and split, as splits.csv of a run, that says the split of each '
         'image; others are not used; None: what the data name'),
  Option('data.split_seed', 0, 'seed of the splits that are made', '[0, inf)'),
  Option('data.crop_boxes', False, "show only an image's bounding box"),
  Option('data.crop_margin', 0.0, 'enlarges the box by this share of its size on each side',
         '[0, 10]'),
  Option('data.regions', None,
         'CSV of boxes in training images for guided_crop and guided_mask, as of hierjax regions'),
  Option('data.limit', None, 'at most so many images of each split, classes in proportion',
         '[1, inf)', int),
  Option('data.train_limit', None, 'at most so many training images, classes in proportion',
         '[1, inf)', int),
  Option('data.unlabelled', 0.0, "share of each class's images whose finest label is hidden",
         '[0, 1)', levels='exclusive'),
  Option('data.partial', 'keep',
         'training images without a finest label: for coarser levels, or not',
         choices=('keep', 'drop'), levels='exclusive'),
  Option('data.hold_out', (),
         'classes that training must not know, or a share below each parent (1/3); text: by ;',
         kind=options.NAMES_BY_SEMICOLON),
  Option('data.strict', False, 'an unreadable image is an error; otherwise it is skipped'),
  Option('data.max_pixels', 1 << 26,
         'an image with more is unreadable; a JPEG, which is decoded smaller, may have four times '
         'as many', '[1, 178956970]'),
  Option('data.max_bytes', 1 << 28,
         'an image file, or an image in Parquet, with more bytes is unreadable', '[1, 2147483647]'),
  Option('data.deep_range', None,
         'values of images of more than 8 bits that become 0 and 255: LOW,HIGH, or own: the least '
         'and the largest of each image; None: the upper 8 bits', kind=options.RANGE),
  Option('data.size', 224, 'height and width of the input in pixels', '[8, 8192]'),
  Option('data.resize', 'squash', 'evaluation: squash, resize and crop the centre, or pad',
         choices=('squash', 'crop', 'pad')),
  Option('data.crop_share', None,
         "evaluation: share of a side that is shown, the middle; None: the weights', or 1",
         '(0, 1]'),
  Option('data.interpolation', None,
         "evaluation: filter that brings images to size; None: the weights', or averages where "
         'they shrink and bilinear where they grow', choices=('bilinear', 'bicubic', 'lanczos')),
  Option('data.balance', None, 'draw images, or weigh them, by inverse class frequency',
         choices=('sample', 'loss'), levels='exclusive'),
  Option('data.balance_level', 'finest', 'level whose classes data.balance counts'),
  Option('data.workers', 0, 'processes that read images; 0: threads of this one', '[0, 1024]'),
  Option('data.threads', 2, 'threads that read images, in each process', '[1, 1024]'),
  Option('data.augment.enabled', True, 'augment training images'),
  Option('data.augment.crop', (0.5, 1.0), 'share of the area that a crop keeps, least and most',
         '(0, 1]', kind=options.PAIR),
  Option('data.augment.ratio', (0.75, 4 / 3), 'width over height of a crop, least and most',
         '(0, inf)', kind=options.PAIR),
  Option('data.augment.flip', 0.5, 'probability of a horizontal flip', '[0, 1]'),
  Option('data.augment.rotate', 15.0, 'largest rotation in degrees, either way', '[0, 180]'),
  Option('data.augment.brightness', 0.3, 'largest relative change of brightness', '[0, 1]'),
  Option('data.augment.contrast', 0.3, 'largest relative change of contrast', '[0, 1]'),
  Option('data.augment.saturation', 0.3, 'largest relative change of saturation', '[0, 1]'),
  Option('data.augment.hue', 0.0, 'largest shift of the hue, in turns', '[0, 0.5]'),
  Option('data.augment.alternate_flip', False,
         "mirror an image in every other epoch, the first by chance, and leave out 'flip'"),
  Option('data.augment.policy', None,
         'further operations: trivial, one of any strength; rand, several of one strength',
         choices=('trivial', 'rand')),
  Option('data.augment.rand_magnitude', 9.0, 'rand: strength of its operations', '[0, 30]'),
  Option('data.augment.rand_operations', 2, 'rand: their number', '[1, 10]'),
  Option('data.augment.erase', 0.0, 'probability that a rectangle of the image becomes grey',
         '[0, 1]'),
  Option('data.augment.guided_crop', 0.0,
         'probability of a crop within the box of data.regions and a margin', '[0, 1]'),
  Option('data.augment.guided_mask', 0.0,
         'probability that the hottest place of data.regions becomes grey', '[0, 1]'),
  Option('data.augment.mixup', None,
         'blend the images of a batch in pairs, by a share of Beta(mixup, mixup); losses, and the '
         'accuracy in the log, are those of both labels by their shares; usual: .2', '(0, inf)'),
  Option('data.augment.cutmix', None,
         'likewise, with a rectangle of the other image; with both, a step draws one; usual: 1',
         '(0, inf)'),
  Option('data.toy.train', 2400, 'training images', '[1, 10000000]'),
  Option('data.toy.val', 600, 'validation images', '[1, 10000000]'),
  Option('data.toy.seed', 0, 'seed of the drawings', '[0, inf)'),
  Option('data.toy.difficulty', 1.4, 'how much the drawings vary', '[0, inf)'),
  Option('data.toy.versions', 1, 'look-alikes of each model: classes that hardly differ', '[1, 4]'),
  Option('data.toy.tail', 0.0, 'a class of rank r is drawn in proportion to r ** -tail', '[0, 10]'),
)

_MODEL = (
  Option('model.backbone', 'efficientnet_lite0', 'name of a registered backbone'),
  Option('model.stem', 'standard', 'small: 3x3 stride 1, for images of 32 pixels (ResNets)',
         choices=('standard', 'small')),
  Option('model.pretrained', None,
         'FILE.safetensors, FILE.pth, hf:OWNER/NAME[@REVISION], or package'),
  Option('model.mean', None, "mean of the RGB input in 0..255; None: the weights' or backbone's",
         '[0, 255]', kind=options.TRIPLE),
  Option('model.std', None, 'standard deviation of the RGB input, likewise', '(0, inf)',
           kind=options.TRIPLE),
  Option('model.neck', None, 'width of a linear layer before the heads', '[1, 1000000]', int),
  Option('model.normalize', False, 'scale the features that the heads read to unit length'),
  Option('model.levels', ('all',), 'the levels that have a head', kind=options.NAMES),
  Option('model.heads', 'parallel',
         'form of the heads; flat: one linear head, on the finest level'),
  Option('model.head.order', None, 'cascaded: order of the levels; None: coarse to fine',
         kind=options.NAMES),
  Option('model.head.stop_gradient', False, 'cascaded: no gradient through the logits read'),
  Option('model.head.layers', None, 'crosstalk, residual: dense layers a level (1)', '[1, 100]',
         int),
  Option('model.head.width', None, 'their width (512); mmoe: of an expert (128)', '[1, 1000000]',
         int),
  Option('model.head.experts', None, 'mmoe: number of experts (3)', '[1, 1000]', int),
  Option('model.head.tower', None, "mmoe: width of a level's tower (256)", '[1, 1000000]', int),
  Option('model.head.slices', None, "split: widths of the levels' slices; None: equal",
         '[1, 1000000]', kind=options.NUMBERS),
  Option('model.head.temperature', None, 'prototypes: divisor of cosines (.1)', '(0, inf)'),
  Option('model.head.noise', None, 'prototypes: largest shift of a coordinate (0)', '[0, inf)'),
  Option('model.head.dot_product', False, 'prototypes: features are not made unit vectors'),
  Option('model.parts', (), '(level, class, n): a class merged of n rows; hierjax migrate sets it',
         kind=options.TUPLES),
  Option('model.dropout', 0.0, 'dropout before the heads', '[0, 1)'),
  Option('model.dtype', 'float32', 'of the computation; parameters stay float32',
         choices=('float32', 'bfloat16')),
  Option('model.drop_path', None,
         'stochastic depth of the last block, rising from 0 at the first; None: the backbone\'s',
         '[0, 1)'),
  Option('model.frozen_norm', False,
         "batch norms of the backbone keep their running statistics in training, too"),
  Option('model.lora_rank', None,
         'train updates of this rank of the dense layers of the backbone instead of its weights; '
         'prediction and export have them added', '[1, 4096]', int),
  Option('model.lora_alpha', None, 'the updates count alpha / rank; None: 1', '(0, inf)'),
  Option('model.remat', False, 'compute blocks again in the backward pass, to save memory'),
)

_LOSS = (
  Option('loss.weights', (), "(name, weight) of levels and terms, 'make=1,tree_path=.1'; else 1",
         kind=options.WEIGHTS),
  Option('loss.smoothing', None, 'finest head: label smoothing, the share that goes to siblings',
         '(0, 1)', levels='exclusive'),
  Option('loss.siblings', ('coarsest',), 'siblings are classes that share these levels',
         kind=options.NAMES),
  Option('loss.lca', None, 'finest head: soft targets, softmax(-lca * LCA height / largest)',
         '(0, inf)', levels='exclusive'),
  Option('loss.hxe', None,
         'finest head: hierarchical cross-entropy, k steps down weigh exp(-hxe k)', '(0, inf)',
         levels='exclusive'),
  Option('loss.hace', None,
         'finest head: HACE, cross-entropy of sums over leaves; an ancestor weighs hace as much',
         '(0, 1]', levels='exclusive'),
  Option('loss.margin', None,
         'finest head: soft-max-margin; a leaf gets margin * share of levels that differ',
         '(0, inf)', levels='exclusive'),
  Option('loss.any_level', False,
         'finest head: learns from coarser labels, as any class below; hxe, hace, margin do anyway',
         levels='exclusive'),
  Option('loss.logit_adjust', None,
         'all levels, against a long tail: in the loss logits + this * log share of a class (1)',
         '(0, inf)', levels='exclusive'),
  Option('loss.aggregate', None, 'HCAL: coarser heads learn from mean features, of these',
         choices=('samples', 'children'), levels='exclusive'),
  Option('loss.positives', 'perturbed', 'prototypes: the perturbed one of the class, or both',
         choices=('perturbed', 'both'), levels='exclusive'),
  Option('loss.terms', (), 'further losses, by their registered names', levels='exclusive',
         kind=options.NAMES),
  Option('loss.temperature', 0.1, 'of the term supervised_contrastive', '(0, inf)'),
  Option('loss.distill_temperature', 2.0, 'of the terms distill and joint_distill', '(0, inf)'),
  Option('loss.binary', 'bce', 'tag levels: binary cross-entropy, or focal loss',
         choices=('bce', 'focal'), levels='tags'),
  Option('loss.focal_gamma', 2.0, 'focal: examples count (1 - p)^focal_gamma', '[0, inf)',
         levels='tags'),
  Option('loss.pos_weight', None, 'bce: positives weigh negatives / positives, at most this',
         '[1, inf)', levels='tags'),
)

_BALANCE = (
  Option('balance.name', 'fixed', 'method; fixed is the sum, equal that without loss.weights'),
  Option('balance.at', 'weights',
         'gradients of the shared weights or, far cheaper, of the features',
         choices=('weights', 'features')),
  Option('balance.alpha', None, 'gradnorm (1.5), fairgrad (1)', '[0, inf)'),
  Option('balance.beta', None, 'gradvac (.5), db_mtl (.9)', '[0, 1]'),
  Option('balance.c', None, 'cagrad (.4)', '[0, 1)'),
  Option('balance.decay', None, 'dtp (.9), famo (.001)', '[0, 1)'),
  Option('balance.gamma', None, 'dtp (1), awa (.5)', '[0, inf)'),
  Option('balance.lr', None, 'uw, imtl_l, imtl, famo, gradnorm (.025)', '[0, inf)'),
  Option('balance.power', None, 'db_mtl (.5)', '[0, inf)'),
  Option('balance.temperature', None, 'dwa (2)', '(0, inf)'),
)

_OPTIM = (
  Option('optim.name', 'adamw', 'optimiser', choices=('adam', 'adamw', 'sgd')),
  Option('optim.lr', 1e-3, 'learning rate at its peak', '(0, inf)'),
  Option('optim.heads_lr', 1.0, 'factor on lr for the heads', '(0, inf)'),
  Option('optim.heads_growth', 1.0, 'further factor for each coarser level', '(0, inf)'),
  Option('optim.weight_decay', 1e-4, 'adamw: decoupled; adam, sgd: L2', '[0, inf)'),
  Option('optim.momentum', 0.9, 'momentum of sgd', '[0, 1)'),
  Option('optim.schedule', 'cosine', 'course of the learning rate',
         choices=('constant', 'cosine', 'onecycle', 'plateau')),
  *_durations('optim.warmup_', 'linear warm-up from 0', None),
  Option('optim.onecycle_rise', 0.2, 'share of the steps up to the peak', '[0, 1)'),
  Option('optim.onecycle_anneal', 'cosine', 'form of rise and fall', choices=('cosine', 'linear')),
  Option('optim.onecycle_momentum', None,
         "least and most of momentum or Adam's beta1, which cycles against lr (torch: .85,.95)",
         '[0, 1)', kind=options.PAIR),
  Option('optim.plateau_factor', 0.5, 'factor on lr at a plateau', '(0, 1)'),
  Option('optim.plateau_patience', 2, 'evaluations without a lower val loss', '[0, inf)'),
  Option('optim.clip', None, 'largest global norm of the gradient', '(0, inf)'),
  Option('optim.accumulate', 1, 'micro-batches a step; batch norm sees one', '[1, inf)'),
  Option('optim.ema', None, 'decay of averaged weights, which are evaluated', '(0, 1)'),
  Option('optim.layer_decay', None,
         'factor on lr for each block of the backbone, from the last to the first; usual: .75',
         '(0, 1)'),
  Option('optim.rules', RULES,
         '(regular expression of a path, factor on lr, on weight decay); 0 on lr: does not train',
         kind=options.RULES),
)

_TRAIN = (
  Option('train.batch_size', 32, 'examples a step, over all devices', '[1, inf)'),
  *_durations('train.', 'length of the training', 20.0),
  *_durations('train.eval_', 'evaluate on val this often; all None: at the end', 1.0),
  Option('train.log_steps', 20, 'steps between lines of the log', '[1, inf)'),
  Option('train.save_minutes', 10.0, 'save between evaluations this often', '(0, inf)',
         is_optional=True),
  Option('train.best', 'top1/finest',
         'val metric that chooses the checkpoint: loss, fpa, hvr, joint_fpa, top1/LEVEL; of tag '
         'levels map/LEVEL, micro_map/LEVEL, f1/LEVEL'),
  Option('train.early_stop', None, 'stop after so many evaluations without a better one',
         '[1, inf)', int),
  Option('train.shard', 'auto',
         'each device holds a part only, between steps, of the state of the optimiser and the '
         'averaged weights (optimizer), or of the parameters, too (all); auto: optimizer from 1 '
         'GiB on; None: each holds all', choices=('auto', 'optimizer', 'all'), is_optional=True),
  Option('train.class_devices', None,
         'so many devices share out the classes of each head: its weights, its logits and their '
         'loss; for a hundred thousand classes', '[1, inf)', int),
)

_LOG = (
  Option('log.tensorboard', True, 'write WORKDIR/tensorboard'),
  Option('log.wandb', False, 'Weights & Biases, project $WANDB_PROJECT or hierjax'),
)

_EVAL = (
  Option('eval.batch_size', 64, 'images a batch', '[1, inf)'),
  Option('eval.tta', 1, 'views: 1, 2 (+ flip), 3 (+ crop), 5 (+ 2 crops)', choices=(1, 2, 3, 5)),
  Option('eval.checkpoint', 'best', 'checkpoint to use', choices=('best', 'last')),
)

_DECIDE = (
  Option('decide.risk', None,
         'share of images that may get a wrong answer, so that it is of the deepest level that is '
         'safe; with decide.costs the mean cost of wrong answers', '(0, inf)', levels='exclusive'),
  Option('decide.confidence', None,
         'probability over calibration images that the risk holds; None: it holds on average',
         '(0, 1)', levels='exclusive'),
  Option('decide.by', 'one',
         'one: a threshold for all; level: the risk holds for the answers at each level; branch: '
         'within each class of the coarsest level that has enough calibration images',
         choices=('one', 'level', 'branch'), levels='exclusive'),
  Option('decide.costs', None,
         'answer at least expected cost: a CSV of from, to, cost (docs/decisions.md), or lca: the '
         'number of wrong levels', levels='exclusive'),
  Option('decide.price', 0.5,
         'decide.costs: cost of a level that is not answered, as a share of that of a wrong one',
         '[0, inf)', levels='exclusive'),
  Option('decide.sets', None,
         'predict lists at each level a set of classes; this share of the images may have their '
         'class outside of it', '(0, 1)', levels='exclusive'),
  Option('decide.set_kind', 'lac',
         'lac: the smallest sets on average; aps: their size follows how hard an image is',
         choices=('lac', 'aps'), levels='exclusive'),
  Option('decide.label_gains', False,
         'predict says how many wrong levels of an image a label of each level is expected to '
         'correct: label those with the most', levels='exclusive'),
  Option('decide.novelty', None,
         'detect images of classes that training never saw, such that this share of the images of '
         'known ones is called new, at most (.05)', '(0, 1)', levels='exclusive'),
  Option('decide.novelty_score', 'auto', 'score of novelty; auto: the best on left-out classes',
         choices=NOVELTY_SCORES, levels='exclusive'),
)

_PROBE = (
  Option('probe.run', None, 'a trained run whose backbone gives the features; None: the config'),
  Option('probe.head', 'linear',
         'linear: the best of the grid; without training, for few images: ncm, nearest class '
         'means, which is a run, too; knn, nearest neighbours, which is only judged',
         choices=('linear', 'knn', 'ncm')),
  Option('probe.neighbours', 10, 'knn: number of neighbours', '[1, 1000]'),
  Option('probe.store', None,
         'folder in which features are kept for all runs; None: one in the cache of the user'),
  Option('probe.views', 1, 'views of a training image: 1, 2 (+ flip), 3 (+ crop), 5 (+ 2 crops)',
         choices=(1, 2, 3, 5)),
  Option('probe.forms', ('lca', 'parallel', 'path_sum', 'marginal'),
         'heads and losses to compare with flat: parallel, path_sum, marginal; lca: flat, loss.lca',
         kind=options.NAMES),
  Option('probe.decays', tuple(0.001 * 2**k for k in range(8)),
         'weight decays, of standardised features', '(0, inf)', kind=options.NUMBERS),
  Option('probe.margins', (5.0,), 'values of loss.margin that each form is tried with, beside none',
         '(0, inf)', kind=options.NUMBERS),
  Option('probe.shares', (0.5, 0.9),
         'path_sum, marginal: weights of the finest level; the rest is for the coarser ones',
         '(0, 1)', kind=options.NUMBERS),
  Option('probe.lca', (15.0,), 'lca: values of loss.lca', '(0, inf)', kind=options.NUMBERS),
  Option('probe.folds', 3, 'parts of the training split that are held out in turn', '[2, 20]'),
  Option('probe.keep', 0.34, 'share of heads and losses that go on after the first part', '(0, 1]'),
)

# fmt: on
OPTIONS: dict[str, Option] = {
  option.name: option
  for group in (_RUN, _DATA, _MODEL, _LOSS, _BALANCE, _OPTIM, _TRAIN, _LOG, _EVAL, _DECIDE, _PROBE)
  for option in group
}
