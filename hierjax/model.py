"""A trained model: from images to probabilities, decisions and evaluations."""

import copy
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import decide
from hierjax.core import archives, config, files, json_files, parallel, plugins, terminal
from hierjax.core.errors import UserError, did_you_mean
from hierjax.data import decoding, image_groups, sources, split_record, transforms
from hierjax.data.image_groups import Batch
from hierjax.data.levels import restrict
from hierjax.data.splits import NOVEL
from hierjax.decide import drift
from hierjax.decide.decisions import Decisions
from hierjax.decide.nodes import level_logits
from hierjax.decide.novelty import Detector, Evidence
from hierjax.evaluate import (
  answers,
  calibration_sample,
  collect,
  explain,
  novelty,
  programs,
  rules,
  summary,
)
from hierjax.evaluate.collect import Outputs
from hierjax.evaluate.predictor import Predictor
from hierjax.models import adapting, classifier, heads, registry
from hierjax.taxonomy import (
  Mixed,
  Taxonomy,
  aliases,
  describe_difference,
  read_levels,
  read_taxonomy,
)
from hierjax.train import checkpoint

# Batches of few images are no larger than they need be: a program is compiled for each size.
GROWTH = 4


class Model(Predictor):
  """A trained classifier; `load` makes one.

  Attributes:
    workdir: the folder of its run.
    c: its configuration.
    mesh: the devices it runs on.
    taxonomy: its levels.
    levels: those that have a head.
    classifier: the Flax module.
    variables: of the module, on the devices.
    step: of the checkpoint that they are from.
    rules: how it decides, see `hierjax.decide.decisions`.
  """

  def __init__(self, workdir: pathlib.Path, c: ConfigDict, taxonomy: Taxonomy | Mixed):
    """Build the classifier and read its checkpoint; use `load`."""
    config.validate(c, {'model.backbone': registry.BACKBONES, 'model.heads': heads.HEADS})
    if not taxonomy.block('exclusive'):
      config.check_multi(c, taxonomy.levels)
    self.workdir, self.c, self.mesh, self.taxonomy = workdir, c, parallel.mesh(), taxonomy
    self.levels = config.head_levels(c.model, taxonomy.levels, taxonomy.multi)
    self.classifier = classifier.build(c, taxonomy, self.levels)
    self.eval_step = programs.stepper(self.classifier, self.mesh, taxonomy, self.c)
    part = 'ema' if c.optim.ema else 'model'
    checkpoints = checkpoint.Checkpoints(
      workdir / 'checkpoints', summary.best_metric(c.train.best, taxonomy, self.levels)
    )
    variables = programs.variables(self.eval_step, self.classifier, self.mesh)
    self.step, loaded = checkpoints.load_best({part: variables}, c.eval.checkpoint == 'best')
    checkpoints.close()
    for note in checkpoints.notes:
      terminal.say(note)
    self.variables = loaded[part]
    if c.model.lora_rank:
      self.variables = adapting.merge(self.variables, classifier.lora_scale(c.model))
      self.c = copy.deepcopy(c)
      self.c.model.lora_rank = self.c.model.lora_alpha = None
      self.classifier = classifier.build(self.c, taxonomy, self.levels)
      self.eval_step = programs.stepper(self.classifier, self.mesh, taxonomy, self.c)
    self._head_step = jax.jit(
      lambda variables, features, level: self.classifier.apply(variables, features)[0][level],
      static_argnums=2,
    )
    self._sample = self._detector = None
    self.rules = rules.read_rules(workdir / 'decode.json', taxonomy, self.levels)

  def _network(self):
    digest = hashlib.sha256()
    for path, x in jax.tree.leaves_with_path(jax.device_get(self.variables)):
      digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(x).tobytes())
    data, options = self.c.data, self.c.decide
    views = data.size, data.resize, data.deep_range, self.c.eval.tta
    return digest.hexdigest(), views, options.novelty, options.novelty_score, self.c.model.dtype

  def collect(self, examples: sources.Examples, **options) -> Outputs:
    """Run the model over examples; the options are those of `evaluate.collect.collect`."""
    return collect.collect(
      self.eval_step, self.variables, examples, self.c, self.mesh, self.c.eval.tta, **options
    )

  def collect_decided(self, examples: sources.Examples, **options) -> Outputs:
    """Run the model over examples and decide on each batch, see `Outputs.reduce`."""
    return self.collect(
      examples, reduction=lambda x: x.reduce(self.taxonomy, self.rules), **options
    )

  def _run(self, images, batch_size) -> Iterator[tuple[Batch, Outputs]]:
    block, data, views = self.taxonomy.block('exclusive'), self.c.data, self.c.eval.tta
    how = decoding.Decoding(data.max_pixels, data.deep_range)
    resize = transforms.Resize.from_options(data)
    view = image_groups.View(data.size, resize, views, data.max_bytes, how)
    sizes = [collect.rows(batch_size or self.c.eval.batch_size, views, self.mesh)]
    while not batch_size and sizes[0] > self.mesh.size:
      sizes.insert(0, max(self.mesh.size, sizes[0] // GROWTH // self.mesh.size * self.mesh.size))
    batches = image_groups.batches(images, view, sizes, data.threads, data.workers)
    width = len(block.levels) if block else 0
    yield from collect.stream(
      self.eval_step, self.variables, batches, self.mesh, width, self._uses_features
    )

  @property
  def _uses_features(self) -> bool:
    """Whether something is detected in features, or guaranteed for images like those before."""
    is_used = self.c.decide.novelty or self.c.decide.risk or self.rules.get('answer')
    return self.taxonomy.block('exclusive') is not None and bool(is_used)

  def logits(self, features: np.ndarray, level: str) -> np.ndarray:
    """Compute the logits of a level that has a head from features.

    Args:
      features: float [N, d].
      level: its name.

    Returns:
      float64 [N, C].
    """
    logits = self._head_step(self.variables, np.asarray(features, np.float32), level)
    return np.asarray(logits, np.float64)

  def evaluate(
    self,
    split: str,
    examples: sources.Examples | None = None,
    tune: bool = False,
    progress: Callable[[int, int], None] | None = None,
    into: pathlib.Path | None = None,
    outputs: Outputs | None = None,
  ) -> dict:
    """Evaluate a split and write eval_SPLIT.json and predictions_SPLIT.npz.

    Args:
      split: its name.
      examples: its content; None to load it.
      tune: whether to choose the rules of the decisions on this split first, and keep them for
        later; training does so once, on the validation split.
      progress: called with the numbers of images that are done and that there are.
      into: the folder of the files; None for the run's.
      outputs: what this model computes for the examples; None to compute it.

    Returns:
      The content of eval_SPLIT.json.

    Raises:
      UserError: the split cannot be read, or decide.novelty does not go with the levels.
    """
    examples, into = examples or self.split(split), into or self.workdir
    outputs = self._fit_and_decide(split, examples, tune, progress, outputs)
    outputs, subset = summary.within_subset(outputs, self.taxonomy, self.rules)
    decisions = outputs.decide(self.taxonomy, self.rules)
    arguments = outputs, decisions, self.taxonomy, self.rules, self.c.eval.tta
    result = summary.summarize(split, *arguments) | subset
    if self._uses_features:
      self._evaluate_drift(split, outputs, decisions, result)
    if self.c.decide.novelty:
      self._evaluate_novelty(split, outputs, decisions, result, into)
    if parallel.first():
      summary.write(into, result, outputs, decisions, self.taxonomy, examples.files)
    return result

  def _fit_and_decide(self, split, examples, tune, progress, outputs) -> Outputs:
    """Fit the rules that are to be fitted, and return the reduced outputs of the split by them."""
    options = {'progress': progress, 'with_features': self._uses_features}
    calibration = answers.calibration_split(self.c, self.rules, tune)
    to_fit = examples if outputs else collect.to_fit(examples, self.taxonomy)
    if outputs is None and (tune or calibration == split):
      outputs = self.collect(to_fit, **options)
    if tune:
      self.rules = decide.tune(outputs.probs, outputs.labels, self.taxonomy)
    if calibration:
      self._fit_answers(calibration, outputs if calibration == split else None)
    if parallel.first() and (tune or (calibration and self.rules['exclusive'].allowed is None)):
      rules.write_rules(self.workdir / 'decode.json', self.c.data.val, self.rules, self.taxonomy)
    if outputs is None or to_fit is not examples:
      return self.collect_decided(examples, **options)
    return outputs.reduce(self.taxonomy, self.rules)

  def _fit_answers(self, split: str, outputs: Outputs | None):
    """Fit what calibration images are for; their outputs are computed where there are none."""
    if outputs is None:
      examples = collect.to_fit(self.split(split), self.taxonomy)
      outputs = self.collect(examples, with_features=self._uses_features)
    outputs, _ = summary.within_subset(outputs, self.taxonomy, self.rules)
    self.rules, notes = answers.fit(outputs, self.taxonomy, self.rules, self.c, split)
    for note in notes:
      terminal.say(note)
    self._keep_calibration(outputs)

  def _evidence(self, outputs: Outputs, decisions: Decisions | None = None) -> Evidence:
    """Collect what the novelty detector reads of outputs with features."""
    block = self.taxonomy.block('exclusive')
    decisions = decisions or outputs.decide(self.taxonomy, self.rules)
    return Evidence(
      level_logits(self.logits, self.levels, block.taxonomy),
      outputs.features,
      decisions['exclusive']['joint'].pred,
      outputs.labels[:, block.columns],
    )

  def detector(self, folder: pathlib.Path | None = None) -> Detector:
    """Read the novelty detector that `evaluate` has written with decide.novelty.

    Args:
      folder: where it was written; None for the run's.

    Raises:
      UserError: there is none, or it is not one of this model.
    """
    folder = folder or self.workdir
    table, val = self.taxonomy.table('exclusive'), self.c.data.val
    try:
      return novelty.read_detector(
        folder / novelty.FILE, table, self.step, self.c.decide.novelty_score
      )
    except UserError as e:
      raise UserError(
        f'{e}; hierjax evaluate --split={val} --config.decide.novelty={self.c.decide.novelty} '
        f'--workdir={folder} makes it'
      ) from None

  def _fit_detector(self, outputs: Outputs | None, folder: pathlib.Path) -> Detector:
    """Fit a novelty detector on train and val and write it; outputs are those of val, if there."""
    table, score = self.taxonomy.table('exclusive'), self.c.decide.novelty_score
    splits = self._data()[0].splits
    train = self.collect_decided(splits[self.c.data.train], with_features=True)
    outputs = outputs or self.collect_decided(splits[self.c.data.val], with_features=True)
    val, name = self._evidence(outputs), answers.calibration_images(self.c)
    if name != self.c.data.val:
      outputs = self.collect_decided(splits[name], with_features=True)
    else:
      terminal.say(f'note: novelty is calibrated on {name}, which chose the checkpoint, too')
    self._keep_calibration(outputs)
    calibration = self._evidence(outputs)
    detector = Detector.fit(self._evidence(train), val, table, score, calibration)
    if parallel.first():
      novelty.write_detector(folder / novelty.FILE, detector, self.step, score)
    self._detector = None
    return detector

  def _evaluate_novelty(self, split, outputs, decisions, result, folder):
    """Add the metrics of novelty detection to a result; fit the detector where that is needed."""
    if split == self.c.data.val:
      detector = self._fit_detector(outputs, folder)
    else:
      try:
        detector = self.detector(folder)
      except UserError:
        detector = self._fit_detector(None, folder)
    novel_examples = self._data()[0].splits.get(split + NOVEL)
    novel = None
    if novel_examples is not None:
      novel = self._evidence(self.collect_decided(novel_examples, with_features=True))
    inliers = self._evidence(outputs, decisions)
    measured = novelty.measure(detector, inliers, novel, self.c.decide.novelty)
    measured['split'] = answers.calibration_images(self.c)
    novelty.add_to_summary(result, measured)

  def _keep_calibration(self, outputs: Outputs):
    """Keep a sample of calibration images, with which those to come are compared."""
    if outputs.features is None or self.rules['exclusive'].allowed is not None:
      return
    table = self.taxonomy.table('exclusive')
    sample = self._sampled(outputs, outputs.decide(self.taxonomy, self.rules), None)
    if parallel.first():
      calibration_sample.write(self.workdir, sample, table, self.step)

  def _sampled(self, outputs, decisions, before):
    sizes = [len(names) for names in self.taxonomy.table('exclusive').names]
    return drift.sample(outputs.features, decisions['exclusive']['joint'].pred, sizes, before)

  def _compared(self, sample: drift.Sample | None) -> dict | None:
    """Say how a sample differs from the calibration images; None where that is unknown."""
    if sample is None or self.rules['exclusive'].allowed is not None:
      return None
    table = self.taxonomy.table('exclusive')
    reference = calibration_sample.read(self.workdir, table, self.step)
    result = reference and drift.compare(reference, sample)
    return result and calibration_sample.to_json(result, table)

  def _evaluate_drift(self, split, outputs, decisions, result):
    """Add whether the images of a split look like those of calibration."""
    if split == answers.calibration_images(self.c) or outputs.features is None:
      return
    result['drift'] = self._compared(self._sampled(outputs, decisions, None))
    if result['drift'] and not result['drift']['is_alike']:
      terminal.say(result['drift']['text'])

  def drift_note(self) -> str:
    """Say whether the images that were predicted look like those of calibration; '' unknown."""
    result = self._compared(self._sample)
    return result['text'] if result else ''

  def _complete(self, records, outputs, decisions):
    """Add 'gain', 'new' and 'novelty' to the records of predictions, where they are asked for."""
    if self._uses_features:
      self._sample = self._sampled(outputs, decisions, self._sample)
    if self.c.decide.label_gains:
      decide.add_label_gains(records, decisions, self.taxonomy)
    if not self.c.decide.novelty:
      return
    self._detector = self._detector or self.detector()
    evidence, share = self._evidence(outputs, decisions), self.c.decide.novelty
    posterior = decisions['exclusive']['joint'].prob[-1]
    novelty.add_to_records(records, self._detector, evidence, posterior, share)

  def explain(self, split: str, examples: sources.Examples | None = None) -> None:
    """Write explain_SPLIT.npz, from which the report shows single images, after `evaluate`.

    The first process does so alone, on its first device. It is of exclusive levels only.

    Args:
      split: its name.
      examples: its content; None to load it.

    Raises:
      UserError: the data lack an image of the predictions.
    """
    block = self.taxonomy.block('exclusive')
    if not parallel.first() or not block:
      return
    examples = examples or self.split(split)
    # the file that `evaluate` has just written: its size needs no limit
    path = files.of_split(self.workdir, 'predictions', split, 'npz')
    predictions = archives.read(path, sys.maxsize)
    numbers = {file: i for i, file in enumerate(examples.files)}
    for file in predictions['files'].tolist():
      if file not in numbers:
        raise UserError(
          f'{file}: is in predictions_{split}.npz but no longer in split {split!r} of the data; '
          f'hierjax evaluate --split={split} makes them anew'
        )
    predicted = sources.subset(examples, [numbers[f] for f in predictions['files'].tolist()])
    explain.write(
      self.workdir,
      split,
      predictions,
      block.taxonomy,
      self.classifier,
      jax.device_get(self.variables),
      predicted,
      self.c,
    )

  def _data(self) -> tuple[sources.Dataset, split_record.Record | None]:
    """Load the configured data, and the record of those that the run was made with.

    They must have this model's taxonomy; where they bring none, their labels are read by it. The
    run's own data keep the split that the run was made with.
    """
    record, before = split_record.read(self.workdir), run_config(self.workdir).data
    is_alike = record and split_record.is_divided_alike(self.c.data, before)
    options = copy.deepcopy(self.c.data)
    options.regions = None  # they are for training
    if self._lends_taxonomy(options):
      options.taxonomy, options.homonyms = str(self.workdir / 'taxonomy.csv'), 'merge'
    data = sources.load(options, record=record if is_alike else None)
    missing = [level for level in self.levels if level not in data.taxonomy.levels]
    if missing:
      raise UserError(
        f'the data have another taxonomy than {self.workdir}: no level {", ".join(missing)}, only '
        f'{", ".join(data.taxonomy.levels)}'
      )
    data = restrict(data, self.c.model).dataset
    if data.taxonomy.hash() != self.taxonomy.hash():
      raise UserError(
        f'the data have another taxonomy than {self.workdir}: '
        f'{describe_difference(self.taxonomy, data.taxonomy)}; a run for it: hierjax migrate '
        f'--from={self.workdir} --taxonomy=NEW.csv --workdir=NEWRUN'
      )
    return data, record

  def _lends_taxonomy(self, options) -> bool:
    """Whether the labels of the data must be read by this model's taxonomy."""
    # With held-out classes, the labels name more classes than the model knows.
    if not options.root or options.hold_out or options.taxonomy:
      return False
    path = sources.taxonomy_file(options, pathlib.Path(options.root).expanduser())
    if path is None:
      return True
    # Tag levels beside their taxonomy are levels that the data do not bring.
    levels = tuple(aliases.split_columns(read_levels(path))[0].columns)
    return len(self.taxonomy.blocks) > 1 and levels == self.taxonomy.blocks[0].levels

  def split(self, name: str) -> sources.Examples:
    """Load a split of the configured data.

    Args:
      name: of the split.

    Raises:
      UserError: the data cannot be read or have another taxonomy; there is no split of that name,
        or it has images that have trained the model.
    """
    data, record = self._data()
    if name not in data.splits:
      hint = did_you_mean(name, list(data.splits))
      raise UserError(f'--split={name}: no such split{hint}; choices: {", ".join(data.splits)}')
    if record:
      before = run_config(self.workdir).data
      lines = split_record.review(record, data, name, self.c.data, before)
    else:
      lines = split_record.notes(self.workdir, data, None)
    for note in lines:
      terminal.say(f'note: {note}')
    return data.splits[name]


def load(workdir: str | pathlib.Path, c: ConfigDict | None = None) -> Model:
  """Load the model that was trained in a folder.

  What jax compiles is cached as on the command line, see `parallel.use_compilation_cache`.

  Args:
    workdir: the folder.
    c: the run's configuration with other options of data and eval; None for it as it is.

  Raises:
    UserError: the folder holds no run, or a damaged one.
  """
  parallel.use_compilation_cache()
  workdir = pathlib.Path(workdir)
  if c is None:
    c = run_config(workdir)
    plugins.require(c.plugins, workdir)
  return Model(workdir, c, read_taxonomy(workdir / 'taxonomy.csv', c.data.multi))


def run_config(workdir: pathlib.Path) -> ConfigDict:
  """Read the configuration of a run.

  Args:
    workdir: its folder.

  Raises:
    UserError: the folder holds no run, or its config.json is damaged.
  """
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(
      f'{workdir}: not a run (no config.json); give the --workdir that was trained in'
    )
  content = files.read_bytes(path, json_files.MAX_BYTES)
  try:
    return config.from_json(content)
  except UserError as e:
    raise UserError(f'{path}: {e}') from None
