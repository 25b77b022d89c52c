"""A data set packed into one file of images with an index, which is read without a copy.

A packed folder has images.bin, the bytes of all image files one after the other; table.npz with
`end` int64 [N], where each image ends, `labels` int32 [N, L], `split` int32 [N], and the files'
names as UTF-8 in `names` and `name_end`; taxonomy.csv; and packed.json, which is written last.
"""

import hashlib
import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from hierjax.core import archives, files, json_files
from hierjax.core.errors import UserError
from hierjax.core.names import Names
from hierjax.data import decoding, image_files, split_record, workers
from hierjax.data.dataset import Dataset, Examples, Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Taxonomy

FILE, IMAGES, TABLE = 'packed.json', 'images.bin', 'table.npz'
# of a call that was stopped: what it packs, and where each image ends
NOTE, ENDS = 'data.partial', 'ends.partial'
FORMAT = 1
NUMBER = np.dtype('<i8')  # of a byte in images.bin


class Packed(NamedTuple):
  """What was packed.

  Attributes:
    images: how many.
    size: bytes of images.bin.
    unreadable: names of the images that cannot be read; they stay in the data, without bytes.
  """

  images: int
  size: int
  unreadable: list[str]


def pack(
  data: Dataset,
  folder: pathlib.Path,
  threads: int = 2,
  progress: Callable[[int, int], None] | None = None,
) -> Packed:
  """Pack all splits of a data set. A stopped call is completed by the same one.

  Every image is decoded once, so that those that cannot be read are known.

  Args:
    data: the data set; of exclusive levels only.
    folder: where the files are written; new, or with what a stopped call has left.
    threads: that read and decode.
    progress: called with the numbers of images that are done and that there are.

  Raises:
    UserError: the folder holds something else, the data have tags, or only parts of images are
      shown.
    OSError: a file cannot be written.
  """
  data = data.undiminished or data
  if data.taxonomy.multi:
    raise UserError('pack: data with tags cannot be packed')
  digest = split_record.digest(split_record.content(data))
  if _is_complete(folder, digest):
    end = archives.read(folder / TABLE, (folder / TABLE).stat().st_size)['end']
  else:
    end = _write_images(list(data.splits.values()), folder, threads, progress)
    table = _write_table(data, folder, end)
    facts = {'format': FORMAT, 'digest': digest, 'bytes': _size(end), 'table': table}
    facts |= {'splits': list(data.splits), 'taxonomy': data.taxonomy.hash()}
    files.write(folder / FILE, json_files.dump(facts, indent=1) + '\n')
    for name in (NOTE, ENDS):
      (folder / name).unlink()
  empty = np.flatnonzero(np.diff(end, prepend=0) == 0)
  return Packed(len(end), _size(end), list(_names(data)[empty]))


def _names(data):
  """The names of the images of all splits."""
  return Names.pack([*itertools.chain.from_iterable(split.files for split in data.splits.values())])


def _size(end):
  """The bytes of all images."""
  return int(end[-1]) if len(end) else 0


def _is_complete(folder, digest):
  """Whether a folder holds these data packed; else it is new, or a stopped call has left it."""
  folder.mkdir(parents=True, exist_ok=True)
  note, facts = folder / NOTE, folder / FILE
  if note.exists() and files.read_text(note) == digest:
    return False
  if facts.exists() and json_files.read_object(facts).get('digest') == digest:
    return True
  if any(folder.iterdir()):
    raise UserError(f'{folder}: holds other files, or other data packed; give a new --output')
  files.write(note, digest)
  return False


def _write_images(splits: list[Examples], folder, threads, progress):
  """Write images.bin from where a stopped call has left it; int64 [N], where each image ends."""
  tasks = [(split, i) for split in splits for i in range(len(split.labels))]
  partial, ends = folder / f'{IMAGES}.partial', folder / ENDS
  if (folder / IMAGES).exists():
    (folder / IMAGES).rename(partial)
  end = _ends(partial, ends)
  count, position = len(end), _size(end)
  try:
    with open(partial, 'r+b') as images, open(ends, 'r+b') as index:
      images.truncate(images.seek(position))
      index.truncate(index.seek(count * NUMBER.itemsize))
      contents = workers.ordered_map(_read, tasks[count:], threads)
      for number, content in enumerate(contents, count + 1):
        position += len(content)
        images.write(content)
        index.write(NUMBER.type(position).tobytes())
        if progress:
          progress(number, len(tasks))
  except OSError as error:
    # the system does not say of which file a write has failed
    error.filename = error.filename or str(partial)
    raise
  end = _ends(partial, ends)
  files.sync(partial)
  partial.rename(folder / IMAGES)
  return end


def _ends(images, ends):
  """Where each image ends of those whose bytes are all there."""
  for path in (images, ends):
    path.touch()
  size = ends.stat().st_size // NUMBER.itemsize * NUMBER.itemsize
  end = np.frombuffer(ends.read_bytes()[:size], NUMBER)
  return end[: np.searchsorted(end, images.stat().st_size, side='right')]


def _read(split, i):
  """The bytes of an image; none of one that cannot be read."""
  try:
    content = split.reader(i)
    decoding.decode(content)
  except (OSError, ValueError):
    return b''
  if getattr(content, 'box', None) or getattr(content, 'banner', 0):
    raise UserError(f'pack: only a part of {split.files[i]} is shown, which cannot be packed')
  if isinstance(content, np.ndarray):
    content = cv2.imencode('.png', content[..., ::-1])[1]
  return bytes(content)


def _write_table(data, folder, end):
  """Write table.npz and taxonomy.csv; the SHA-256 of the table."""
  splits, names = list(data.splits.values()), _names(data)
  counts = [len(split.labels) for split in splits]
  np.savez(
    folder / TABLE,
    end=end,
    labels=np.concatenate([split.labels for split in splits]),
    split=np.repeat(np.arange(len(splits), dtype=np.int32), counts),
    names=np.frombuffer(names.data, np.uint8),
    name_end=names.end,
  )
  files.sync(folder / TABLE)
  data.taxonomy.to_csv(folder / 'taxonomy.csv')
  return _sha256(folder / TABLE)


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _is_sound(arrays, splits, size, taxonomy):
  """Whether arrays are what `_write_table` writes, of images in `size` bytes."""
  try:
    end, name_end, split, labels = (arrays[name] for name in ('end', 'name_end', 'split', 'labels'))
    numbers, classes = (end, name_end, split, labels), [len(names) for names in taxonomy.names]
    return bool(
      all(x.dtype.kind == 'i' for x in numbers)
      and (end.shape == name_end.shape == split.shape == labels.shape[:1])
      and (arrays['names'].dtype == np.uint8 and labels.shape[1:] == (len(classes),))
      and (np.diff(end, prepend=0, append=size) >= 0).all()
      and (np.diff(name_end, prepend=0, append=arrays['names'].size) >= 0).all()
      and ((split >= 0) & (split < len(splits))).all()
      and all(isinstance(name, str) for name in splits)
      and ((labels >= -1) & (labels < classes)).all()
      and taxonomy.valid(labels).all()
    )
  except (KeyError, TypeError, ValueError):
    return False


def read(
  options: ConfigDict, root: pathlib.Path, taxonomy: Taxonomy | None, findings: Findings
) -> Table:
  """Read a packed folder.

  Args:
    options: `config.data`.
    root: the folder.
    taxonomy: that of taxonomy.csv.
    findings: receives what is wrong.

  Raises:
    UserError: the folder is incomplete, damaged or changed.
  """
  del options, findings
  if not (root / FILE).exists():
    raise UserError(f'{root}: no {FILE}; a stopped hierjax pack goes on with the same command')
  facts = json_files.read(root / FILE)
  if not isinstance(facts, dict) or facts.get('format') != FORMAT:
    raise UserError(f'{root / FILE}: another version of hierjax has packed this')
  if taxonomy is None or taxonomy.hash() != facts.get('taxonomy'):
    raise UserError(f'{root}/taxonomy.csv: is not the one that was packed')
  if _sha256(root / TABLE) != facts.get('table'):
    raise UserError(f'{root / TABLE}: has changed since it was packed')
  # it is not compressed
  arrays, splits = archives.read(root / TABLE, (root / TABLE).stat().st_size), facts.get('splits')
  size = (root / IMAGES).stat().st_size if (root / IMAGES).exists() else -1
  if size != facts.get('bytes'):
    raise UserError(f'{root / IMAGES}: is missing or cut short; pack the data again')
  if not _is_sound(arrays, splits, size, taxonomy):
    raise UserError(f'{root / TABLE}: is no table of these images; pack the data again')
  return Table(
    taxonomy,
    Names.from_ends(arrays['names'], arrays['name_end']),
    arrays['labels'],
    [splits[k] for k in arrays['split'].tolist()],
    image_files.SliceReader.from_ends([str(root / IMAGES)], [arrays['end']]),
  )
