"""What a trained model looks at and mistakes: Grad-CAM, the choice of example images, t-SNE of the features.

`write` leaves explain_SPLIT.npz beside predictions_SPLIT.npz; the report draws both. The file's size is bounded whatever the split's: so many images
for each pattern of right and wrong heads and for each of the worst confusions, so many points. The choice is a pure function of the predictions,
so that the report finds the same rows again.
"""

import dataclasses
import functools
import hashlib
import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.core import files
from hierjax.taxonomy import Taxonomy

PATTERNS, EACH = 16, 4  # patterns of right and wrong heads, and images of each
CONFUSIONS, MISTAKEN, ALIKE = (
  12,
  3,
  2,
)  # pairs of classes; of each, mistaken images and images of the class they were taken for
POINTS = 2000  # of the t-SNE
SIDE, QUALITY = 256, 82  # the longer side of a picture, pixels; its JPEG quality


# Grad-CAM.


def look(
  variables: Mapping, images: jax.Array, classes: Mapping[str, jax.Array], model: nn.Module
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """images uint8 [B, H, W, 3], classes {level: int32 [B]} → (features [B, d], {level: Grad-CAM of that class, float32 [B, h, w], at least 0}).

  relu(sum_c a_c A_c) with a_c = mean over places of d logit / d A_c, A the backbone's last maps (Selvaraju et al. 2017, equations 1 and 2). All heads share
  the forward pass; the way back reaches no further than A.
  """
  capture = {
    'capture_intermediates': lambda module, method: (
      module.name == 'backbone' and method == '__call__'
    ),
    'mutable': ['intermediates'],
  }

  def maps_of(state):
    return state['intermediates']['backbone']['__call__'][0][1]['features']

  def run(shift):
    moved = {**variables, 'perturbations': {'backbone': {'features': shift}}}
    (logits, features), state = model.apply(moved, images, **capture)
    chosen = {
      level: jnp.take_along_axis(logits[level], c[:, None], 1).sum() for level, c in classes.items()
    }
    return chosen, (features, maps_of(state))

  shape = jax.eval_shape(lambda: maps_of(model.apply(variables, images, **capture)[1]))
  chosen, back, (features, maps) = jax.vjp(run, jnp.zeros(shape.shape, shape.dtype), has_aux=True)
  out = {}
  for level in classes:
    (slope,) = back(
      {l: jnp.ones_like(v) if l == level else jnp.zeros_like(v) for l, v in chosen.items()}
    )
    weights = slope.astype(jnp.float32).mean((1, 2), keepdims=True)
    out[level] = nn.relu((weights * maps.astype(jnp.float32)).sum(-1))
  return features.astype(jnp.float32), out


# The choice of examples.


def patterns(
  right: np.ndarray, known: np.ndarray
) -> list[tuple[tuple[bool, ...], np.ndarray, np.ndarray]]:
  """Which heads were right, bool [N, K], where all labels are `known`, bool [N]: [(pattern, its rows, EACH of them drawn at random)], most frequent first."""
  rows = np.flatnonzero(known)
  found, which = np.unique(right[rows], axis=0, return_inverse=True)
  out = []
  for k, pattern in enumerate(found):
    of = rows[which.ravel() == k]
    drawn = np.sort(np.random.default_rng(0).permutation(len(of))[:EACH])
    out.append((tuple(pattern.tolist()), of, of[drawn]))
  return sorted(out, key=lambda p: (-len(p[1]), p[0]))[:PATTERNS]


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A finest class that was taken for another."""

  true: int
  pred: int
  height: int  # LCA height of the two
  count: int  # so many images of `true` were taken for `pred`
  of: int  # of so many
  rows: np.ndarray  # MISTAKEN of those images, the surest first
  alike: np.ndarray  # ALIKE images of `pred`, those that were recognised first


def confusions(
  pred: np.ndarray, prob: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy
) -> list[Confusion]:
  """The pairs of finest classes that cost most: by count times LCA height. pred, labels int [N], -1 unknown; prob [N] of the predicted class."""
  wrong = np.flatnonzero((labels >= 0) & (pred != labels))
  pairs, which, counts = np.unique(
    np.stack([labels[wrong], pred[wrong]], 1), axis=0, return_inverse=True, return_counts=True
  )
  if not len(pairs):
    return []
  heights = taxonomy.lca(pairs[:, 0], pairs[:, 1])
  out = []
  for k in np.lexsort((pairs[:, 1], pairs[:, 0], -counts, -counts * heights))[:CONFUSIONS]:
    true, other = pairs[k].tolist()
    rows = wrong[which.ravel() == k]
    alike = np.flatnonzero(labels == other)
    out.append(
      Confusion(
        true,
        other,
        int(heights[k]),
        int(counts[k]),
        int((labels == true).sum()),
        rows[np.argsort(-prob[rows], kind='stable')][:MISTAKEN],
        alike[np.argsort(pred[alike] != other, kind='stable')][:ALIKE],
      )
    )
  return out


def right(predictions: Mapping[str, np.ndarray], columns: Sequence[int]) -> np.ndarray:
  """bool [N, K]: whether the heads of these columns rank the label first."""
  return np.stack(
    [predictions[f'top_{k}'][:, 0] == predictions['labels'][:, k] for k in columns], 1
  )


def heads(predictions: Mapping[str, np.ndarray]) -> list[int]:
  """The columns that have a head."""
  return sorted(
    int(key.removeprefix('top_'))
    for key in predictions
    if key.startswith('top_') and key[4:].isdigit()
  )


def shown(predictions: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> np.ndarray:
  """Rows of the predictions whose images the report shows, int [m], sorted."""
  columns, labels = heads(predictions), predictions['labels']
  groups = [
    drawn for _, _, drawn in patterns(right(predictions, columns), (labels[:, columns] >= 0).all(1))
  ]
  for c in confusions(
    predictions['pred_joint'][:, -1], predictions['prob_joint'][:, -1], labels[:, -1], taxonomy
  ):
    groups += [c.rows, c.alike]
  return np.unique(np.concatenate(groups)) if groups else np.zeros(0, int)


# The features in the plane.


SEED = 0


def perplexity(n: int) -> float:
  """Of the t-SNE of n points."""
  return min(30, (n - 1) / 3)


def tsne(features: np.ndarray) -> np.ndarray:
  """float [n, d] → float32 [n, 2] by t-SNE of the 50 first principal components; zeros where there are too few to place."""
  from sklearn.decomposition import (
    PCA,  # here and not above: it takes a second, which only a report should cost
  )
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  n = len(features)
  if n < 8 or not features.std(0).any():
    return np.zeros((n, 2), np.float32)
  with threadpool_limits(
    1
  ):  # its many short parallel loops wait for each other for most of the time where other programs run: 33 s of CPU against 4
    components = PCA(min(50, *features.shape), random_state=SEED).fit_transform(
      features.astype(np.float64)
    )
    return (
      TSNE(perplexity=perplexity(n), init='pca', random_state=SEED)
      .fit_transform(components)
      .astype(np.float32)
    )


# The file.


def digest(workdir: pathlib.Path, split: str) -> str:
  """Of predictions_SPLIT.npz: an explanation belongs to the predictions it was made for."""
  return hashlib.sha256((workdir / f'predictions_{split}.npz').read_bytes()).hexdigest()


def current(workdir: pathlib.Path, split: str) -> bool:
  """Whether explain_SPLIT.npz is there, whole, and of these predictions."""
  try:
    with np.load(workdir / f'explain_{split}.npz', allow_pickle=False) as archive:
      return str(archive['predictions']) == digest(workdir, split)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
    return False


def write(
  workdir: pathlib.Path,
  split: str,
  predictions: Mapping[str, np.ndarray],
  taxonomy: Taxonomy,
  model: nn.Module,
  variables: Mapping,
  batches: Callable[[np.ndarray], Iterable[Mapping[str, np.ndarray]]],
  picture: Callable[[int], np.ndarray | None],
) -> None:
  """DIR/explain_SPLIT.npz: rows [m], jpeg (their pictures, one behind the other) and ends [m], maps uint8 [m, K, h, w] (each head's Grad-CAM of its first
  choice, the largest value 255), points [t] and xy [t, 2] (t-SNE), predictions (their digest).

  batches(rows) yields images and the places in rows they belong to (`index`, -1 = padding) with `mask`; picture(row) is uint8 [h, w, 3], or None where it
  can no longer be read.
  """
  import simplejpeg

  columns, n = heads(predictions), len(predictions['labels'])
  chosen = shown(predictions, taxonomy)
  points = np.sort(np.random.default_rng(0).permutation(n)[:POINTS])
  rows = np.union1d(chosen, points)
  step = jax.jit(functools.partial(look, model=model))
  features, maps, seen = [], [], []
  for batch in batches(rows):
    of = rows[batch['index']]
    classes = {taxonomy.levels[k]: predictions[f'top_{k}'][of, 0] for k in columns}
    f, cams = jax.device_get(step(variables, batch['image'], classes))
    keep = batch['mask'] > 0
    seen.append(of[keep])
    features.append(f[keep])
    maps.append(np.stack([cams[taxonomy.levels[k]] for k in columns], 1)[keep])
  features, maps, seen = (np.concatenate(parts) for parts in (features, maps, seen))
  pictures = {
    int(row): found
    for row in np.intersect1d(chosen, seen)
    if (found := picture(int(row))) is not None
  }
  maps = maps[np.searchsorted(seen, list(pictures))] if pictures else maps[:0]
  peak = maps.max((2, 3), keepdims=True)
  jpegs = [
    simplejpeg.encode_jpeg(np.ascontiguousarray(p), quality=QUALITY) for p in pictures.values()
  ]
  placed = np.isin(seen, points)
  archive = io.BytesIO()
  np.savez_compressed(
    archive,
    predictions=np.array(digest(workdir, split)),
    rows=np.array(list(pictures), np.int64),
    jpeg=np.frombuffer(b''.join(jpegs), np.uint8),
    ends=np.cumsum([len(j) for j in jpegs]),
    maps=np.round(255 * maps / np.maximum(peak, 1e-12)).astype(np.uint8),
    points=seen[placed],
    xy=tsne(features[placed]),
  )
  files.write(workdir / f'explain_{split}.npz', archive.getvalue())
