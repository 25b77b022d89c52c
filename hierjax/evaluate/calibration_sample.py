"""What a run keeps of its calibration images, to tell whether others look like them."""

import pathlib

from hierjax.core import archives
from hierjax.decide import drift
from hierjax.taxonomy import Taxonomy

FILE = 'calibration.npz'


def write(folder: pathlib.Path, sample: drift.Sample, taxonomy: Taxonomy, step: int) -> None:
  """Write a `sample` of images of a `taxonomy`, by the model of a `step`, into a `folder`."""
  counts = {f'counts.{k}': count for k, count in enumerate(sample.counts)}
  arrays = {'features': sample.features, **counts, 'step': step, 'taxonomy': taxonomy.hash()}
  archives.write(folder / FILE, arrays, is_compressed=False)


def read(folder: pathlib.Path, taxonomy: Taxonomy, step: int) -> drift.Sample | None:
  """Read the sample; None where there is none, or one of another model."""
  try:
    arrays = archives.read(folder / FILE)
    if (int(arrays['step']), str(arrays['taxonomy'])) != (step, taxonomy.hash()):
      return None
    return drift.Sample(
      arrays['features'], [arrays[f'counts.{k}'] for k in range(len(taxonomy.levels))]
    )
  # no guarantee hangs on it; a damaged archive raises whatever its bytes lead to
  except Exception:
    return None


def to_json(result: drift.Drift, taxonomy: Taxonomy) -> dict:
  """Return what eval_SPLIT.json says of drift."""
  return {
    'images': result.images,
    'auroc': result.auroc,
    'p': result.feature_p,
    'shares': dict(zip(taxonomy.levels, result.share_p.tolist())),
    'is_alike': result.is_alike,
    'text': drift.describe(result, taxonomy.levels),
  }
