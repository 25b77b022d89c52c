"""A config made into what training needs: data, model, losses, schedule, phases, first state."""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hierjax import losses
from hierjax.core import config, metrics, parallel, plugins
from hierjax.core.errors import UserError
from hierjax.data import pipeline, sources, split_record, splits, transforms
from hierjax.data.levels import restrict
from hierjax.evaluate import summary
from hierjax.losses import balancing
from hierjax.models import adapting, classifier, initializers, registry, weights
from hierjax.models.heads import HEADS
from hierjax.taxonomy import Mixed, Taxonomy
from hierjax.train import mixing, optim
from hierjax.train.objective import ClassWeights, Task
from hierjax.train.state import TrainState, shardings


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """What a config and its data determine. Nothing here changes during training.

  Attributes:
    c: the config, with the levels named and the normalisation of pretrained weights filled in.
    mesh: the devices.
    taxonomy: of the levels that predictions can be judged at.
    levels: those with a head.
    train: the training split.
    val: the validation split.
    data: all splits, and how they differ from those of an earlier run.
    total_steps: the length of the training.
    eval_steps: the steps between evaluations.
    best: the val metric that chooses the checkpoint.
    variables: the model's initial variables, numpy.
    phases: the curriculum; its phases cover all steps.
    plateau: the reduce-on-plateau schedule, None without it.
    task: the constants of the step.
    notes: what the user should know of the data and the pretrained weights.
  """

  c: ConfigDict
  mesh: Mesh
  taxonomy: Taxonomy | Mixed
  levels: tuple[str, ...]
  train: sources.Examples
  val: sources.Examples
  data: sources.Dataset
  total_steps: int
  eval_steps: int
  best: str
  variables: Mapping
  phases: Sequence[optim.Phase]
  plateau: optax.GradientTransformationExtraArgs | None
  task: Task
  notes: tuple[str, ...]

  @property
  def num_params(self) -> int:
    """The number of parameters of the model."""
    return sum(x.size for x in jax.tree.leaves(self.variables['params']))

  @property
  def steps_per_epoch(self) -> float:
    """The number of steps, whole or not, that see as many images as the training split has."""
    return len(self.train.labels) / self.c.train.batch_size


def build(
  c: ConfigDict, mesh: Mesh | None = None, record: split_record.Record | None = None
) -> Setup:
  """Load the data of a config and build its model, losses and schedule.

  Args:
    c: the config; it is copied.
    mesh: the devices, None for all.
    record: of a run whose split is taken over.

  Returns:
    The setup. Everything that can be wrong with an option has been checked.

  Raises:
    UserError: an option does not fit the others or the data.
  """
  registries = {'model.backbone': registry.BACKBONES, 'model.heads': HEADS}
  config.validate(c, registries | {'balance.name': balancing.BALANCERS})
  c, mesh = copy.deepcopy(c), mesh or parallel.mesh(c.train.class_devices)
  parallel.check_batch(c.train.batch_size, mesh, '--config.train.batch_size', c.optim.accumulate)
  dataset, levels = restrict(sources.load(c.data, record=record), c.model)
  c.model.levels, c.plugins = levels, plugins.absolute(c.plugins)
  taxonomy = dataset.taxonomy
  if not taxonomy.table('exclusive'):
    config.check_multi(c, levels)
  train, val = (splits.examples_of(dataset, c.data, option) for option in ('train', 'val'))
  n, batch_size = len(train.labels), c.train.batch_size
  total_steps = config.steps(c.train, '', n, batch_size, '--config.train')
  if total_steps is None:
    raise UserError('--config.train: one of steps, epochs, examples must be given')
  eval_steps = config.steps(c.train, 'eval_', n, batch_size, '--config.train.eval_*')
  best = summary.best_metric(c.train.best, taxonomy, levels)
  _check_labels(train, val, taxonomy, levels, best)
  variables, notes = _variables(c, taxonomy, levels)
  phases = optim.phases(c, levels, n, total_steps, optim.groups(variables['params']))
  ema = c.optim.ema
  if ema and 1 / (1 - ema) > total_steps:
    notes.append(f'optim.ema={ema}: with {total_steps} steps this is nearly the mean of all steps')
  return Setup(
    c=c,
    mesh=mesh,
    taxonomy=taxonomy,
    levels=levels,
    train=train,
    val=val,
    data=dataset,
    total_steps=total_steps,
    eval_steps=eval_steps or total_steps,
    best=best,
    variables=variables,
    phases=phases,
    plateau=optim.plateau(c),
    task=_task(c, taxonomy, levels, phases, variables['params'], total_steps, train),
    notes=(*dataset.notes, *notes),
  )


def _check_labels(
  train: sources.Examples,
  val: sources.Examples,
  taxonomy: Taxonomy | Mixed,
  levels: Sequence[str],
  best: str,
) -> None:
  """Refuse splits without a single label, and a taxonomy with one class."""
  table, tags = taxonomy.table('exclusive'), taxonomy.table('tags')
  metric, _, level = best.partition('/')
  judged = [level or (table or tags).levels[-1]]
  if metric == 'loss':
    judged = levels
  elif metric == 'hvr':
    judged = [level for level in levels if level not in taxonomy.multi]
  for examples, names in ((train, levels), (val, judged)):
    if not any(_is_labelled(examples, taxonomy, level) for level in names):
      raise UserError(
        f'split {examples.name!r}: none of its {len(examples.labels)} images has a label of '
        f'{" or ".join(names)}'
      )
  if not tags and table.num_classes(table.levels[-1]) < 2:
    raise UserError(
      f'the taxonomy has one class of {table.levels[-1]}, {table.names[-1][0]!r}: '
      'nothing to tell apart'
    )


def _is_labelled(examples: sources.Examples, taxonomy: Taxonomy | Mixed, level: str) -> bool:
  """Whether any example has a label at a level."""
  if level in taxonomy.multi:
    labels = examples.multi[:, taxonomy.table('tags').columns[level]]
  else:
    labels = examples.labels[:, taxonomy.table('exclusive').index(level)]
  return bool((labels >= 0).any())


def _variables(
  c: ConfigDict, taxonomy: Taxonomy | Mixed, levels: tuple[str, ...]
) -> tuple[dict, list[str]]:
  """The initial variables as numpy, seeded or from model.pretrained, and notes on the latter."""
  m, size = c.model, c.data.size
  model = classifier.build(c, taxonomy, levels)
  variables = initializers.init(model, c.seed, jnp.zeros((1, size, size, 3)))
  paths = traverse_util.flatten_dict(variables['params'])
  if m.lora_rank and not any(path[-1] in adapting.UPDATE for path in paths):
    raise UserError(
      f'--config.model.lora_rank: {m.backbone} has no dense layers; vision transformers, Swin, '
      'MaxViT and ConvNeXt have'
    )
  if not m.pretrained:
    return variables, []
  variables, source = weights.load(m.backbone, variables, m.pretrained, stem=m.stem)
  # config.json keeps the normalisation, so that prediction has the one of training
  if m.mean is None:
    m.mean, m.std = source['mean'], source['std']
  if m.pretrained != 'package':
    _prepare_alike(c.data, source)
  fresh = ''
  if source['fresh']:
    fresh = f'; not from there, but drawn: {", ".join(source["fresh"])}'
  note = f'{source["tensors"]} tensors of the backbone from {source["file"]}{fresh}'
  if source['size'] not in (None, size):
    note += f'; they were trained with images of {source["size"]} pixels, data.size is {size}'
  return variables, [note]


def _prepare_alike(data: ConfigDict, source: Mapping) -> None:
  """Evaluate images as the weights' config.json says, where the options do not say how."""
  crop, how = source['crop'], source['interpolation']
  if data.crop_share is None and data.resize != 'pad' and isinstance(crop, float) and 0 < crop <= 1:
    data.crop_share = crop
  if data.interpolation is None and how in transforms.FILTERS:
    data.interpolation = how


def _class_weights(
  c: ConfigDict, table: Taxonomy | None, labels: np.ndarray
) -> ClassWeights | None:
  """The weights of the examples by their labels at the exclusive levels, for data.balance=loss."""
  if table is None:
    return None
  # looked up whatever the balance, as a wrong level is a mistake in any case
  column = _balance_column(c, table)
  if c.data.balance != 'loss':
    return None
  classes = table.num_classes(table.levels[column])
  return ClassWeights(column, pipeline.class_weights(labels[:, column], classes))


def _balance_column(c: ConfigDict, table: Taxonomy) -> int:
  """The column of data.balance_level in the labels."""
  option = '--config.data.balance_level'
  return table.index(config.resolve_levels(c.data.balance_level, table.levels, option)[0])


def _task(
  c: ConfigDict,
  taxonomy: Taxonomy | Mixed,
  levels: tuple[str, ...],
  phases: Sequence[optim.Phase],
  params: Mapping,
  total_steps: int,
  train: sources.Examples,
) -> Task:
  """The constants of the step."""
  examples = len(train.labels)
  rows = [train.labels] if train.multi is None else [train.labels, train.multi]
  built = losses.build.build(c, taxonomy, levels, np.concatenate(rows, 1))
  for term in built.terms:
    if term in levels:
      raise UserError(
        f'--config.loss.terms={term}: the taxonomy has a level of that name; call it otherwise'
      )
  loss_weights = parse_weights(c.loss.weights, levels, list(built.terms))
  epoch_steps = math.ceil(examples / c.train.batch_size)
  balancer = balancing.build(c.balance, bool(c.loss.weights), epoch_steps)
  for phase in phases:
    if not any(loss_weights[level] for level in phase.levels):
      raise UserError(
        f'--config.loss.weights={dict(c.loss.weights)}: nothing would train in {phase.describe()}: '
        'all their weights are 0'
      )
  return Task(
    model=classifier.build(c, taxonomy, levels),
    losses=built,
    weights=loss_weights,
    class_weights=_class_weights(c, taxonomy.table('exclusive'), train.labels),
    balancer=balancer,
    balance_at=c.balance.at,
    labels=optim.labels(params, optim.rules(c), c.optim.layer_decay),
    schedule=optim.schedule(c, total_steps, examples),
    momentum=optim.momentum_cycle(c, total_steps),
    clip=c.optim.clip,
    ema=c.optim.ema,
    micro_batches=c.optim.accumulate,
    seed=c.seed,
    mixing=mixing.build(c),
  )


def parse_weights(
  pairs: Sequence[tuple[str, float]], levels: Sequence[str], terms: Sequence[str] = ()
) -> dict[str, float]:
  """Resolve loss.weights into a weight of each level and term.

  Args:
    pairs: (level, word for levels, or term; weight), the option.
    levels: the levels with a head.
    terms: the further losses.

  Returns:
    {level or term: weight}, 1 for those that are not named.

  Raises:
    UserError: a name is none of these.
  """
  loss_weights, option = dict.fromkeys([*levels, *terms], 1.0), '--config.loss.weights'
  for name, number in pairs:
    names = (name,) if name in terms else config.resolve_levels(name, levels, option)
    if not names:
      raise UserError(f'{option}: {name!r} names no level that has a head')
    loss_weights.update(dict.fromkeys(names, number))
  return loss_weights


def initial_state(setup: Setup) -> TrainState:
  """Build the state before the first step, on the mesh as `train.shard` says.

  Args:
    setup: the variables, the optimiser, and what else has a state.

  Returns:
    The state at step 0.
  """
  c, task, params = setup.c, setup.task, setup.variables['params']
  batch_stats = setup.variables.get('batch_stats', {})
  flat = traverse_util.flatten_dict(params)
  trained = optim.trained(task.labels, ())
  shared = {path: x for path, x in flat.items() if optim.shared(path) and path in trained}
  state = TrainState(
    step=np.int32(0),
    params=params,
    batch_stats=batch_stats,
    opt_state=optim.transformation(c, task.labels).init(params),
    ema={'params': params, 'batch_stats': batch_stats} if c.optim.ema else {},
    plateau=setup.plateau.init(params) if setup.plateau else {},
    balancer=task.balancer.init(len(task.names), shared) if task.balancer else {},
    monitor={
      'best': np.float32(metrics.worst(setup.best)),
      'bad': np.int32(0),
      'evaluated': np.int32(0),
    },
  )
  return parallel.put(state, shardings(state, setup.mesh, c.train.shard))


def batches(setup: Setup, examples: sources.Examples, start: int, end: int):
  """Read this process's training batches of the steps [start, end).

  Args:
    setup: the options of the data.
    examples: the training split, its images or their cached features.
    start: the first step.
    end: the step after the last.

  Returns:
    An iterator with `close()`, of what `data.pipeline` calls a batch.
  """
  c, balance = setup.c, None
  if c.data.balance == 'sample':
    balance = _balance_column(c, setup.taxonomy.table('exclusive'))
  return pipeline.train_batches(
    examples,
    batch_size=c.train.batch_size,
    seed=c.seed,
    steps=end,
    start_step=start,
    size=c.data.size,
    resize=transforms.Resize.from_options(c.data),
    augment=c.data.augment,
    balance=balance,
    workers=c.data.workers,
    threads=c.data.threads,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    strict=c.data.strict,
  )
