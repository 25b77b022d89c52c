"""Predictions of an exported model by onnxruntime, on machines without jax.

`load(FOLDER)` reads what `hierjax export` wrote. Importing this module imports no jax.
"""

import contextlib
import copy
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np

from hierjax import decide
from hierjax.core import archives, files, json_files
from hierjax.core.errors import UserError
from hierjax.data import decoding, image_groups, transforms
from hierjax.decide.novelty import Evidence
from hierjax.evaluate import heat_maps, neighbours, novelty, rules
from hierjax.evaluate.predictor import Predictor
from hierjax.taxonomy import read_taxonomy

FORMAT = 1
MANIFEST = 'manifest.json'
# What a predictor reads; the other files of an artefact are for people and for other programs.
NEEDED = ('hierjax.json', 'taxonomy.csv', 'decode.json', 'model.onnx')
WEIGHTS = 'weights.safetensors'
MAPS = 'maps.onnx'  # of an artefact that has heat maps
SIMILAR = 'similar.npz'  # of one that has training images
MAX_BYTES, MAX_SIZE = 2**31, 4096  # of a file; pixels along a side of an input
BATCH_SIZE = 32
PREPROCESSING = {'size': int, 'resize': str, 'tta': int, 'max_pixels': int, 'max_bytes': int}


class Outputs(NamedTuple):
  """What a graph computes for a batch.

  Attributes:
    index: int [n], the readable images.
    probs: {level with a head: float64 [n, C]}.
    outputs: of the graph, by their names, and the `images` that it read.
  """

  index: np.ndarray
  probs: dict[str, np.ndarray]
  outputs: dict[str, np.ndarray]


class Exported(Predictor):
  """An exported model; `load` makes one.

  Attributes:
    facts: the content of hierjax.json.
    view: how an image becomes the input of the graph.
    session: of onnxruntime.
    map_levels: those of which there are heat maps.
  """

  has_maps, similar, has_gains = False, 0, False  # what records get, see `explaining`

  def __init__(
    self, folder: pathlib.Path, contents: Mapping[str, bytes], threads: int | None, spin: bool
  ):
    """Read an artefact whose files are intact; use `load`."""
    import onnxruntime

    self.facts, self.view = _facts(folder)
    self._digest = hashlib.sha256(contents['model.onnx']).hexdigest()
    self._threads = threads or os.cpu_count() or 1
    multi = tuple(self.facts['taxonomy']['multi'])
    self.taxonomy = read_taxonomy(folder / 'taxonomy.csv', multi)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry('session.intra_op.allow_spinning', str(int(spin)))
    sessions = {}
    for name in (name for name in ('model.onnx', MAPS) if name in contents):
      try:
        sessions[name] = onnxruntime.InferenceSession(
          contents[name], options, providers=['CPUExecutionProvider']
        )
      except Exception as e:  # onnxruntime raises many kinds
        reason = ' '.join(str(e).split())[:200]
        raise UserError(f'{folder / name}: cannot be loaded ({reason})') from None
    self.session, self._maps = sessions['model.onnx'], sessions.get(MAPS)
    self._check_graphs(folder, sessions)
    self.rules = rules.read_rules(folder / 'decode.json', self.taxonomy, self.levels)
    self._gallery = self._read_gallery(folder / SIMILAR) if SIMILAR in contents else None
    self._detector = self._read_detector(folder / novelty.FILE)

  def _read_gallery(self, path):
    """Training images: features float32 [m, d] of length 1, and what is shown of each."""
    arrays = archives.read(path)
    try:
      features, entries = arrays['features'], json_files.parse(arrays['entries'].tobytes())
      (width,) = [x.shape[-1] for x in self.session.get_outputs() if x.name == 'features']
      if features.shape != (len(entries), width) or not all(isinstance(x, dict) for x in entries):
        raise ValueError
    except (KeyError, TypeError, ValueError):
      raise UserError(f'{path}: is damaged, or of another model') from None
    return features.astype(np.float32), entries

  def _read_detector(self, path):
    """What detects new classes; None where the model was exported without."""
    facts = self.facts['novelty']
    if facts is None:
      return None
    table = self.taxonomy.table('exclusive')
    return novelty.read_detector(path, table, facts['step'], facts['score'])

  def _check_graphs(self, folder, sessions):
    """Refuse a graph of another taxonomy or other images than the papers say."""
    texts = [graph.get_modelmeta().custom_metadata_map for graph in sessions.values()]
    digests = {self.facts['taxonomy']['hash'], *(text.get('taxonomy_sha256') for text in texts)}
    if digests != {self.taxonomy.hash()}:
      raise UserError(
        f'{folder}: taxonomy.csv is not the taxonomy that the model was exported with: its classes '
        'are others or in another order'
      )
    outputs = {output.name: output.shape[1:] for output in self.session.get_outputs()}
    names = {level: f'probability/{level}' for level in self.taxonomy.levels}
    self.levels = tuple(level for level, name in names.items() if name in outputs)
    image = [self.view.size, self.view.size, 3]
    if self.view.views > 1:
      image = [self.view.views, *image]
    is_sound = [x.shape[1:] for x in self.session.get_inputs()] == [image]
    for level in self.levels:
      is_sound &= outputs[names[level]] == [self.taxonomy.num_classes(level)]
    if not is_sound or not self.levels:
      raise UserError(f'{folder}: model.onnx and hierjax.json are not of one export')
    maps = {output.name for output in self._maps.get_outputs()} if self._maps else ()
    self.map_levels = tuple(level for level in self.levels if f'map/{level}' in maps)
    if self._maps:
      shapes = {'images': image[-3:]} | {f'class/{level}': [] for level in self.map_levels}
      if {x.name: x.shape[1:] for x in self._maps.get_inputs()} != shapes:
        raise UserError(f'{folder}: {MAPS} and hierjax.json are not of one export')

  def _network(self):
    return self._digest, self.facts['preprocessing']

  def explaining(self, maps: bool = False, similar: int = 0, gains: bool = False) -> Self:
    """Return this model with more in the records of images, as far as it was exported with it.

    Args:
      maps: adds 'maps' {level of `map_levels`: [h][w] of 0 to 255}, where the evidence for the
        path's class lies in what the model sees of the image: its Grad-CAM.
      similar: adds 'similar', so many training images, the nearest first: [{'file', 'classes'
        {level: name}, 'cosine' of the features, 'image', the data address of a small picture}].
      gains: adds 'gain', as decide.label_gains does for a run, see `decide.add_label_gains`.
    """
    model = copy.copy(self)
    model.has_maps, model.similar = maps and bool(self.map_levels), similar if self._gallery else 0
    model.has_gains = gains
    return model

  def _complete(self, records, outputs, decisions):
    """Add what is asked for by `explaining`, and where an image is of a new class."""
    if self.has_gains:
      decide.add_label_gains(records, decisions, self.taxonomy)
    if self._detector:
      joint, features = decisions['exclusive']['joint'], outputs.outputs['features']
      evidence = Evidence((), features, joint.pred, np.full(joint.pred.shape, -1))
      share = self.facts['novelty']['false_alarms']
      novelty.add_to_records(records, self._detector, evidence, joint.prob[-1], share)
    if self.has_maps:
      pred, table = decisions['exclusive']['joint'].pred, self.taxonomy.table('exclusive')
      classes = {level: pred[:, table.index(level)] for level in self.map_levels}
      for level, cams in self.heat_maps(outputs.outputs['images'], classes).items():
        for record, cam in zip(records, heat_maps.as_bytes(cams).tolist()):
          record.setdefault('maps', {})[level] = cam
    if self.similar:
      features, entries = self._gallery
      x = neighbours.unit(outputs.outputs['features'])
      rows, cosines = neighbours.nearest(x, features, self.similar)
      for record, near, values in zip(records, rows.tolist(), cosines.tolist()):
        record['similar'] = [entries[j] | {'cosine': round(s, 4)} for j, s in zip(near, values)]

  def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute all outputs of the graph.

    Args:
      images: uint8 [N, S, S, 3]; [N, views, S, S, 3] where hierjax.json says 'tta' above 2.
    """
    names = [output.name for output in self.session.get_outputs()]
    feed = {self.session.get_inputs()[0].name: images}
    return dict(zip(names, self.session.run(names, feed)))

  def heat_maps(
    self, images: np.ndarray, classes: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Compute the Grad-CAM of classes.

    Args:
      images: as `run` takes them; of several views the first counts.
      classes: {level of `map_levels`: int [N]}.

    Returns:
      {level: float32 [N, h, w]}, at least 0.
    """
    feed = {f'class/{level}': c.astype(np.int32) for level, c in classes.items()}
    feed['images'] = images[:, 0] if images.ndim == 5 else images
    return dict(zip(classes, self._maps.run([f'map/{level}' for level in classes], feed)))

  def _run(self, images, batch_size) -> Iterator[tuple[image_groups.Batch, Outputs]]:
    sizes = sorted({1, batch_size or BATCH_SIZE})
    batches = image_groups.batches(images, self.view, sizes, self._threads)
    with contextlib.closing(batches):
      for batch in batches:
        yield batch, self.compute(batch)

  def compute(self, batch: image_groups.Batch) -> Outputs:
    """Compute the probabilities of a batch of images that are read by `view`."""
    index = np.flatnonzero([not error for error in batch.errors])
    # not every operator takes a batch of nothing
    rows = index if len(index) else [0]
    outputs = self.run(batch.pixels[rows]) | {'images': batch.pixels[rows]}
    outputs = {name: x[: len(index)] for name, x in outputs.items()}
    probs = {level: outputs[f'probability/{level}'].astype(np.float64) for level in self.levels}
    if not all(np.isfinite(p).all() for p in probs.values()):
      raise UserError(f'the model computes NaN or infinity from {batch.names[index[0]]} on')
    return Outputs(index, probs, outputs)


def _facts(folder: pathlib.Path) -> tuple[dict, image_groups.View]:
  """hierjax.json, and how images become the graph's input, which is checked."""
  path = folder / 'hierjax.json'
  facts = json_files.read_object(path)
  try:
    views, table = facts['preprocessing'], facts['taxonomy']
    is_sound = all(type(views[name]) is kind for name, kind in PREPROCESSING.items())
    is_sound &= views['resize'] in transforms.RESIZE and views['tta'] in (1, 2, 3, 5)
    share, how = views.get('crop_share') or 1.0, views.get('interpolation')
    is_sound &= 0 < share <= 1 and how in (None, *transforms.FILTERS)
    new = facts['novelty'] or {'score': '', 'step': 0, 'false_alarms': 0.5}
    is_sound &= {*new} == {'score', 'step', 'false_alarms'} and 0 < new['false_alarms'] < 1
    is_sound &= 0 < views['size'] <= MAX_SIZE and all(isinstance(x, str) for x in table['multi'])
    deep = views['deep_range'] and tuple(views['deep_range'])
    if deep not in (None, decoding.OWN_RANGE):
      low, high = map(float, deep)
      is_sound &= low < high
  except (KeyError, TypeError, ValueError):
    is_sound = False
  if not is_sound or facts.get('format') != FORMAT:
    raise UserError(f'{path}: is damaged, or of another version of hierjax')
  # the mirror image, the second view, is made within the graph
  count = views['tta'] if views['tta'] > 2 else 1
  decoder = decoding.Decoding(views['max_pixels'], deep)
  resize = transforms.Resize(views['resize'], share, how)
  return facts, image_groups.View(views['size'], resize, count, views['max_bytes'], decoder)


def load(folder: str | os.PathLike, threads: int | None = None, spin: bool = True) -> Exported:
  """Load an exported model. Its files must be those of its manifest, byte by byte.

  Args:
    folder: that `hierjax export` wrote.
    threads: that compute, and that read images; None for as many as there are cores.
    spin: whether threads wait busily for the next operation; False spares a server's other work.

  Raises:
    UserError: the folder is no artefact, a file is damaged or missing, or the taxonomy is another.
  """
  folder = pathlib.Path(folder)
  return Exported(folder, read_files(folder), threads, spin)


def listed(folder: pathlib.Path) -> dict[str, str]:
  """Read the manifest of an exported model: {name of a file: its sha256}.

  Raises:
    UserError: the folder has none, or a damaged one.
  """
  path = folder / MANIFEST
  if not path.exists():
    raise UserError(f'{folder}: no exported model (no {MANIFEST}); hierjax export writes one')
  digests = json_files.read_object(path).get('files')
  if not isinstance(digests, dict) or not {*NEEDED} <= {*digests}:
    raise UserError(f'{path}: is damaged: it must list {", ".join(NEEDED)}')
  for name in digests:
    files.check_name(name, f'{path}: the file {name[:80]!r}')
  return digests


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
  """Return the content of the files that a predictor reads; all files must be those listed.

  Raises:
    UserError: one is missing or damaged.
  """
  contents = {}
  for name, digest in listed(folder).items():
    content = files.read_bytes(folder / name, MAX_BYTES)
    if hashlib.sha256(content).hexdigest() != digest:
      raise UserError(f'{folder / name}: is damaged: its sha256 is not that of {MANIFEST}')
    if name in (*NEEDED, MAPS, SIMILAR):
      contents[name] = content
  return contents
