"""Examples of a split, a data set of splits, and the table of examples that a reader returns."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from hierjax.core.names import Names
from hierjax.taxonomy import Mixed, Taxonomy

# index -> encoded bytes, uint8 [h, w, 3], or float32 [d] features
Reader = Callable[[int], bytes | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Examples:
  """The examples of one split, with random access; they can be pickled.

  Attributes:
    name: the split's name.
    files: a name of each example for people, such as 'images/00001.jpg'.
    labels: int32 [N, L], class ids of the exclusive levels, -1 unknown.
    reader: reads one example.
    multi: int8 [N, C], 0 and 1 of each class of the tag levels, -1 unknown.
    regions: float32 [N, 2, 4], of a training split, for guided crops and masks: left, top, right,
      bottom of a box and of the hottest place in fractions of the image, NaN unknown.
  """

  name: str
  files: Sequence[str]
  labels: np.ndarray
  reader: Reader
  multi: np.ndarray | None = None
  regions: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Splits of one taxonomy.

  Attributes:
    taxonomy: of the labels.
    splits: by name.
    notes: lines for the log, such as that a split was made.
    undiminished: the data before classes were held out and examples dropped.
    new: files that the record of a run lacks, where one was given.
  """

  taxonomy: Taxonomy | Mixed
  splits: dict[str, Examples]
  notes: list[str]
  undiminished: 'Dataset | None' = None
  new: Sequence[str] = ()


@dataclasses.dataclass
class Table:
  """The examples of all splits, as a reader returns them.

  Attributes:
    files, labels, multi: as in `Examples`.
    splits: the split's name of each example; None if the data name no splits.
    reader: reads one example of the table.
    path, rows: the file that lists the examples, and the row of each in it; None if there is none.
    invalid, missing: the examples that name no valid path, and those whose file does not exist.
    origin: where the taxonomy stands, and its rows as (row number or 0, names).
  """

  taxonomy: Taxonomy | Mixed
  files: Sequence[str]
  labels: np.ndarray
  splits: list[str] | None
  reader: Reader
  multi: np.ndarray | None = None
  path: str | None = None
  rows: list[int] | None = None
  invalid: set[int] = dataclasses.field(default_factory=set)
  missing: set[int] = dataclasses.field(default_factory=set)
  origin: tuple[str, list[tuple[int, list[str]]]] | None = None


def subset(examples: Examples | Table, index: Sequence[int], name: str | None = None) -> Examples:
  """Select examples.

  Args:
    examples: a split, or a reader's table.
    index: [n] numbers of the examples.
    name: that of the result; by default the same.
  """
  index = np.asarray(index, int)
  regions = getattr(examples, 'regions', None)  # a table has none
  return Examples(
    examples.name if name is None else name,
    Names.pack(examples.files)[index],
    examples.labels[index],
    select(examples.reader, index),
    None if examples.multi is None else examples.multi[index],
    None if regions is None else regions[index],
  )


def with_features(examples: Examples, features: np.ndarray, index: np.ndarray) -> Examples:
  """Select examples and replace their images by cached features.

  Args:
    examples: a split.
    features: float [n, d].
    index: int [n], numbers of the examples.
  """
  reader = np.asarray(features, np.float32).__getitem__
  return dataclasses.replace(subset(examples, index), reader=reader)


def select(reader: Reader, index: np.ndarray) -> Reader:
  """Return a reader of some of another's examples; file readers drop the others' names.

  Args:
    reader: the other one.
    index: int [n], numbers of its examples.
  """
  if hasattr(reader, 'select'):
    return reader.select(index)
  return functools.partial(_read_selected, reader=reader, index=index)


def _read_selected(i, *, reader, index):
  return reader(int(index[i]))
