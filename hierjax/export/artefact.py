"""The folder of an exported model: written whole or not at all, and checked against its run."""

import base64
import copy
import functools
import hashlib
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import simplejpeg

from hierjax import runtime
from hierjax.core import files, json_files
from hierjax.core.errors import UserError
from hierjax.data import image_groups, transforms
from hierjax.evaluate import explain, neighbours, rules
from hierjax.export import int8, papers, program
from hierjax.model import Model

# Images of val, and as many drawn ones, on which run and artefact must agree; in probability.
IMAGES, TOLERANCE = 64, 1e-4
# The same of heat maps, in the largest value of a level; where the input of a ReLU behind the maps
# is nearly 0, either gradient is right, so they may differ more.
MAPS, MAP_TOLERANCE = 16, 1e-3
THUMBNAIL = 64  # the longer side of a small picture, in pixels
# The thresholds of a run are probabilities of its validation images, which round differently in the
# artefact; they are moved so far that these images stay on their side.
SLACK = 1e-5
MARGIN = 2**24  # bytes of an ONNX file beside its weights


class Extras(NamedTuple):
  """What an artefact may hold beside what it predicts with.

  Attributes:
    maps: the graph of its heat maps.
    similar: training images that others are compared with, at most; None for none.
    thumbnails: whether small pictures of these are in it.
    int8: points of full paths that it may lose on val by computing in int8; None for float32.
    licence: of the training images, for the model card.
  """

  maps: bool = False
  similar: int | None = None
  thumbnails: bool = False
  int8: float | None = None
  licence: str | None = None


def export(
  trained: Model,
  output: str | os.PathLike,
  say: Callable[[str], None],
  extras: Extras | None = None,
) -> dict:
  """Write a model as a folder that answers without jax, and check its answers.

  Args:
    trained: the model.
    output: the new folder.
    say: called with lines for the user.
    extras: what else it is to hold; None for nothing.

  Returns:
    The content of its hierjax.json.

  Raises:
    UserError: the folder exists, the model cannot be exported, or its answers differ.
  """
  output = pathlib.Path(output).expanduser()
  if output.exists() or output.is_symlink():
    raise UserError(f'--output={output}: exists; give a new folder, or remove it')
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = output.with_name(f'.{output.name}.{os.getpid()}')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  try:
    facts = _write(trained, partial, say, extras or Extras())
    os.rename(partial, output)
    files.sync(output.parent)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return facts


def _with_slack(rules):
  rules = dict(rules)
  if 'tags' in rules:
    rules['tags'] = {level: t - SLACK for level, t in rules['tags'].items()}
  if 'answer' in rules:
    answer = rules['answer']
    others = tuple(map(_raised, answer.others))
    rules['answer'] = answer._replace(
      backoff=answer.backoff and _raised(answer.backoff), others=others
    )
  if 'sets' in rules:
    rules['sets'] = rules['sets']._replace(limit=rules['sets'].limit + SLACK)
  return rules


def _raised(rule):
  rows = (tuple(t and t + SLACK for t in row) for row in rule.thresholds)
  return rule._replace(thresholds=tuple(rows))


def _write(run, folder, say, extras):
  trained = copy.copy(run)
  # several steps read the same splits
  trained.split = functools.cache(run.split)
  trained.rules = _with_slack(run.rules)
  size = sum(x.nbytes for x in jax.tree.leaves(trained.variables))
  if size > runtime.MAX_BYTES - MARGIN:
    raise UserError(f'export: {size / 2**30:.1f} GiB of weights; an ONNX file holds 2')
  model = program.onnx_model(trained)
  contents = {'model.onnx': model.SerializeToString(), runtime.WEIGHTS: program.weights(trained)}
  if extras.int8 is None:
    # what jax runs is float32
    contents['model.stablehlo'] = program.stablehlo(trained)
  if extras.maps:
    contents[runtime.MAPS] = program.maps_model(trained).SerializeToString()
  for name, content in contents.items():
    files.write(folder / name, content)
  trained.taxonomy.to_csv(folder / 'taxonomy.csv')
  rules.write_rules(folder / 'decode.json', trained.c.data.val, trained.rules, trained.taxonomy)
  decision = json_files.read_object(folder / 'decode.json')
  facts = papers.facts(trained, model, decision, extras.licence)
  _seal(folder, facts)
  exported = runtime.load(folder)
  facts['verified'] = verify(papers.in_float32(run), exported, say)
  if extras.int8 is not None:
    exported = _in_int8(trained, exported, folder, facts, extras.int8, say)
    contents['model.onnx'] = (folder / 'model.onnx').read_bytes()
  facts['maps'] = [*exported.map_levels] or None
  facts['similar'] = extras.similar and _write_similar(run, exported, extras, folder)
  files.write(folder / 'README.md', papers.card(facts, {n: len(c) for n, c in contents.items()}))
  files.write(folder / 'example.py', papers.example())
  _seal(folder, facts)
  return facts


def _in_int8(trained, exact, folder, facts, limit, say):
  """Put a graph in int8, with rules fitted by it, in the place of that in float32; returns it."""
  facts['precision'] = 'int8'

  def replace(model):
    graph = int8.quantise(program.onnx_model(model), _calibration(model, exact))
    files.write(folder / 'model.onnx', graph.SerializeToString())
    rules.write_rules(folder / 'decode.json', model.c.data.val, model.rules, model.taxonomy)
    facts['decision'] = json_files.read_object(folder / 'decode.json')
    _seal(folder, facts)
    return runtime.load(folder)

  first, final = int8.as_run(trained, replace(trained)), copy.copy(trained)
  fitted, notes = int8.fit_rules(first, trained.rules)
  first.rules = final.rules = _with_slack(fitted)
  exported = replace(final)
  verify(first, exported, say)
  facts['int8'] = int8.compare(trained, exact, exported)
  facts['metrics'] |= {f'{facts["int8"]["split"]}, int8': facts['int8']['int8']}
  for line in (*notes, *int8.check(facts['int8'], limit)):
    say(line)
  return exported


def _calibration(trained, exported) -> Iterator[np.ndarray]:
  """Batches of training images, as the graph reads them."""
  examples = trained.split(trained.c.data.train)
  rows = _even_rows(examples.labels, int8.IMAGES)
  for batch in image_groups.batches(
    map(examples.reader, rows.tolist()), exported.view, [int8.BATCH]
  ):
    yield batch.pixels[[i for i, error in enumerate(batch.errors) if not error] or [0]]


def _write_similar(trained, exported, extras, folder):
  """Write features of training images, and what is shown of each; returns what is in it."""
  examples = trained.split(trained.c.data.train)
  rows, features, entries = _even_rows(examples.labels, extras.similar), [], []
  for batch, outputs in exported._run((examples.reader(int(i)) for i in rows), None):
    features.append(neighbours.unit(outputs.outputs['features']))
    part, rows = np.split(rows, [len(batch.names)])
    entries += [_entry(trained, examples, row, extras) for row in part[outputs.index].tolist()]
  archive, texts = io.BytesIO(), json_files.dump(entries).encode()
  arrays = {'features': np.float16(np.concatenate(features)), 'entries': np.frombuffer(texts, 'u1')}
  np.savez(archive, **arrays)
  files.write(folder / runtime.SIMILAR, archive.getvalue())
  return {'images': len(entries), 'thumbnails': extras.thumbnails}


def _even_rows(labels, count):
  """Rows of so many examples, as many of each finest class as it has or as others have."""
  order = np.random.default_rng(0).permutation(len(labels))
  classes = labels[order, -1] if labels.shape[1] else np.zeros(len(order), int)
  by_class = np.argsort(classes, kind='stable')
  _, first, group = np.unique(classes[by_class], return_index=True, return_inverse=True)
  number = np.arange(len(order)) - first[group]  # of an example within its class
  return np.sort(order[by_class[np.argsort(number, kind='stable')[:count]]])


def _entry(trained, examples, row, extras):
  """What is shown of a training image: file, classes {level: name}, and a picture's address."""
  block = trained.taxonomy.block('exclusive')
  table = zip(block.levels, block.taxonomy.names, examples.labels[row]) if block else ()
  entry = {'file': examples.files[row]}
  entry['classes'] = {level: names[c] for level, names, c in table if c >= 0}
  if extras.thumbnails:
    resize = transforms.Resize.from_options(trained.c.data)
    picture = np.ascontiguousarray(explain.picture(examples, row, resize, THUMBNAIL))
    jpeg = base64.b64encode(simplejpeg.encode_jpeg(picture, quality=explain.QUALITY)).decode()
    entry['image'] = f'data:image/jpeg;base64,{jpeg}'
  return entry


def _seal(folder, facts):
  """Write hierjax.json, and manifest.json with the sha256 of every file."""
  files.write(folder / 'hierjax.json', json_files.dump(facts, indent=1) + '\n')
  digests = {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.iterdir())
    if path.name != runtime.MANIFEST
  }
  content = json_files.dump({'format': runtime.FORMAT, 'files': digests}, indent=1)
  files.write(folder / runtime.MANIFEST, content + '\n')


def verify(trained: Model, exported: runtime.Exported, say: Callable[[str], None]) -> dict:
  """Compare an exported model with its run on images of val and on drawn ones.

  Args:
    trained: the run, in float32.
    exported: the artefact.
    say: called with lines for the user.

  Returns:
    {'val': number of images, 'drawn': number, 'largest_difference': of probabilities}, and of a
    model with heat maps 'maps', see `_map_difference`.

  Raises:
    UserError: a probability differs by more than 1e-4, a heat map by more than a thousandth, or a
      decision.
  """
  rng, size = np.random.default_rng(0), trained.c.data.size
  shapes = rng.integers(4, 2 * size, (IMAGES, 2))
  images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
  try:
    examples = trained.split(trained.c.data.val)
    n = len(examples.labels)
    images += [
      examples.reader(int(i)) for i in np.unique(np.linspace(0, n - 1, IMAGES).astype(int))
    ]
  except (UserError, OSError) as e:
    say(f'note: compared on drawn images only, as val cannot be read: {e}')
  reference, probs = (model.probabilities(images) for model in (trained, exported))
  is_read = ~np.isnan(reference[trained.levels[-1]]).any(1)
  differences = [np.abs(reference[level] - probs[level])[is_read].max() for level in reference]
  largest = float(np.max(differences))
  if not largest <= TOLERANCE:
    raise UserError(
      f'export: the probabilities of the exported model differ from those of the run by up to '
      f'{largest:.2g}, more than {TOLERANCE:g}; nothing is written'
    )
  expected = _decided(trained, {level: p[is_read] for level, p in reference.items()})
  parts = [part.outputs for _, part in exported._run(images, runtime.BATCH_SIZE)]
  inside = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  results = [_decided(exported, {level: p[is_read] for level, p in probs.items()}), inside]
  for name, values in expected.items():
    for result in results:
      if name in result and not np.array_equal(values, result[name]):
        count = int((values != result[name]).reshape(len(values), -1).any(1).sum())
        raise UserError(f'export: {name} differs for {count} of {len(values)} images')
  facts = {'val': len(images) - IMAGES, 'drawn': IMAGES, 'largest_difference': largest}
  if exported.map_levels:
    facts['maps'] = _map_difference(trained, exported, images[:: len(images) // MAPS])
  return facts


def _map_difference(trained, exported, images):
  """Largest difference of heat maps from the run's Grad-CAM, by the largest value of a level."""
  batch = exported.view.batch([('', image) for image in images], len(images))
  outputs = exported.compute(batch)
  classes = {level: outputs.probs[level].argmax(1) for level in exported.map_levels}
  pixels = outputs.outputs['images']
  maps = exported.heat_maps(pixels, classes)
  grad_cam = jax.jit(explain.grad_cam, static_argnames='model')
  model = papers.in_float32(trained).classifier
  pixels = pixels[:, 0] if pixels.ndim == 5 else pixels
  _, expected = jax.device_get(grad_cam(jax.device_get(trained.variables), pixels, classes, model))
  differences = [
    np.abs(maps[level] - cams).max() / max(cams.max(), 1e-12) for level, cams in expected.items()
  ]
  largest = float(np.max(differences))
  if not largest <= MAP_TOLERANCE:
    raise UserError(
      f'--maps: the heat maps differ from those of the run by up to {largest:.2g} of the largest '
      f'value, more than {MAP_TOLERANCE:g}; nothing is written: export without'
    )
  return largest


def _decided(predictor, probs):
  """What a model decides, by the names of the graph's outputs."""
  decisions, out = predictor.decide(probs), {}
  if 'exclusive' in decisions:
    out['path'] = decisions['exclusive']['joint'].pred
  if 'tags' in decisions:
    table = predictor.taxonomy.table('tags')
    out |= {f'present/{k}': v for k, v in table.split(decisions['tags'].pred).items()}
  if 'answer' in decisions:
    out['answer'] = decisions['answer'].depth
    for risk in predictor.rules['answer'].risks:
      out[f'answer at risk {risk:g}'] = predictor.at_risk(risk).decide(probs)['answer'].depth
  if 'sets' in decisions:
    out['size of sets'] = np.array([len(leaves) for leaves in decisions['sets']])
  return out
