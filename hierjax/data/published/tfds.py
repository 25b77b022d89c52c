"""Data sets that TensorFlow Datasets has prepared as ArrayRecord; TensorFlow is not needed."""

import functools
import os
import re
from typing import NamedTuple

import numpy as np

from hierjax.core.errors import UserError, kind_and_text
from hierjax.data import store
from hierjax.data.published.layout import Example, Layout


class _Opened(NamedTuple):
  """Features, names of labels, source of each split, the image, and the files of each split."""

  features: dict
  labels: list[str]
  sources: dict
  image: str
  stamps: dict[str, list]


def read(root: str, crop: bool) -> Layout:
  """Read a data set of TFDS.

  Args:
    root: `tfds:NAME[/CONFIG][:VERSION]`.
    crop: not read; it has no boxes.
  """
  name = str(root).removeprefix('tfds:')
  if not re.fullmatch(r'\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?', name):
    raise UserError(f'--config.data.root={root}: expected tfds:NAME[/CONFIG][:1.2.3]')
  features, labels, sources, image, stamps = _open(name, root)
  if not labels:
    raise UserError(f'tfds:{name}: has no ClassLabel; its features are {", ".join(features)}')
  labels.sort(key=lambda key: features[key].num_classes)
  rows = {}
  for split, source in sources.items():
    decode = functools.partial(_decode_labels, name, split, source, labels)
    ids = store.cached('tfds', [stamps[split], labels], decode)['labels']
    rows |= {(split, i): tuple(row) for i, row in enumerate(ids.tolist())}
  names = [features[key].names for key in labels]
  classes = set(rows.values())
  if len(labels) == 1:
    classes = {(c,) for c in range(len(names[0]))}
  classes = sorted((row for row in classes if row[-1] >= 0), key=lambda row: row[::-1])
  label = {row: i for i, row in enumerate(classes)}
  return Layout(
    tuple(key.removesuffix('_label') for key in labels),
    [tuple(n[c] if c >= 0 else '' for n, c in zip(names, row)) for row in classes],
    [
      Example(f'{split}:{i}', label.get(row, -1), split, f'tfds:{name} {split}:{i}')
      for (split, i), row in rows.items()
    ],
    reader=functools.partial(_read_image, sources=sources, places=list(rows), image=image),
  )


def _open(name, root) -> _Opened:
  import tensorflow_datasets as library  # takes half a second

  folder = os.environ.get('TFDS_DATA_DIR') or None
  try:
    builder = library.builder(name, data_dir=folder)
    features = builder.info.features
    images = [k for k in features if isinstance(features[k], library.features.Image)]
    labels = [k for k in features if isinstance(features[k], library.features.ClassLabel)]
    if len(images) != 1:
      raise UserError(
        f'{root}: expected one feature with images; its features are {", ".join(features)}'
      )
    decoders = {images[0]: library.decode.SkipDecoding()}
    splits = builder.info.splits
    sources = {s: builder.as_data_source(split=s, decoders=decoders) for s in splits}
    if not sources:
      raise FileNotFoundError('nothing is prepared')
    stamps = {}
    for split, info in splits.items():
      facts = [(os.fspath(path), (s := path.stat()).length, s.mtime) for path in info.filepaths]
      stamps[split] = [builder.info.full_name, split, *facts]
  except UserError:
    raise
  except Exception as error:  # it raises its own, assertions and the system's
    folder = folder or '~/tensorflow_datasets'
    reason = str(error).splitlines()[0][:160] if str(error) else ''
    raise UserError(
      f'tfds:{name}: cannot be read from {folder} as ArrayRecord ({type(error).__name__}: '
      f'{reason}); prepare it once, where TensorFlow is installed: tfds build '
      f'{name.split(":")[0]} --file_format=array_record --data_dir={folder}'
    ) from None
  return _Opened(features, labels, sources, images[0], stamps)


def _decode_labels(name, split, source, labels):
  """The class ids of a split, int64 [n, label]."""
  ids = np.zeros((len(source), len(labels)), np.int64)
  for i in range(len(source)):
    try:
      example = source[i]
    except Exception as error:
      reason = kind_and_text(error)
      raise UserError(f'tfds:{name}: example {split}:{i} cannot be read ({reason})') from None
    ids[i] = [example[key] for key in labels]
  return {'labels': ids}


def _read_image(i, *, sources, places, image):
  split, row = places[i]
  return sources[split][row][image]
