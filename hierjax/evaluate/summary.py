"""The evaluation of a split: metrics of decisions, as JSON, and the predictions as arrays."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from hierjax.core import archives, files, json_files
from hierjax.core.errors import UserError
from hierjax.core.metrics import logged_names, lookup, resolve_best
from hierjax.decide import paths
from hierjax.decide.decisions import Decisions, Rules, default_rules
from hierjax.decide.lineages import blocks
from hierjax.decide.thresholds import BLOCK_SIZE
from hierjax.evaluate import answers, bootstrap, metrics, tags
from hierjax.evaluate.collect import Outputs
from hierjax.taxonomy import Mixed, Taxonomy

# Decisions that training logs metrics of.
LOGGED = ('independent', 'joint')
# Probabilities below this one do not make the loss larger.
SMALLEST = 1e-12


def summarize(
  split: str,
  outputs: Outputs,
  decisions: Decisions,
  taxonomy: Taxonomy | Mixed,
  rules: Rules,
  tta: int,
) -> dict:
  """Compute what eval_SPLIT.json holds.

  Args:
    split: its name.
    outputs: of the model on the split.
    decisions: made from these.
    taxonomy: the levels.
    rules: by which the decisions were made.
    tta: the number of views.
  """
  outputs = outputs.reduce(taxonomy, rules)
  heads = [level for level in taxonomy.levels if level in outputs.heads]
  result = {
    'split': split,
    'n': len(outputs.index),
    'unreadable': len(outputs.broken),
    'tta': tta,
    'heads': heads,
    'weights': dict(rules['exclusive'].weights) if 'exclusive' in rules else {},
    'decode': {},
    'intervals': {},
  }
  result |= _evaluate(outputs, decisions, taxonomy, heads)
  block = taxonomy.block('exclusive')
  if block:
    result['calibration'] = _calibration(outputs, decisions, block, rules['exclusive'])
  for name, decision in decisions.get('exclusive', {}).items():
    values = metrics.per_example(decision, outputs.labels[:, block.columns], block.taxonomy)
    result['intervals'][name] = bootstrap.intervals(values)
  if 'answer' in decisions:
    result['answers'] = answers.measure(outputs, decisions, taxonomy, rules)
  if 'sets' in rules:
    result['sets'] = answers.measure_sets(outputs, taxonomy, rules)
  return result


def within_subset(
  outputs: Outputs, taxonomy: Taxonomy | Mixed, rules: Rules
) -> tuple[Outputs, dict]:
  """Leave out the images of classes that the rules do not allow.

  Args:
    outputs: of the model on a split.
    taxonomy: the levels.
    rules: of the decisions.

  Returns:
    The outputs of the other images, and {'subset': the number of allowed finest classes, of images
    and of those left out, and of both the mean probability of a class that is not allowed}; {}
    where all classes are allowed.

  Raises:
    UserError: no image is left.
  """
  block = taxonomy.block('exclusive')
  allowed = rules['exclusive'].allowed if block else None
  if allowed is None:
    return outputs, {}
  outside = outputs.decide(taxonomy, rules)['exclusive']['joint'].outside
  is_inside = block.taxonomy.valid(outputs.labels[:, block.columns], allowed)
  if not is_inside.any():
    raise UserError(f'none of the {len(is_inside)} images is of one of the allowed classes')
  subset = {
    'classes': int(allowed.sum()),
    'images': int(is_inside.sum()),
    'left_out': int((~is_inside).sum()),
    'outside': float(outside[is_inside].mean()),
    'outside_of_left_out': None if is_inside.all() else float(outside[~is_inside].mean()),
  }
  return outputs.select(is_inside), {'subset': subset}


def _calibration(outputs, decisions, block, rules) -> dict:
  """Report the temperature of the joint decision, and its calibration error without it."""
  pred = decisions['exclusive']['joint'].pred
  confidence = outputs.results.before['confidence']
  labels = outputs.labels[:, block.columns]
  return {
    'temperature': rules.temperature,
    'examples': rules.examples,
    'gain': rules.gain,
    'gain_error': rules.gain_error,
    'ece_before': {
      level: metrics.ece(confidence[:, k], pred[:, k], labels[:, k])
      for k, level in enumerate(block.levels)
    },
  }


def describe_calibration(result: Mapping) -> str:
  """Return the temperature of the joint decision in words, of what `summarize` returned."""
  calibration = result['calibration']
  source = 'not fitted'
  if calibration['examples']:
    source = f'fitted on {calibration["examples"]} images'
  elif calibration['temperature'] != 1:
    source = f'the sum of the weights, since fewer than {paths.MIN_EXAMPLES} images do not fit it'
  return f'temperature {calibration["temperature"]:.4g} ({source})'


def describe_weights(result: Mapping) -> str:
  """Return the weights of the joint decision in words, of what `summarize` returned."""
  used = {level: w for level, w in result['weights'].items() if level in result['heads']}
  weights = ', '.join(f'{level} {w:.3g}' for level, w in used.items())
  gain, error = result['calibration']['gain'], result['calibration']['gain_error']
  if gain is None:
    return f'weights {weights}'
  chance = ', within chance' if abs(gain) <= 2 * error else ''
  return (
    f'weights {weights}; full path {100 * gain:+.1f} ± {100 * error:.1f} points against the '
    f'finest head alone on images that did not tune them{chance}'
  )


def _evaluate(outputs, decisions, taxonomy, heads) -> dict:
  """Compute the metrics of all decisions, block by block."""
  evaluation = {}
  for block in taxonomy.blocks:
    labels = outputs.labels[:, block.columns]
    evaluation |= EVALUATORS[block.kind](decisions[block.kind], labels, block.taxonomy, heads)
  return evaluation


def _evaluate_paths(decision, labels, taxonomy, heads):
  """Evaluate each decision on the exclusive levels."""
  return {
    'decode': {name: metrics.evaluate(d, labels, taxonomy, heads) for name, d in decision.items()}
  }


def _evaluate_tags(decision, labels, taxonomy, heads):
  return tags.evaluate(decision, labels, taxonomy)


EVALUATORS = {'exclusive': _evaluate_paths, 'tags': _evaluate_tags}


def loss(outputs: Outputs, taxonomy: Taxonomy | Mixed, weights: Mapping[str, float]) -> float:
  """Compute the weighted sum over the heads of the mean cross-entropy with the true classes.

  Of tags that is the binary cross-entropy, the mean over the classes too. Unknown labels do not
  count.

  Args:
    outputs: of the model on a split.
    taxonomy: the levels.
    weights: of the levels.
  """
  outputs = reduce_to_log(outputs, taxonomy)
  losses = {}
  if outputs.results:
    for level, head in outputs.results.heads.items():
      losses[level] = _mean_log_loss(head.true_prob[~np.isnan(head.true_prob)])
  block = taxonomy.block('tags')
  if block:
    losses |= _tag_losses(outputs.probs, outputs.labels[:, block.columns], block.taxonomy)
  return sum(weights[level] * losses[level] for level in sorted(losses))


def _tag_losses(probs, labels, taxonomy):
  """Compute the mean binary cross-entropy of each tag level over its known labels."""
  losses = {}
  for level, columns in taxonomy.columns.items():
    total, count = 0.0, 0
    for rows, p in blocks(probs[level], BLOCK_SIZE):
      y = labels[rows, columns]
      true_prob = np.where(y == 1, p, 1 - p)[y >= 0]
      total += _mean_log_loss(true_prob) * len(true_prob)
      count += len(true_prob)
    losses[level] = total / max(count, 1)
  return losses


def _mean_log_loss(p):
  """Average -log p of the true answers, 0 without any."""
  return float(-np.log(np.maximum(p, SMALLEST)).mean()) if len(p) else 0.0


def reduce_to_log(outputs: Outputs, taxonomy: Taxonomy | Mixed) -> Outputs:
  """Keep of outputs, or of those of a batch, what `validate` reads.

  Every head weighs 1 and every threshold is .5, since nothing is tuned yet.
  """
  return outputs.reduce(taxonomy, default_rules(taxonomy), LOGGED)


def validate(
  outputs: Outputs, taxonomy: Taxonomy | Mixed, weights: Mapping[str, float]
) -> dict[str, float]:
  """Compute the metrics that training logs and chooses checkpoints by.

  Args:
    outputs: of the model on the validation split.
    taxonomy: the levels.
    weights: of the levels in the loss.

  Returns:
    {name: value}; an undefined metric of tags is 0, another one is left out.
  """
  outputs = reduce_to_log(outputs, taxonomy)
  decisions = outputs.decide(taxonomy, default_rules(taxonomy))
  heads = [level for level in taxonomy.levels if level in outputs.heads]
  evaluation = _evaluate(outputs, decisions, taxonomy, heads)
  heads = [level for level in heads if level not in taxonomy.multi]
  values = {'loss': loss(outputs, taxonomy, weights)}
  for name in logged_names(heads, taxonomy.multi):
    value = lookup(evaluation, name)
    if value is None and name.rpartition('/')[2] in taxonomy.multi:
      value = 0.0
    if value is not None:
      values[name] = value
  return values


def best_metric(text: str, taxonomy: Taxonomy | Mixed, heads: Sequence[str]) -> str:
  """Resolve train.best to the name of a validation metric.

  Args:
    text: the option, see `core.metrics.resolve_best`.
    taxonomy: the levels.
    heads: those that have a head.
  """
  table = taxonomy.table('exclusive')
  levels = table.levels if table else ()
  return resolve_best(text, levels, [level for level in heads if level in levels], taxonomy.multi)


def write(
  folder: pathlib.Path,
  result: Mapping,
  outputs: Outputs,
  decisions: Decisions,
  taxonomy: Taxonomy | Mixed,
  names: Sequence[str],
) -> None:
  """Write eval_SPLIT.json and predictions_SPLIT.npz.

  The archive holds 'files' [n], 'labels' [n, L], for each decision on exclusive levels pred_NAME
  [n, L] and the probabilities of these classes prob_NAME, for the head of each column K its first
  paths.TOP choices top_K [n, TOP] and their probabilities top_prob_K; of tags multi_labels,
  multi_prob and multi_pred, each [n, M].

  Args:
    folder: where to.
    result: what `summarize` returned.
    outputs: of the model on the split.
    decisions: made from these.
    taxonomy: the levels.
    names: the names of all files of the split.
  """
  arrays = {'files': np.array([names[i] for i in outputs.index])}
  # Where all levels are tags, the archive has a column of unknown labels for each of them.
  arrays['labels'] = np.full((len(outputs.index), len(taxonomy.levels)), -1, np.int32)
  # Tags stand first in the archive, as in those of earlier versions: its digest stays the same.
  for block in reversed(taxonomy.blocks):
    labels = outputs.labels[:, block.columns]
    arrays |= ARRAYS[block.kind](decisions[block.kind], labels, outputs, block.taxonomy)
  split = result['split']
  archives.write(files.of_split(folder, 'predictions', split, 'npz'), arrays)
  content = json_files.dump(result, indent=2) + '\n'
  files.write(files.of_split(folder, 'eval', split, 'json'), content)


def _path_arrays(decision, labels, outputs, taxonomy):
  arrays = {'labels': labels}
  for name, d in decision.items():
    arrays[f'pred_{name}'] = d.pred
    arrays[f'prob_{name}'] = d.confidence.astype(np.float32)
  for k, level in enumerate(taxonomy.levels):
    if level in outputs.results.heads:
      head = outputs.results.heads[level]
      arrays[f'top_{k}'], arrays[f'top_prob_{k}'] = head.top, head.top_prob
  return arrays


def _tag_arrays(decision, labels, outputs, taxonomy):
  return {
    'multi_labels': labels.astype(np.int8),
    'multi_prob': decision.prob.astype(np.float32, copy=False),
    'multi_pred': decision.pred,
  }


ARRAYS = {'exclusive': _path_arrays, 'tags': _tag_arrays}
