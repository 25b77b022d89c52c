"""The folder of an exported model: written whole or not at all, and checked against its run."""

import base64
import copy
import dataclasses
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
from hierjax.decide.novelty_scores import FEATURE_SCORES
from hierjax.evaluate import explain, neighbours, novelty, rules
from hierjax.export import papers, precision, program
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
    int8, fp16: points of full paths that it may lose on val by computing so; one of them at most,
      None for float32.
    licence: of the training images, for the model card.
  """

  maps: bool = False
  similar: int | None = None
  thumbnails: bool = False
  int8: float | None = None
  licence: str | None = None
  fp16: float | None = None

  @property
  def lowered(self) -> dict[str, float]:
    """What is computed in less than float32, {name: points that it may lose}."""
    limits = {'int8': self.int8, 'fp16': self.fp16}
    return {name: limit for name, limit in limits.items() if limit is not None}


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
  if extras and len(extras.lowered) > 1:
    raise UserError(f'{" and ".join(f"--{x}" for x in extras.lowered)}: give one of them')
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
  if not extras.lowered:
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
  if facts['novelty']:
    _write_detector(trained, folder, extras)
  _seal(folder, facts)
  exported = runtime.load(folder)
  facts['verified'] = verify(papers.in_float32(run), exported, say)
  for name, limit in extras.lowered.items():
    exported = _lower(trained, exported, folder, facts, name, limit, say)
    contents['model.onnx'] = (folder / 'model.onnx').read_bytes()
  facts['maps'] = [*exported.map_levels] or None
  facts['similar'] = extras.similar and _write_similar(run, exported, extras, folder)
  files.write(folder / 'README.md', papers.card(facts, {n: len(c) for n, c in contents.items()}))
  files.write(folder / 'example.py', papers.example())
  _seal(folder, facts)
  return facts


def _write_detector(trained, folder, extras):
  """Write what detects new classes, by scores of features alone: a graph has no logits."""
  for name in extras.lowered:
    raise UserError(
      f'--{name}: new classes are detected in the features of the run, which are others in {name}; '
      f'export with --config.decide.novelty=None, or without --{name}'
    )
  detector = trained.detector()
  of_logits = sorted({*detector.scores} - {*FEATURE_SCORES})
  if of_logits:
    raise UserError(
      f'--config.decide.novelty_score: {", ".join(of_logits)} is computed from logits, which an '
      f'exported model does not have; choices: auto, {", ".join(FEATURE_SCORES)}; or export with '
      '--config.decide.novelty=None'
    )
  detector = _with_raised_thresholds(detector)
  score = trained.c.decide.novelty_score
  novelty.write_detector(folder / novelty.FILE, detector, trained.step, score)


def _with_raised_thresholds(detector):
  """The detector to write: a calibration image, whose score a threshold is, stays below it."""
  models = {}
  for k, model in detector.models.items():
    # most of the file: a number for each pair of features
    models[k] = dataclasses.replace(model, white=model.white.astype(np.float32))
  reference, finer = (
    {key: scores + SLACK * np.abs(scores) for key, scores in part.items()}
    for part in (detector.reference, detector.finer)
  )
  return dataclasses.replace(detector, models=models, reference=reference, finer=finer)


def _lower(trained, exact, folder, facts, name, limit, say):
  """Put a graph in int8 or fp16, with rules fitted by it, in the place of that in float32."""
  facts['precision'] = name

  def replace(model):
    graph = program.onnx_model(model)
    is_int8 = name == 'int8'
    graph = (
      precision.quantise(graph, _calibration(model, exact)) if is_int8 else precision.halve(graph)
    )
    files.write(folder / 'model.onnx', graph.SerializeToString())
    rules.write_rules(folder / 'decode.json', model.c.data.val, model.rules, model.taxonomy)
    facts['decision'] = json_files.read_object(folder / 'decode.json')
    _seal(folder, facts)
    return runtime.load(folder)

  first, final = precision.as_run(trained, replace(trained)), copy.copy(trained)
  fitted, notes = precision.fit_rules(first, trained.rules)
  first.rules = final.rules = _with_slack(fitted)
  exported = replace(final)
  verify(first, exported, say)
  facts[name] = compared = precision.compare(trained, exact, exported, name)
  facts['metrics'] |= {f'{compared["split"]}, {name}': compared[name]}
  for line in (*notes, *precision.check(compared, name, limit)):
    say(line)
  return exported


def _calibration(trained, exported) -> Iterator[np.ndarray]:
  """Batches of training images, as the graph reads them."""
  examples = trained.split(trained.c.data.train)
  rows = _even_rows(examples.labels, precision.IMAGES)
  for batch in image_groups.batches(
    map(examples.reader, rows.tolist()), exported.view, [precision.BATCH]
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
  parts = [part.outputs for _, part in exported._run(images, runtime.BATCH_SIZE)]
  inside = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  reference, probs = (
    {level: p[is_read] for level, p in probs.items()} for probs in (reference, probs)
  )
  _check_decisions(trained, exported, reference, [_decided(exported, probs), inside])
  if exported.facts['novelty']:
    new = [[record.get('new') for record in model.predict(images)] for model in (trained, exported)]
    count = sum(a != b for a, b in zip(*new))
    if count:
      raise UserError(f'export: {count} of {len(images)} images are of a new class in one alone')
  facts = {'val': len(images) - IMAGES, 'drawn': IMAGES, 'largest_difference': largest}
  if exported.map_levels:
    facts['maps'] = _map_difference(trained, exported, images[:: len(images) // MAPS])
  return facts


def _check_decisions(trained, exported, probs, results):
  """Refuse results that are not what a run decides, by its probabilities [n, C] of each level.

  Between a threshold and the one that was moved off it, either decision is right.
  """
  raised = copy.copy(trained)
  raised.rules = exported.rules
  expected = [_decided(model, probs) for model in (trained, raised)]
  for result in results:
    for name in [name for name in expected[0] if name in result]:
      n = len(result[name])
      differs = [(values[name] != result[name]).reshape(n, -1).any(1) for values in expected]
      count = int(np.all(differs, 0).sum())
      if count:
        raise UserError(f'export: {name} differs for {count} of {n} images')


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
      out[f'answer/{risk:g}'] = predictor.at_risk(risk).decide(probs)['answer'].depth
  if 'sets' in decisions:
    out['size of sets'] = np.array([len(leaves) for leaves in decisions['sets']])
  return out
