"""A trained run, loaded: predict images, evaluate splits, describe the model."""

import copy
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax.core import config as config_lib
from hierjax.core import files, parallel, plugins
from hierjax.core.errors import UserError
from hierjax.data import image_files, pipeline, sources, transforms
from hierjax.decide import novelty
from hierjax.evaluate import collect as evaluate
from hierjax.evaluate import example_images, explain
from hierjax.losses import multi
from hierjax.models import classifier, counts, heads, initializers, registry
from hierjax.report import runs
from hierjax.taxonomy import Mixed, Taxonomy, describe_difference, read_levels, read_taxonomy
from hierjax.train import checkpoint


def narrow(data: sources.Dataset, m: ConfigDict) -> tuple[sources.Dataset, tuple[str, ...]]:
  """The data as the heads of `config.model` can be judged by, and their levels: without the finest level the taxonomy ends at the finest head's."""
  taxonomy, own = data.taxonomy, data.taxonomy.exclusive
  levels = config_lib.head_levels(m, taxonomy.levels, taxonomy.multi)
  if not levels:
    raise UserError(
      f'--config.model.levels={",".join(m.levels)} names no level; choices: {", ".join(taxonomy.levels)}'
    )
  if not {*taxonomy.multi} <= {*levels}:
    raise UserError(
      f'--config.model.levels={",".join(m.levels)}, --config.model.heads={m.heads}: each of the multi levels needs a head: {", ".join(taxonomy.multi)}'
    )
  single = [level for level in levels if level not in taxonomy.multi]
  if own and not single:
    raise UserError(
      f'--config.model.levels={",".join(m.levels)} names no exclusive level; choices: {", ".join(own.levels)}'
    )
  if not own or single[-1] == own.levels[-1]:
    return data, levels
  short = taxonomy.coarsen(single[-1])
  if lost := [level for level in single if level not in short.levels]:
    raise UserError(
      f'--config.model.levels={",".join(m.levels)}: {single[-1]} does not determine {", ".join(lost)}; add the finest level, {own.levels[-1]}'
    )
  columns = [own.index(level) for level in short.exclusive.levels]
  splits = {k: dataclasses.replace(v, labels=v.labels[:, columns]) for k, v in data.splits.items()}
  return dataclasses.replace(data, taxonomy=short, splits=splits), levels


class Model:
  """A trained classifier. Make one with `load`."""

  def __init__(self, workdir: pathlib.Path, c: ConfigDict, taxonomy: Taxonomy | Mixed):
    config_lib.validate(c, {'model.backbone': registry.BACKBONES, 'model.heads': heads.HEADS})
    self.workdir, self.c, self.mesh, self.taxonomy = workdir, c, parallel.mesh(), taxonomy
    if not taxonomy.exclusive:
      config_lib.check_multi(c, taxonomy.levels)
    self.levels = config_lib.head_levels(c.model, taxonomy.levels, taxonomy.multi)
    self.classifier = classifier.build(c, self.taxonomy, self.levels)
    fresh = initializers.init(self.classifier, 0)
    fresh = {'params': fresh['params'], 'batch_stats': fresh.get('batch_stats', {})}
    store = checkpoint.Checkpoints(
      workdir / 'checkpoints', evaluate.best_metric(c.train.best, taxonomy, self.levels)
    )
    part = 'ema' if c.optim.ema else 'model'
    self.step, loaded = store.load_best(
      {part: parallel.put_replicated(fresh, self.mesh)}, c.eval.checkpoint == 'best'
    )
    store.close()
    for text in store.said:
      print(text, file=sys.stderr)
    self.variables = loaded[part]
    self.eval_step = evaluate.stepper(self.classifier, self.mesh, taxonomy)
    self.heads_step = jax.jit(
      lambda variables, features: self.classifier.apply(variables, features)[0]
    )
    self.weights = (
      joint_weights(workdir / 'decode.json', taxonomy.exclusive) if taxonomy.exclusive else {}
    )
    self.thresholds = (
      multi_thresholds(workdir / 'decode.json', taxonomy.several) if taxonomy.several else {}
    )

  def collect(self, examples: sources.Examples, **options) -> evaluate.Outputs:
    return evaluate.collect(
      self.eval_step, self.variables, examples, self.c, self.mesh, self.c.eval.tta, **options
    )

  def evaluate(
    self,
    split: str,
    examples: sources.Examples | None = None,
    tune: bool = False,
    progress: Callable[[int, int], None] | None = None,
    into: pathlib.Path | None = None,
    beside: Sequence['Model'] = (),
  ) -> dict:
    """Metrics of a split of the configured data, also written to eval_SPLIT.json in the run's folder, or in `into`.

    With `tune` the joint decision's weights and the thresholds of multi levels are chosen on this split first and kept for later; training does so on
    val, once. The heads of the models `beside` it stand in for those that this one lacks: single-task models taken together.
    """
    examples = examples or self.split(split)
    outputs = self.collect(examples, progress=progress, with_features=bool(self.c.eval.novelty))
    for other in beside:
      theirs = other.collect(other.split(split))
      assert np.array_equal(theirs.index, outputs.index), (
        f'{other.workdir} and {self.workdir} see other examples'
      )
      outputs.probs = theirs.probs | outputs.probs
    own, several = self.taxonomy.exclusive, self.taxonomy.several
    if tune:
      kept = {}
      if own:
        kept['weights'] = self.weights = evaluate.tune(outputs, own)
      if several:
        self.thresholds = multi.tune(outputs.probs, outputs.multi, several)
        kept['thresholds'] = {
          level: dict(zip(names, self.thresholds[level].tolist()))
          for level, names in zip(several.levels, several.names)
        }
      if parallel.first():
        files.write(
          self.workdir / 'decode.json', json.dumps({'split': split, **kept}, indent=2) + '\n'
        )
    result = evaluate.summary(
      split, outputs, self.taxonomy, self.c.eval.tta, self.weights, self.thresholds
    )
    if self.c.eval.novelty:
      if not own:
        raise UserError(
          '--config.eval.novelty: is for exclusive levels; an image of a multi level may have none of its classes'
        )
      if beside:
        raise UserError(
          '--config.eval.novelty: needs the features of one model, not of several side by side'
        )
      novelty.evaluate(self, split, outputs, result, into or self.workdir)
    evaluate.write(into or self.workdir, result, outputs, self.taxonomy, examples)
    return result

  def logits(self, features: np.ndarray) -> dict[str, np.ndarray]:
    """{level with a head: float64 [N, C]} of features [N, d]."""
    return {
      level: np.asarray(l, np.float64)
      for level, l in jax.device_get(
        self.heads_step(self.variables, np.asarray(features, np.float32))
      ).items()
    }

  def explain(self, split: str, examples: sources.Examples | None = None) -> None:
    """DIR/explain_SPLIT.npz, from which the report shows single images: by process 0 alone, on its first device, after `evaluate`.
    Nothing of multi levels."""
    if not parallel.first() or not self.taxonomy.exclusive:
      return
    examples = examples or self.split(split)
    with np.load(self.workdir / f'predictions_{split}.npz') as archive:
      predictions = dict(archive)
    places = {file: i for i, file in enumerate(examples.files)}
    if lost := [file for file in predictions['files'].tolist() if file not in places]:
      raise UserError(
        f'{lost[0]}: in predictions_{split}.npz but no longer in split {split!r} of the data; --mode=evaluate --split={split} makes them anew'
      )
    at, c = np.array([places[file] for file in predictions['files'].tolist()]), self.c

    def batches(rows):
      few = sources.Examples(
        split,
        [examples.files[i] for i in at[rows]],
        examples.labels[at[rows]],
        lambda i: examples.reader(int(at[rows[i]])),
      )
      return pipeline.eval_batches(
        few,
        batch_size=c.eval.batch_size,
        size=c.data.size,
        resize=c.data.resize,
        threads=c.data.threads,
      )

    def picture(row):
      try:
        image = transforms.decode(examples.reader(int(at[row])))
      except (transforms.BrokenImage, OSError):
        return None
      # stretched to a square, the model still sees the whole: the picture is shown as it is
      if c.data.resize != 'squash':
        return transforms.eval_transform(image, explain.SIDE, c.data.resize)
      scale = min(1.0, explain.SIDE / max(image.shape[:2]))
      return cv2.resize(
        image, [max(1, round(n * scale)) for n in image.shape[1::-1]], interpolation=cv2.INTER_AREA
      )

    explain.write(
      self.workdir,
      split,
      predictions,
      self.taxonomy.exclusive,
      self.classifier,
      jax.device_get(self.variables),
      batches,
      picture,
    )

  def splits(self) -> dict[str, sources.Examples]:
    """The splits of the configured data, which must have this model's taxonomy; where they bring none, their labels are read by the model's."""
    options = copy.deepcopy(self.c.data)
    # with held-out classes, the labels name more than the model knows; a multi level beside their taxonomy is one that they do not bring
    if options.root and not options.hold_out and not options.taxonomy:
      brought, own = (
        pathlib.Path(options.root).expanduser() / 'taxonomy.csv',
        self.taxonomy.exclusive,
      )
      if not brought.exists() or (
        own and self.taxonomy.several and own.levels == tuple(read_levels(brought)[0])
      ):
        options.taxonomy = str(self.workdir / 'taxonomy.csv')
    data = sources.load(options)
    if gone := [level for level in self.levels if level not in data.taxonomy.levels]:
      raise UserError(
        f'the data have another taxonomy than {self.workdir}: no level {", ".join(gone)}, only {", ".join(data.taxonomy.levels)}'
      )
    data, _ = narrow(data, self.c.model)
    if data.taxonomy.hash() != self.taxonomy.hash():
      raise UserError(
        f'the data have another taxonomy than {self.workdir}: {describe_difference(self.taxonomy, data.taxonomy)}; a run for it: '
        f'--mode=migrate --from={self.workdir} --taxonomy=NEW.csv --workdir=NEWRUN'
      )
    return data.splits

  def split(self, name: str) -> sources.Examples:
    """One of splits(); UserError where there is none of that name."""
    splits = self.splits()
    if name not in splits:
      raise UserError(
        f'--split={name}: no such split{config_lib.did_you_mean(name, list(splits))}; choices: {", ".join(splits)}'
      )
    return splits[name]

  def predict(
    self,
    images: Sequence[str | pathlib.Path | bytes | np.ndarray],
    top: int = 5,
    batch_size: int = 0,
  ) -> list[dict]:
    """One dict per image (a path, encoded bytes, or uint8 [h, w, 3] in RGB), batch_size at a time (0 = eval.batch_size).

    {'file', 'path': {LEVEL: class}, 'prob': {LEVEL: probability of that class over all valid paths}, 'top': {LEVEL: [[class, probability of the head], ...]}};
    of multi levels also or instead 'classes': {LEVEL: [class, ...]}, by the thresholds that were tuned on val, and in 'prob' {LEVEL: {class: probability}};
    an image that cannot be read gives {'file', 'error'}. With eval.novelty also 'new': 'new under dog', 'new at the top' or '' for an image of known classes,
    and 'novelty': {LEVEL: [score, threshold or None]}: the path is then that of the known classes it is most like.
    """
    if isinstance(images, str | pathlib.Path | bytes):
      raise UserError(
        f'predict takes a list of images, not {type(images).__name__}: predict([...])'
      )
    t, several = self.taxonomy.exclusive, self.taxonomy.several
    files = [
      str(x) if isinstance(x, str | pathlib.Path) else f'image {i}' for i, x in enumerate(images)
    ]
    items = list(images)
    examples = sources.Examples(
      'predict',
      files,
      np.full((len(items), len(t.levels) if t else 0), -1, np.int32),
      Reader(items),
    )
    if not items:
      return []
    detector = novelty.load(self, self.workdir) if self.c.eval.novelty else None
    out = self.collect(
      examples, batch_size=batch_size, may_be_empty=True, with_features=detector is not None
    )
    results = [{'file': f, 'error': 'unreadable image'} for f in files]
    if not len(out.index):
      return results
    decoded = evaluate.decodings(out, t, self.weights)
    found = detector.decide(novelty.seen(self, out), self.c.eval.novelty) if detector else None
    if several:
      decided = multi.decide(
        multi.join(out.probs, several),
        multi.join(self.thresholds, several),
        several,
        evaluate.fitting(decoded, self.taxonomy),
      )
      there = multi.split(decided, several)
    for row, i in enumerate(out.index):
      results[i], prob = {'file': files[i]}, {}
      if t:
        joint, best = decoded['joint'], {}
        path = {level: t.names[k][joint.pred[row, k]] for k, level in enumerate(t.levels)}
        prob |= {
          level: round(float(joint.prob[k][row, joint.pred[row, k]]), 6)
          for k, level in enumerate(t.levels)
        }
        for level in self.levels:
          if level in t.levels:
            p = out.probs[level][row]
            best[level] = [
              [t.names[t.index(level)][j], round(float(p[j]), 6)]
              for j in np.argsort(-p, kind='stable')[:top]
            ]
        results[i] |= {'path': path, 'prob': prob, 'top': best}
      for level, names in zip(several.levels, several.names) if several else ():
        prob[level] = {n: round(float(p), 6) for n, p in zip(names, out.probs[level][row])}
        results[i].setdefault('classes', {})[level] = [
          n for n, yes in zip(names, there[level][row]) if yes
        ]
      results[i]['prob'] = prob
      if found:
        new, scores, thresholds = (of[row] for of in found)
        results[i] |= {
          'new': detector.words(int(new), joint.pred[row]),
          'novelty': {
            level: [round(float(s), 6), round(float(h), 6) if np.isfinite(h) else None]
            for level, s, h in zip(t.levels, scores, thresholds)
          },
        }
    return results


class Reader:
  """Reads item i of a list of paths, encoded bytes or arrays; a class so that worker processes can receive it."""

  def __init__(self, items: Sequence):
    self.items = items

  def __call__(self, i: int) -> bytes | np.ndarray:
    item = self.items[i]
    return image_files.read_file(item) if isinstance(item, str | pathlib.Path) else item


def load(workdir: str | pathlib.Path, c: ConfigDict | None = None) -> Model:
  """The model trained in `workdir`. `c` is its own configuration with what evaluation may change (data, eval), or None."""
  workdir = pathlib.Path(workdir)
  c = c or run_config(workdir)
  plugins.refuse_inside(c.plugins, workdir)
  return Model(workdir, c, read_taxonomy(workdir / 'taxonomy.csv', c.data.multi))


def run_config(workdir: pathlib.Path) -> ConfigDict:
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(
      f'{workdir}: not a run (no config.json); give the --workdir that was trained in'
    )
  try:
    return config_lib.from_json(path.read_text())
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: is damaged ({e.reason})') from None
  except UserError as e:
    raise UserError(f'{path}: {e}') from None


def joint_weights(path: pathlib.Path, taxonomy: Taxonomy) -> dict[str, float]:
  """{level: weight of its head in the joint decision} as training left it; 1 for each where it never came to that."""
  if not path.exists():
    return dict.fromkeys(taxonomy.levels, 1.0)
  try:
    weights = {
      level: float(json.loads(path.read_text())['weights'][level]) for level in taxonomy.levels
    }
    if not all(0 <= w < np.inf for w in weights.values()):
      raise ValueError(f'weights {weights}')
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{path}: is damaged ({type(e).__name__}: {e}); without this file every head weighs 1'
    ) from None
  return weights


def multi_thresholds(path: pathlib.Path, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
  """{multi level: float64 [C]} as training tuned them on val; .5 for each class where it never came to that."""
  if not path.exists():
    return {level: np.full(taxonomy.num_classes(level), 0.5) for level in taxonomy.levels}
  try:
    found = json.loads(path.read_text())['thresholds']
    return {
      level: np.array([float(found[level][name]) for name in names])
      for level, names in zip(taxonomy.levels, taxonomy.names)
    }
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{path}: is damaged ({type(e).__name__}: {e}); without this file every threshold is .5'
    ) from None


def complete(
  workdir: str | pathlib.Path, c: ConfigDict, progress: Callable[[int, int], None] | None = None
) -> None:
  """Makes what the report shows and the run lacks: the evaluation of the first split, or of val, and what `explain` leaves."""
  workdir, run = pathlib.Path(workdir), runs.read(workdir, baseline=False)
  split, own = run.splits[0] if run.splits else c.data.val, run.exclusive
  if not own and run.splits:  # there are no single images to show
    return
  evaluated = own and own.predicted is not None and example_images.head_columns(own.predicted)
  if evaluated and example_images.is_current(workdir, split):
    return
  model = load(workdir, c)
  examples = model.split(split)
  if not evaluated:
    model.evaluate(
      split,
      examples,
      tune=split == c.data.val and not (workdir / 'decode.json').exists(),
      progress=progress,
    )
  model.explain(split, examples)


def expand(pattern: str) -> list[str]:
  """Files of a glob, a folder or a file, sorted."""
  path = pathlib.Path(pattern).expanduser()
  if path.name == '**':
    path /= '*'
  try:
    if path.is_dir():
      found = [p for p in path.rglob('*') if p.suffix.lower() in image_files.IMAGE_SUFFIXES]
    elif os.path.lexists(path):
      found = [path]
    else:  # pathlib's ** does not follow links, which may lead in a circle
      found = [
        p
        for p in pathlib.Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        if not p.name.startswith('.')
      ]
  except (OSError, ValueError) as e:
    raise UserError(f'--images={pattern}: {e}') from None
  if not found:
    raise UserError(f'--images={pattern}: no file matches')
  return [str(p) for p in sorted(found)]


def stream(model: Model, pattern: str) -> Iterator[dict]:
  """Predictions of all files of a pattern, a batch at a time."""
  files = expand(pattern)
  size = min(
    model.c.eval.batch_size, 1 << (len(files) - 1).bit_length()
  )  # one size for all, so that it compiles once
  for i in range(0, len(files), size):
    yield from model.predict(files[i : i + size], batch_size=size)


def describe(c: ConfigDict) -> dict:
  """{'trunk_params', 'params', 'macs', 'thop_macs' (at data.size), 'heads': {LEVEL or 'shared': params}} of the configured model."""
  config_lib.validate(c, {'model.backbone': registry.BACKBONES, 'model.heads': heads.HEADS})
  data, levels = narrow(sources.load(c.data), c.model)
  if not data.taxonomy.exclusive:
    config_lib.check_multi(c, levels)
  model = classifier.build(c, data.taxonomy, levels)
  variables, size = counts.shapes(model, c.data.size), counts.parameters
  params = variables['params']
  return {
    'trunk_params': size({k: v for k, v in params.items() if k != 'heads'}),
    'params': size(params),
    'macs': counts.macs(model, variables, c.data.size),
    'thop_macs': counts.thop_macs(
      model, c.data.size, registry.BACKBONES[c.model.backbone].uncounted
    ),
    'heads': {
      name: size(params['heads'][name])
      for name in [*levels, *sorted({*params['heads']} - {*levels})]
    },
  }
