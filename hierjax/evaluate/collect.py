"""The probabilities of a model for every example of a split, computed batch by batch."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hierjax.core import parallel
from hierjax.core.errors import UserError
from hierjax.data import pipeline, transforms
from hierjax.data.image_groups import Batch
from hierjax.data.sources import Examples, subset
from hierjax.decide.decisions import PATHS, Decisions, Rules, decide
from hierjax.evaluate.results import Results, reduce
from hierjax.models import compute
from hierjax.taxonomy import Mixed, Taxonomy

# Probabilities of finest classes, images times classes, that rules are fitted on at most.
MAX_FITTED = 20_000_000


class NotFiniteError(UserError):
  """A model computes NaN or infinity for an image."""


ACTIVATIONS = {'exclusive': jax.nn.softmax, 'tags': jax.nn.sigmoid}


def eval_step(
  variables: Mapping, images: jax.Array, model: nn.Module, taxonomy: Taxonomy | Mixed
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Compute probabilities and features of a batch.

  Args:
    variables: of the model.
    images: [B, H, W, 3], [B, views, H, W, 3], or features [B, d].
    model: the classifier; its features may be a tree of arrays.
    taxonomy: its levels.

  Returns:
    {level with a head: probabilities float32 [B, C], the mean over the views}, and the features of
    the first view, float32 [B, d].
  """
  views = 1
  if images.ndim == 5:
    views = images.shape[1]
    images = rearrange(images, 'b v h w c -> (b v) h w c')
  logits, features = model.apply(variables, images)
  probs = {}
  for block in taxonomy.blocks:
    for level in block.levels:
      if level in logits:
        p = ACTIVATIONS[block.kind](logits[level].astype(jnp.float32))
        probs[level] = rearrange(p, '(b v) c -> b v c', v=views).mean(1)

  def first_view(x):
    return rearrange(x.astype(jnp.float32), '(b v) ... -> b v ...', v=views)[:, 0]

  return constrain(probs, taxonomy), jax.tree.map(first_view, features)


def constrain(probs: Mapping[str, jax.Array], taxonomy: Taxonomy | Mixed) -> dict[str, jax.Array]:
  """Make no tag more probable than a class above it.

  The probabilities of tags are raised to those of the tags below them (C-HMCNN, arXiv:2010.10151,
  section 3.1) and then lowered to those of the exclusive classes above. A tag lies below all that
  the tags above it lie below, so the second does not undo the first. An exclusive level without a
  head lowers nothing.

  Args:
    probs: {level with a head: float [B, C]}; every tag level has one.
    taxonomy: the levels.
  """
  block = taxonomy.block('tags')
  if block is None:
    return dict(probs)
  p = jnp.concatenate([probs[level] for level in block.levels], -1)
  if len(block.levels) > 1:
    above, below = block.taxonomy.edges
    p = jax.ops.segment_max(p[:, below].T, above, p.shape[1], indices_are_sorted=True).T
  for level, ancestor in taxonomy.ancestors.items():
    if level in probs:
      p_ancestor = probs[level][:, np.maximum(ancestor, 0)]
      p = jnp.minimum(p, jnp.where(ancestor[None] < 0, 1.0, p_ancestor))
  return {**probs, **block.taxonomy.split(p)}


def stepper(model: nn.Module, mesh: Mesh, taxonomy: Taxonomy | Mixed) -> Callable:
  """Compile `eval_step` over the mesh: (variables, images) → (probabilities, features).

  Call it once a model: every call of the result reuses the compiled program.

  Args:
    model: the classifier.
    mesh: the devices.
    taxonomy: its levels.
  """
  return compiled(functools.partial(eval_step, model=model, taxonomy=taxonomy), mesh)


def compiled(step: Callable, mesh: Mesh) -> Callable:
  """Compile a step (variables, images) → tree of arrays [B, ...], each device with its rows.

  Args:
    step: the function.
    mesh: the devices.
  """
  split = parallel.split(mesh)
  if mesh.size > 1:
    specs = (jax.P(), split.spec)  # training may have shared the variables out
    step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=split.spec, check_vma=False)
  shardings = {'in_shardings': (None, split), 'out_shardings': split}
  return jax.jit(step, **shardings, compiler_options=compute.compiler_options())


@dataclasses.dataclass
class Outputs:
  """What a model computes for a split, in the order of its n readable examples.

  Attributes:
    probs: {level with a head: float64 [n, C]}; of reduced outputs, those of tags alone, which may
      be float32, as the network computes them.
    features: float32 [n, d], or None.
    labels: int32 [n, columns], rows of labels as the blocks of the taxonomy have them.
    index: int [n], numbers of the examples.
    broken: names of the unreadable files.
    results: of reduced outputs, what is kept of the exclusive levels; None before.
  """

  probs: dict[str, np.ndarray]
  features: np.ndarray | None
  labels: np.ndarray
  index: np.ndarray
  broken: list[str]
  results: Results | None = None

  @property
  def heads(self) -> set[str]:
    """The levels that have a head."""
    return {*self.probs, *(self.results.heads if self.results else ())}

  def select(self, rows: np.ndarray) -> 'Outputs':
    """Return the outputs of some examples, by a mask or numbers of rows."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    broken = fields.pop('broken')
    return Outputs(broken=broken, **jax.tree.map(lambda x: x[rows], fields))

  def reduce(
    self, taxonomy: Taxonomy | Mixed, rules: Rules, names: Sequence[str] = PATHS
  ) -> 'Outputs':
    """Decide on the images, and drop the probabilities of exclusive levels.

    Args:
      taxonomy, rules, names: see `results.reduce`.

    Returns:
      The reduced outputs; themselves where they are, or where all levels are tags.
    """
    block = taxonomy.block('exclusive')
    if self.results or not block:
      return self
    results = reduce(self.probs, self.labels, taxonomy, rules, names)
    probs = {level: p for level, p in self.probs.items() if level not in block.levels}
    return dataclasses.replace(self, probs=probs, results=results)

  def decide(self, taxonomy: Taxonomy | Mixed, rules: Rules) -> Decisions:
    """Return the decisions on the images, of reduced outputs those that were made then.

    Args:
      taxonomy: the levels.
      rules: of the decisions; of reduced outputs, those of tags alone are read.
    """
    results = self.reduce(taxonomy, rules).results
    exclusive = results.decisions if results else None
    return decide(self.probs, taxonomy, rules, exclusive=exclusive)


def collect(
  step: Callable,
  variables: Mapping,
  examples: Examples,
  c: ConfigDict,
  mesh: Mesh,
  views: int = 1,
  with_features: bool = False,
  progress: Callable[[int, int], None] | None = None,
  may_be_empty: bool = False,
  reduction: Callable[[Outputs], Outputs] | None = None,
) -> Outputs:
  """Run a compiled step over all examples; each is either counted or named as unreadable.

  Args:
    step: as `stepper` returns it.
    variables: of the model.
    examples: the split.
    c: the configuration, of which `data` and `eval` are read.
    mesh: the devices.
    views: of each image (test-time augmentation).
    with_features: whether to keep the features.
    progress: called with the numbers of images that are done and that there are.
    may_be_empty: whether no image need be readable.
    reduction: applied to the outputs of each batch, such as `Outputs.reduce`, whose probabilities
      of all classes are then held no longer than that; None for all of them.

  Raises:
    UserError: no image can be read, or one cannot and data.strict is set.
    NotFiniteError: an output is NaN or infinite.
  """
  n = len(examples.labels)
  batch_size = rows(c.eval.batch_size, views, mesh)
  parts = []
  with contextlib.closing(_batches(examples, c, views, batch_size)) as batches:
    for i, batch in enumerate(batches):
      if c.data.strict and (batch['broken'] >= 0).any():
        name = examples.files[int(batch['broken'].max())]
        raise UserError(
          f'{name}: unreadable image in split {examples.name!r} (data.strict); without data.strict '
          'it is skipped and counted'
        )
      computed = step(variables, parallel.put_images(batch['image'], mesh))
      parts.append(parallel.gather(_part(batch, computed, with_features, reduction)))
      if progress:
        progress(min((i + 1) * batch_size, n), n)
  outputs, is_finite = _assemble(parts, examples, np.float32 if reduction else np.float64)
  if not len(outputs.index) and not may_be_empty:
    raise UserError(
      f'split {examples.name!r}: none of its {n} images can be read; the first is '
      f'{examples.files[0]}'
    )
  _check_finite(is_finite, outputs.index, examples.name, examples.files)
  return outputs


def _part(batch, computed, with_features, reduction):
  """Keep of this process's part of a batch a tree of arrays with a row an image."""
  probs, features = parallel.local(computed)
  part = {key: batch[key] for key in ('index', 'mask', 'broken')}
  part['features'] = features if with_features else None
  part['finite'] = _finite_rows(probs, part['features'])
  if reduction:
    # what is not finite is refused in the end, by all processes together
    if not all(rows.all() for rows in part['finite'].values()):
      probs = {level: np.nan_to_num(p) for level, p in probs.items()}
    outputs = reduction(Outputs(probs, None, batch['labels'], batch['index'], []))
    probs = outputs.probs
    part['results'] = outputs.results
  return part | {'probs': probs}


def to_fit(examples: Examples, taxonomy: Taxonomy | Mixed) -> Examples:
  """Choose the examples that rules are fitted on, whose probabilities are all held.

  Args:
    examples: a split.
    taxonomy: the levels.

  Returns:
    The split itself, or where it has more than MAX_FITTED probabilities of finest classes, an even
    subset of the examples that have a finest class.
  """
  block = taxonomy.block('exclusive')
  leaves = len(block.taxonomy.paths) if block else 0
  size = len(examples.labels) * leaves
  if size <= MAX_FITTED:
    return examples
  labelled = np.flatnonzero(examples.labels[:, -1] >= 0)
  rows = labelled if len(labelled) else np.arange(len(examples.labels))
  step = -(-size // MAX_FITTED)  # rounded up
  return subset(examples, rows[::step])


def rows(batch_size: int, views: int, mesh: Mesh) -> int:
  """Return how many images a step takes, with all of their views, so that each device has some.

  Args:
    batch_size: views a step.
    views: of each image.
    mesh: the devices.
  """
  return max(mesh.size, batch_size // views // mesh.size * mesh.size)


def stream(
  step: Callable,
  variables: Mapping,
  batches: Iterator[Batch],
  mesh: Mesh,
  width: int,
  with_features: bool = False,
) -> Iterator[tuple[Batch, Outputs]]:
  """Run a compiled step over batches as they come; the host works while the next is computed.

  Args:
    step: as `stepper` returns it.
    variables: of the model.
    batches: of images without labels.
    mesh: the devices.
    width: columns of labels, which are -1.
    with_features: whether to keep the features.

  Yields:
    A batch, and the outputs for its readable images, numbered within it.

  Raises:
    NotFiniteError: an output is NaN or infinite.
  """
  pending = None
  with contextlib.closing(batches):
    for batch in batches:
      # the device begins with this batch before the host waits for the one before
      computed = step(variables, parallel.put_images(batch.pixels, mesh))
      if pending:
        yield _readable(*pending, width, with_features)
      pending = batch, computed
    if pending:
      yield _readable(*pending, width, with_features)


def _readable(batch, computed, width, with_features):
  """Return the batch, and the outputs for its readable images."""
  index = np.flatnonzero([not error for error in batch.errors])
  probs, features = jax.device_get(computed)
  outputs = Outputs(
    probs={level: p[index].astype(np.float64) for level, p in probs.items()},
    features=features[index] if with_features else None,
    labels=np.full((len(index), width), -1, np.int32),
    index=index,
    broken=[name for name, error in zip(batch.names, batch.errors) if error],
  )
  _check_finite(_finite_rows(outputs.probs, outputs.features), index, 'predict', batch.names)
  return batch, outputs


def _finite_rows(probs, features):
  """Return {level or 'features': whether all values of an image are finite, bool [n]}."""
  values = probs if features is None else {**probs, 'features': features}
  return {name: np.isfinite(x).all(1) for name, x in values.items()}


def _check_finite(is_finite, index, split: str, names: Sequence[str]) -> None:
  """Refuse outputs from which a class would be read that means nothing."""
  for name, rows in is_finite.items():
    bad = np.flatnonzero(~rows)
    if len(bad):
      raise NotFiniteError(
        f'split {split!r}: the model computes NaN or infinity for {len(bad)} of '
        f'{len(rows)} images, the first is {names[index[bad[0]]]} '
        f'({name}); its parameters or activations have overflowed: take another checkpoint '
        '(--config.eval.checkpoint=best or last) or train with a lower --config.optim.lr, '
        '--config.optim.clip or model.dtype float32'
      )


def _batches(examples, c, views, batch_size) -> Iterator[Mapping[str, np.ndarray]]:
  return pipeline.eval_batches(
    examples,
    batch_size=batch_size,
    size=c.data.size,
    resize=transforms.Resize.from_options(c.data),
    views=views,
    threads=c.data.threads,
    workers=c.data.workers,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _assemble(parts, examples, dtype) -> tuple[Outputs, dict[str, np.ndarray]]:
  """Put the batches in the order of the examples, without padding; also which rows are finite."""
  part = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
  broken = part.pop('broken')
  broken = sorted({*broken[broken >= 0].tolist()})
  real = np.flatnonzero(part.pop('mask') > 0)
  order = real[np.argsort(part['index'][real], kind='stable')]
  part = jax.tree.map(lambda x: x[order], part)
  index = part['index']
  is_each_once = len(np.unique(index)) == len(index)
  assert is_each_once and len(index) + len(broken) == len(examples.labels), (
    f'split {examples.name}: {len(index)} of {len(examples.labels)} examples counted'
  )
  labels = examples.labels[index]
  if examples.multi is not None:
    labels = np.concatenate([labels, examples.multi[index]], 1)
  probs = {level: p.astype(dtype, copy=False) for level, p in part['probs'].items()}
  names = sorted(examples.files[i] for i in broken)
  outputs = Outputs(probs, part['features'], labels, index, names, part.get('results'))
  return outputs, part['finite']
