"""Which names mean a split: 'training_set' is train, 'Test images' is test, 'valid' is val."""

import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from ml_collections import ConfigDict

from hierjax.data.findings import Findings

# In the order in which they are preferred, where the data have several of one split.
WORDS = {
  'train': ('train', 'training', 'trn'),
  'val': ('val', 'valid', 'validation', 'dev'),
  'test': ('test', 'testing', 'holdout', 'eval', 'evaluation'),
}
_SPLIT = {word: split for split, words in WORDS.items() for word in words}
_ENDING = re.compile(r'(?<=[a-z])(set|split|data|images?|imgs?)$')


def split_of(name: str) -> str | None:
  """Return the split that a name of a file, a folder or a cell means.

  Args:
    name: one of the usual words, alone or first or last of the words that blanks, punctuation,
      digits or capitals set apart: 'val2017', 'imgs-train', 'TestImages', 'trainset'.

  Returns:
    'train', 'val' or 'test'; None for another name, or one that has two of them.
  """
  words = _words(name)
  return _SPLIT[words[0]] if len(words) == 1 else None


def _words(name):
  """The words of splits that a name has, one of each split."""
  apart = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name)
  parts = [part.casefold() for part in re.findall(r'[^\W\d_]+', apart)]
  if ''.join(parts) in _SPLIT:
    return [''.join(parts)]
  ends = [_ENDING.sub('', part) for part in (*parts[:1], *parts[-1:])]
  by_split = {_SPLIT[word]: word for word in ends if word in _SPLIT}
  return list(by_split.values())


def is_word(name: str) -> bool:
  """Whether a name is one of the usual words, nothing more, in any case."""
  return name.casefold() in _SPLIT


def of_files(
  options: ConfigDict, root: pathlib.Path, paths: Sequence[pathlib.Path], findings: Findings
) -> list[str] | None:
  """Name the split of each of `paths` by its name, else by a folder above it and below `root`.

  None if no name means a split; `options` and `findings` are as in `unify`.
  """
  names = []
  for path in paths:
    # shards are called SPLIT-00000-of-00001, or, as the hub converts, SPLIT/0000
    stem = re.sub(r'[-_.]?\d+([-_.]of[-_.]\d+)?$', '', path.stem)
    places = [stem, *reversed(path.relative_to(root).parts[:-1])]
    places = [p for p in places if p in (options.train, options.val) or split_of(p)]
    meanings = {split_of(place) or place for place in places}
    if len(meanings) > 1:
      text = f'its names say {" and ".join(sorted(meanings))}; rename the file or a folder'
      findings.error(str(path), 'splits', text)
    names.append(places[0] if places else None)
  if not any(names):
    return None
  for i, path in enumerate(paths):
    if names[i] is None:
      names[i] = path.parent.name if path.stem.isdecimal() else path.stem.split('-')[0]
      text = f'is called like no split; what it holds is a split {names[i]!r}'
      findings.warn(str(path), 'files beside splits', text)
  return names


def unify(options: ConfigDict, splits: Sequence[str], findings: Findings) -> list[str]:
  """Call the splits of a data set train, val and test, where their names mean these.

  `options.train` and `options.val` keep the names that they ask for. Of several names for
  validation or test, the usual one gets the name, and the others stay splits of their own; several
  for training ('train_1', 'train_2') are joined.

  Args:
    options: `config.data`.
    splits: of each example the name of its split as the data have it.
    findings: receives notes on what is called otherwise, and an error where it is not clear which
      is val.

  Returns:
    The names, one an example.
  """
  names = list(dict.fromkeys(splits))
  folded = Counter(name.casefold() for name in names)
  candidates = defaultdict(list)
  for name in names:
    # names that differ in case only are reported where the splits are made
    is_single = folded[name.casefold()] == 1 and name not in (options.train, options.val)
    if is_single and split_of(name):
      candidates[split_of(name)].append(name)
  renamed = {}
  for split, group in candidates.items():
    if split in folded:
      renamed.update({name: split for name in group if name.casefold() == split})
    else:
      renamed.update(_rename(options, split, group, findings))
  for name, split in renamed.items():
    if name != split:
      findings.note(f'split {name!r} is called {split} here')
  separate = [name for group in candidates.values() for name in group if name not in renamed]
  if separate:
    findings.note(f'{", ".join(map(repr, separate))}: a split by itself, joined to no other')
  return [renamed.get(name, name) for name in splits]


def _rename(options, split, group, findings):
  """Which of the names of a split that none has exactly get its name."""
  if len(group) == 1 or split == 'train':
    return dict.fromkeys(group, split)
  usual = [name for word in WORDS[split] for name in group if name.casefold() == word]
  if usual:
    return {usual[0]: split}
  if split == options.val:
    text = f'{", ".join(map(repr, group))} may each be val: name one with --config.data.val'
    findings.error(options.root, 'splits', text)
  return {}
