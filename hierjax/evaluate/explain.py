"""Where a head looks and how the features lie: Grad-CAM, t-SNE, and explain_SPLIT.npz.

`write` leaves explain_SPLIT.npz next to predictions_SPLIT.npz, and the report draws both. Its size
is bounded whatever the split's: a number of images for each pattern of right and wrong heads and
for each of the worst confusions (`evaluate.example_images`), and a number of points.
"""

import functools
import pathlib
from collections.abc import Mapping

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from ml_collections import ConfigDict

from hierjax.core import archives, files
from hierjax.data import decoding, pipeline, sources, transforms
from hierjax.data.dataset import Examples
from hierjax.evaluate import example_images, heat_maps
from hierjax.taxonomy import Taxonomy

# Images whose features are placed by t-SNE.
POINTS = 2000
# The longer side of a picture in pixels, and its JPEG quality.
SIDE, QUALITY = 256, 82
# Seed of the t-SNE.
SEED = 0


def apply_with_maps(
  model: nn.Module, variables: Mapping, images: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array | None]:
  """Apply a classifier, and take the last feature maps of its backbone as well.

  Args:
    model: the classifier.
    variables: of it.
    images: uint8 [B, H, W, 3].

  Returns:
    Logits {level: [B, C]}, features [B, d], and maps [B, h, w, c], None of a backbone without.
  """
  (logits, features), state = model.apply(
    variables,
    images,
    capture_intermediates=lambda module, method: (module.name, method) == ('backbone', '__call__'),
    mutable=['intermediates'],
  )
  output = state['intermediates']['backbone']['__call__'][0]
  return logits, features, output[1].get('features') if isinstance(output, tuple) else None


def grad_cam(
  variables: Mapping, images: jax.Array, classes: Mapping[str, jax.Array], model: nn.Module
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Compute the features and, for each head, the Grad-CAM of one class.

  The heat map is relu(sum_c a_c A_c) with a_c the mean over places of d logit / d A_c, and A the
  backbone's last feature maps (Selvaraju et al., ICCV 2017, arXiv:1610.02391, equations 1 and 2).
  All heads share the forward pass, and the backward pass reaches no further than A.

  Args:
    variables: of the classifier.
    images: uint8 [B, H, W, 3].
    classes: {level: int32 [B]}, the class to explain.
    model: the classifier; its backbone perturbs 'features'. Without such maps heat maps are 0.

  Returns:
    Features float32 [B, d], and {level: float32 [B, h, w]}, at least 0.
  """

  def logits_of_classes(shift):
    perturbed = {**variables, 'perturbations': {'backbone': {'features': shift}}}
    logits, features, maps = apply_with_maps(model, perturbed, images)
    sums = {}
    for level, c in classes.items():
      is_class = nn.one_hot(c, logits[level].shape[1], dtype=bool)
      sums[level] = jnp.where(is_class, logits[level], 0).sum()
    return sums, (features, maps)

  shape = jax.eval_shape(lambda: apply_with_maps(model, variables, images))[2]
  if shape is None:
    # A user's backbone without maps.
    features = model.apply(variables, images)[1].astype(jnp.float32)
    return features, {level: jnp.zeros((len(images), 1, 1)) for level in classes}
  zeros = jnp.zeros(shape.shape, shape.dtype)
  sums, backward, (features, maps) = jax.vjp(logits_of_classes, zeros, has_aux=True)
  maps = maps.astype(jnp.float32)
  cams = {}
  for level in classes:
    one_hot = {l: jnp.full_like(value, l == level) for l, value in sums.items()}
    (slope,) = backward(one_hot)
    weights = slope.astype(jnp.float32).mean((1, 2), keepdims=True)
    cams[level] = nn.relu((weights * maps).sum(-1))
  return features.astype(jnp.float32), cams


def perplexity(n: int) -> float:
  """Return the perplexity of the t-SNE of n points."""
  return min(30, (n - 1) / 3)


def tsne(features: np.ndarray) -> np.ndarray:
  """Place features in the plane by t-SNE of their 50 first principal components.

  Args:
    features: float [n, d].

  Returns:
    float32 [n, 2]; zeros where there are too few points to place.
  """
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  n = len(features)
  if n < 8 or not features.std(0).any():
    return np.zeros((n, 2), np.float32)
  # Its many short parallel loops mostly wait for each other where other programs run: 33 s of CPU
  # with two threads, 4 s with one.
  with threadpool_limits(1):
    pca = PCA(min(50, *features.shape), random_state=SEED)
    components = pca.fit_transform(features.astype(np.float64))
    embed = TSNE(perplexity=perplexity(n), init='pca', random_state=SEED)
    return embed.fit_transform(components).astype(np.float32)


def write(
  workdir: pathlib.Path,
  split: str,
  predictions: Mapping[str, np.ndarray],
  taxonomy: Taxonomy,
  model: nn.Module,
  variables: Mapping,
  examples: Examples,
  c: ConfigDict,
) -> None:
  """Write WORKDIR/explain_SPLIT.npz.

  Its arrays: `rows` int [m] of the images that are shown, `jpeg` their pictures one after the other
  and `ends` int [m] where each ends, `maps` uint8 [m, K, h, w] the Grad-CAM of each head's first
  choice with its maximum at 255, `points` int [t] and `xy` float [t, 2] of the t-SNE, and
  `predictions`, the digest of predictions_SPLIT.npz.

  Args:
    workdir: the run's folder, with predictions_SPLIT.npz.
    split: name of the split.
    predictions: arrays of predictions_SPLIT.npz.
    taxonomy: of the exclusive levels.
    model: the classifier.
    variables: its variables.
    examples: those of the predictions, in their order.
    c: the configuration.
  """
  n = len(predictions['labels'])
  shown_rows = example_images.shown_rows(predictions, taxonomy)
  points = np.sort(np.random.default_rng(0).permutation(n)[:POINTS])
  resize = transforms.Resize.from_options(c.data)
  rows = np.union1d(shown_rows, points)
  batches = pipeline.eval_batches(
    sources.subset(examples, rows),
    batch_size=c.eval.batch_size,
    size=c.data.size,
    resize=resize,
    threads=c.data.threads,
  )
  rows, features, maps = _explain(rows, batches, model, variables, predictions, taxonomy)
  pictures = {}
  for row in np.intersect1d(shown_rows, rows).tolist():
    image = picture(examples, row, resize)
    if image is not None:
      pictures[row] = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=QUALITY)
  maps = maps[np.searchsorted(rows, list(pictures))] if pictures else maps[:0]
  is_point = np.isin(rows, points)
  arrays = {
    'predictions': example_images.digest(workdir, split),
    'rows': np.array(list(pictures), np.int64),
    'jpeg': np.frombuffer(b''.join(pictures.values()), np.uint8),
    'ends': np.cumsum([len(jpeg) for jpeg in pictures.values()]),
    'maps': heat_maps.as_bytes(maps),
    'points': rows[is_point],
    'xy': tsne(features[is_point]),
  }
  archives.write(files.of_split(workdir, 'explain', split, 'npz'), arrays)


def _explain(rows, batches, model, variables, predictions, taxonomy):
  """Return the rows that could be read, their features [n, d] and heat maps [n, K, h, w].

  A batch has `image`, `index` (int [B], positions in the rows, -1 for padding) and `mask`.
  """
  step = jax.jit(functools.partial(grad_cam, model=model))
  levels = {k: taxonomy.levels[k] for k in example_images.head_columns(predictions)}
  parts = []
  for batch in batches:
    batch_rows, is_image = rows[batch['index']], batch['mask'] > 0
    classes = {level: predictions[f'top_{k}'][batch_rows, 0] for k, level in levels.items()}
    features, cams = jax.device_get(step(variables, batch['image'], classes))
    maps = np.stack([cams[level] for level in levels.values()], 1)
    parts.append((batch_rows[is_image], features[is_image], maps[is_image]))
  return tuple(np.concatenate(arrays) for arrays in zip(*parts))


def picture(
  examples: Examples, row: int, resize: str | transforms.Resize, side: int = SIDE
) -> np.ndarray | None:
  """Decode the image of a row as the report shows it.

  Args:
    examples: the split.
    row: of the image.
    resize: `data.resize`.
    side: the longer side, at most.

  Returns:
    uint8 [h, w, 3]; None where it cannot be read.
  """
  try:
    image = decoding.decode(examples.reader(int(row)))
  except (decoding.BrokenImage, OSError):
    return None
  if transforms.as_resize(resize) != transforms.Resize('squash'):
    return transforms.eval_transform(image, side, resize)
  # Stretched to a square, the model sees the whole image: it is shown as it is.
  scale = min(1.0, side / max(image.shape[:2]))
  size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
