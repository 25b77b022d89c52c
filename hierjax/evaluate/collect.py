"""The probabilities of a model for every example of a split, computed batch by batch."""

import contextlib
import dataclasses
import itertools
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
from hierjax.data.sources import Examples
from hierjax.taxonomy import Mixed, Taxonomy


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
    model: the classifier.
    taxonomy: its levels.

  Returns:
    {level with a head: probabilities float32 [B, C], the mean over the views}, and the features of
    the first view, float32 [B, d].
  """
  views = images.shape[1] if images.ndim == 5 else 1
  x = rearrange(images, 'b v h w c -> (b v) h w c') if images.ndim == 5 else images
  logits, features = model.apply(variables, x)
  probs = {}
  for block in taxonomy.blocks:
    for level in block.levels:
      if level in logits:
        p = ACTIVATIONS[block.kind](logits[level].astype(jnp.float32))
        probs[level] = rearrange(p, '(b v) c -> b v c', v=views).mean(1)
  features = rearrange(features.astype(jnp.float32), '(b v) d -> b v d', v=views)[:, 0]
  return constrain(probs, taxonomy), features


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
    taxonomy: the levels.
  """
  replicated, split = parallel.replicated(mesh), parallel.split(mesh)

  def step(variables, images):
    # training may have shared them out
    variables = jax.lax.with_sharding_constraint(variables, replicated)
    return eval_step(variables, images, model, taxonomy)

  return jax.jit(step, in_shardings=(None, split), out_shardings=(split, split))


@dataclasses.dataclass
class Outputs:
  """What a model computes for a split, in the order of its n readable examples.

  Attributes:
    probs: {level with a head: float64 [n, C]}.
    features: float32 [n, d], or None.
    labels: int32 [n, columns], rows of labels as the blocks of the taxonomy have them.
    index: int [n], numbers of the examples.
    broken: names of the unreadable files.
  """

  probs: dict[str, np.ndarray]
  features: np.ndarray | None
  labels: np.ndarray
  index: np.ndarray
  broken: list[str]


def collect(
  step: Callable,
  variables: Mapping,
  examples: Examples,
  c: ConfigDict,
  mesh: Mesh,
  views: int = 1,
  with_features: bool = False,
  batch_size: int | None = None,
  progress: Callable[[int, int], None] | None = None,
  may_be_empty: bool = False,
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
    batch_size: images a step, all views together; None for eval.batch_size.
    progress: called with the numbers of images that are done and that there are.
    may_be_empty: whether no image need be readable.

  Raises:
    UserError: no image can be read, or one cannot and data.strict is set.
    NotFiniteError: an output is NaN or infinite.
  """
  n = len(examples.labels)
  batch_size = rows(batch_size or c.eval.batch_size, views, mesh)
  parts = []
  with contextlib.closing(_batches(examples, c, views, batch_size)) as batches:
    for i, batch in enumerate(batches):
      if c.data.strict and (batch['broken'] >= 0).any():
        name = examples.files[int(batch['broken'].max())]
        raise UserError(
          f'{name}: unreadable image in split {examples.name!r} (data.strict); without data.strict '
          'it is skipped and counted'
        )
      probs, features = step(variables, parallel.put_batch({'x': batch['image']}, mesh)['x'])
      if not with_features:
        features = None
      places = {key: batch[key] for key in ('index', 'mask', 'broken')}
      parts.append(parallel.gather((probs, features, parallel.put_batch(places, mesh))))
      if progress:
        progress(min((i + 1) * batch_size, n), n)
  outputs = _assemble(parts, examples)
  if not len(outputs.index) and not may_be_empty:
    raise UserError(
      f'split {examples.name!r}: none of its {n} images can be read; the first is '
      f'{examples.files[0]}'
    )
  _check_finite(outputs, examples.name, examples.files)
  return outputs


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
  pending = []
  with contextlib.closing(batches):
    for batch in itertools.chain(batches, [None]):
      if batch:
        x = parallel.put_batch({'x': batch.pixels}, mesh)['x']
        pending.append((batch, step(variables, x)))
      if len(pending) > 1 or (pending and not batch):
        yield _readable(*pending.pop(0), width, with_features)


def _readable(batch, computed, width, with_features):
  """The batch, and the outputs for its readable images."""
  index = np.flatnonzero([not error for error in batch.errors])
  probs, features = jax.device_get(computed)
  outputs = Outputs(
    {level: p[index].astype(np.float64) for level, p in probs.items()},
    features[index] if with_features else None,
    np.full((len(index), width), -1, np.int32),
    index,
    [name for name, error in zip(batch.names, batch.errors) if error],
  )
  _check_finite(outputs, 'predict', batch.names)
  return batch, outputs


def _check_finite(outputs: Outputs, split: str, names: Sequence[str]) -> None:
  """Refuse outputs from which a class would be read that means nothing."""
  features = {} if outputs.features is None else {'features': outputs.features}
  for name, values in {**outputs.probs, **features}.items():
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
      raise NotFiniteError(
        f'split {split!r}: the model computes NaN or infinity for {len(bad)} of '
        f'{len(values)} images, the first is {names[outputs.index[bad[0]]]} '
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


def _assemble(parts, examples) -> Outputs:
  """Put the batches [(probs, features, places)] in the order of the examples, without padding."""
  places = {key: np.concatenate([p[2][key] for p in parts]) for key in ('index', 'mask', 'broken')}
  is_real = places['mask'] > 0
  index = places['index'][is_real]
  order = np.argsort(index, kind='stable')
  index = index[order]
  broken = sorted({*places['broken'][places['broken'] >= 0].tolist()})
  n = len(examples.labels)
  assert len(np.unique(index)) == len(index) and len(index) + len(broken) == n, (
    f'split {examples.name}: {len(index)} of {n} examples counted'
  )

  def gather(arrays):
    return np.concatenate(arrays)[is_real][order]

  has_features = parts[0][1] is not None
  labels = examples.labels[index]
  if examples.multi is not None:
    labels = np.concatenate([labels, examples.multi[index]], 1)
  return Outputs(
    {
      level: gather([probs[level] for probs, _, _ in parts]).astype(np.float64)
      for level in parts[0][0]
    },
    gather([features for _, features, _ in parts]) if has_features else None,
    labels,
    index,
    sorted(examples.files[b] for b in broken),
  )
