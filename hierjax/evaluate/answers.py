"""Answers with a guarantee: fitted on calibration images, measured on others."""

from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.data.splits import CALIBRATION
from hierjax.decide import backoff, baselines, costs, lineages, paths, sets
from hierjax.decide.decisions import FITTED, AnswerRules, Decisions, Rules, decide
from hierjax.evaluate import bootstrap, metrics
from hierjax.evaluate.collect import Outputs
from hierjax.evaluate.results import Curves
from hierjax.taxonomy import Mixed, Taxonomy
from hierjax.taxonomy.csv_files import read_table

# Classes of the coarsest level that an evaluation lists, those with the most images.
BRANCHES = 50
RESAMPLINGS = 200
# Of the largest loss: what `Predictor.at_risk` offers besides decide.risk.
RISKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
# Thresholds of the curves of depth against risk.
THRESHOLDS = tuple(np.linspace(0, 1, 21).round(2).tolist())


def calibration_split(c: ConfigDict, rules: Rules, is_tuned: bool) -> str | None:
  """Name the split on which calibration and answers are to be fitted.

  Args:
    c: the configuration.
    rules: of the decisions.
    is_tuned: whether they are tuned anew, so that answers are fitted anew.

  Returns:
    The name; that of validation where none is set apart; None where nothing is to be fitted.
  """
  if 'exclusive' not in rules:
    return None
  name = calibration_images(c)
  before = None if is_tuned else rules.get('sets')
  is_asked = bool(c.decide.sets) and (before and before[:2]) != (c.decide.sets, c.decide.set_kind)
  if c.decide.risk or c.decide.costs:
    requested = c.decide.risk, c.decide.confidence, c.decide.by, cost_rows(c), c.decide.price
    rule = None if is_tuned else rules.get('answer')
    before = rule and (rule.backoff or (None, None, 'one'))[:3]
    is_asked |= rule is None or (*before, rule.costs, rule.price) != requested
  return name if is_asked or (name != c.data.val and is_tuned) else None


def calibration_images(c: ConfigDict) -> str:
  """Name the split of calibration images; that of validation where none is set apart."""
  return c.data.calibration or (CALIBRATION if c.data.calibration_share else c.data.val)


def cost_rows(c: ConfigDict) -> tuple[tuple[str, str, float], ...] | str | None:
  """Read the costs that `decide.costs` names.

  Args:
    c: the configuration.

  Raises:
    UserError: the file cannot be read, or has not the columns from, to and cost.
  """
  path = c.decide.costs
  if path in (None, costs.LCA):
    return path
  table = read_table(path)
  lower = [column.casefold() for column in table.columns]
  if not {'from', 'to', 'cost'} <= {*lower}:
    raise UserError(f'{path}: has no columns from, to and cost, but {", ".join(table.columns)}')
  places, rows = [lower.index(name) for name in ('from', 'to', 'cost')], []
  for number, cells in table.rows:
    source, target, text = (cells[i].strip() for i in places)
    try:
      rows.append((source, target, float(text)))
    except ValueError:
      raise UserError(f'{path}:{number}: the cost {text!r} is no number') from None
  return tuple(rows)


def check(c: ConfigDict, taxonomy: Taxonomy | Mixed) -> None:
  """Refuse costs that cannot be read or name no classes, before anything is trained.

  Args:
    c: the configuration.
    taxonomy: the levels.

  Raises:
    UserError: they cannot, or do not.
  """
  if c.decide.costs:
    costs.build(cost_rows(c), taxonomy.table('exclusive'), c.decide.price)


def fit(
  outputs: Outputs, taxonomy: Taxonomy | Mixed, rules: Rules, c: ConfigDict, split: str
) -> tuple[Rules, list[str]]:
  """Fit the temperature and the rules of answers.

  On the validation split the temperature stays as it was tuned, cross-fitted.

  Args:
    outputs: of the model on calibration images.
    taxonomy: the levels.
    rules: of the decisions, whose weights and thresholds stay.
    c: the configuration.
    split: of the images.

  Returns:
    The rules and lines for the user.
  """
  block, options = taxonomy.block('exclusive'), c.decide
  labels, table = outputs.labels[:, block.columns], block.taxonomy
  # rules that another split has fitted go, as the temperature may become another one
  is_kept = {kind: kind not in FITTED or rule.split in ('', split) for kind, rule in rules.items()}
  rules = {kind: rule for kind, rule in rules.items() if is_kept[kind]}
  if split != c.data.val:
    probs = [outputs.probs.get(level) for level in table.levels]
    rules['exclusive'] = paths.recalibrate(probs, labels, table, rules['exclusive'])
  rows, notes = cost_rows(c), []
  if split == c.data.val and (options.risk or options.sets):
    notes.append(
      f'warning: the risk of answers and sets is fitted on {split}, which also chose the '
      'checkpoint and tuned the weights: on new images it may be higher; '
      '--config.data.calibration_share sets images apart for it when a run is trained'
    )
  posterior = decide(outputs.probs, taxonomy, rules)['exclusive']['joint'].prob[-1]
  if options.sets:
    rules |= _fit_sets(posterior, labels, options, split, notes)
  if options.risk:
    rules['answer'] = _fit_answers(posterior, labels, table, rows, options, split, notes)
  elif rows:
    rules['answer'] = AnswerRules('', 0, None, rows, options.price)
  return rules, notes


def _fit_answers(posterior, labels, table, rows, options, split, notes) -> AnswerRules:
  """Their rule; a note where the images are too few."""
  line = lineages.lineage(posterior, table.paths)
  losses, bound = backoff.mistakes(line.path, labels), 1.0
  if rows:
    built = costs.build(rows, table, options.price)
    losses, bound = costs.losses(line.path, labels, built), built.largest

  def fitted(risk):
    arguments = risk, options.confidence, options.by, bound, len(table.names[0])
    return backoff.fit_backoff(line, losses, *arguments)

  rule = fitted(options.risk)
  least = bound * backoff.smallest_risk(min(rule.examples), options.confidence)
  if least > options.risk:
    notes.append(
      f'{min(rule.examples)} images of {split} are too few to guarantee a risk of '
      f'{options.risk:g}: nothing is answered where no more are; so many can guarantee {least:.2g}'
    )
  risks = {float(f'{bound * risk:g}') for risk in RISKS} - {options.risk}
  others = tuple(fitted(risk) for risk in sorted(risks) if risk >= least)
  n = int(np.isfinite(losses).all(1).sum())
  return AnswerRules(split, n, rule, rows, options.price, others)


def _fit_sets(posterior, labels, options, split, notes) -> Rules:
  """{'sets': their rule}, or {} and a note where the images are too few."""
  rule = sets.fit_sets(posterior, labels[:, -1], options.sets, options.set_kind)
  if np.isfinite(rule.limit):
    return {'sets': rule._replace(split=split)}
  text = f'{rule.examples} images of {split} are too few for sets that miss the class of only '
  notes.append(f'{text}{options.sets:g} of the images: none are listed')
  return {}


def measure(
  outputs: Outputs, decisions: Decisions, taxonomy: Taxonomy | Mixed, rules: Rules
) -> dict:
  """Compute what an evaluation says of answers and of calibration.

  Args:
    outputs: of the model on a split.
    decisions: made from these.
    taxonomy: the levels.
    rules: of the decisions, with 'answer'.
  """
  block, rule = taxonomy.block('exclusive'), rules['answer']
  labels, table = outputs.labels[:, block.columns], block.taxonomy
  results = outputs.reduce(taxonomy, rules).results
  joint, answers = decisions['exclusive']['joint'], decisions['answer']
  is_wrong = _is_wrong(answers.path, answers.depth, labels)
  is_judged = (labels >= 0).all(1)
  values = {'risk': is_wrong, 'depth': np.where(is_judged, answers.depth, np.nan)}
  for k, level in enumerate(table.levels):
    values[f'risk/{level}'] = _is_wrong(answers.path, np.minimum(answers.depth, k + 1), labels)
    values[f'risk/{level}'][answers.depth <= k] *= 0
  result = {'split': rule.split, 'examples': rule.examples, 'costs': None, 'risk': None}
  if rule.backoff:
    result |= {name: getattr(rule.backoff, name) for name in ('risk', 'confidence', 'by')}
  if rule.costs:
    values |= _costs(answers, joint.pred[:, -1], labels, table, rule)
    result['costs'] = 'lca' if rule.costs == costs.LCA else len(rule.costs)
  return result | {
    'n': int(is_judged.sum()),
    'measured': bootstrap.intervals(values, RESAMPLINGS),
    'depths': _by_depth(answers.depth, is_wrong, table),
    'branches': _by_branch(answers, is_wrong, results.curves.lineage, labels, table),
    'curves': curves(results.curves, labels, table.paths),
    'calibration': _calibration(results, joint.pred, labels, table),
  }


def measure_sets(outputs: Outputs, taxonomy: Taxonomy | Mixed, rules: Rules) -> dict:
  """Compute what an evaluation says of sets: how many miss the true class, and their sizes.

  Args:
    outputs: of the model on a split, reduced.
    taxonomy: the levels.
    rules: of the decisions, with 'sets'.
  """
  block, results = taxonomy.block('exclusive'), outputs.results.sets
  is_judged = (outputs.labels[:, block.columns] >= 0).all(1)
  values = {'missed': np.where(is_judged, 1.0 - results['is_in'], np.nan)}
  values |= {f'size/{k}': x for k, x in zip(block.levels, results['size'].T.astype(float))}
  return rules['sets']._asdict() | {
    'n': int(is_judged.sum()),
    'measured': bootstrap.intervals(values, RESAMPLINGS),
  }


def describe_sets(result: Mapping) -> str:
  """Return the sets in words, of what `measure_sets` returned."""
  missed, *sizes = result['measured'].items()
  if not missed[1]:
    return 'sets: no image with a full path'
  share, sizes = missed[1], [f'{x["mean"]:.2f} of {k.removeprefix("size/")}' for k, x in sizes]
  return (
    f'sets: {100 * share["mean"]:.1f}% of the images have their class outside '
    f'({100 * share["low"]:.1f} to {100 * share["high"]:.1f}), wanted {100 * result["risk"]:g}% '
    f'by {result["examples"]} images of {result["split"]}; classes on average {", ".join(sizes)}'
  )


def describe(result: Mapping) -> str:
  """Return the answers in words, of what `measure` returned."""
  risk, depth = result['measured']['risk'], result['measured']['depth']
  if not risk:
    return 'answers: no image with a full path'
  if result['costs']:
    cost, argmax = (1000 * result['measured'][name]['mean'] for name in ('cost', 'cost_argmax'))
    return (
      f'answers: cost per 1,000 images {cost:.0f}, of the most likely leaf {argmax:.0f}; '
      f'{depth["mean"]:.2f} levels deep, {100 * risk["mean"]:.1f}% wrong'
    )
  levels = [x['mean'] for name, x in result['measured'].items() if name.startswith('risk/')]
  at_level = f', {100 * max(levels):.1f}% at a level' if result['by'] == 'level' else ''
  return (
    f'answers: {100 * risk["mean"]:.1f}% wrong ({100 * risk["low"]:.1f} to '
    f'{100 * risk["high"]:.1f}){at_level}, wanted {100 * result["risk"]:g}% by '
    f'{result["examples"]} images of {result["split"]}; {depth["mean"]:.2f} levels deep'
  )


def _is_wrong(path, depth, labels):
  """float64 [N]: 1 where a class of the answer is wrong, NaN without a full path."""
  is_counted = np.arange(path.shape[1]) < depth[:, None]
  is_wrong = ((path != labels) & is_counted).any(1)
  return np.where((labels >= 0).all(1), is_wrong, np.nan)


def _costs(answers, leaf, labels, table, rule):
  """What the answers and the most likely leaves cost, each float64 [N]."""
  built, is_judged = costs.build(rule.costs, table, rule.price), (labels >= 0).all(1)
  node = built.tree.of_leaf[answers.path[:, -1], answers.depth - 1]
  node = np.where(answers.depth > 0, node, -1)
  values = {'cost': node, 'cost_argmax': built.tree.of_leaf[leaf, -1]}
  return {
    name: np.where(is_judged, costs.realised(labels[:, -1], nodes, built), np.nan)
    for name, nodes in values.items()
  }


def _by_depth(depth, is_wrong, table):
  """For each level: the images answered there, and the share of them that is wrong."""
  names, shares = ('', *table.levels), {}
  for d, name in enumerate(names):
    rows = (depth == d) & np.isfinite(is_wrong)
    shares[name] = {'images': int(rows.sum()), 'wrong': bootstrap.nanmean(is_wrong[rows])}
  return shares


def _by_branch(answers, is_wrong, line, labels, table):
  """For each coarsest class: images, risk, depth, and calibration error of the finest level."""
  is_judged, branches = np.isfinite(is_wrong), {}
  count = np.bincount(labels[is_judged, 0], minlength=len(table.names[0]))
  confidence, leaf = line.prob[:, -1], line.path[:, -1]
  for c in np.argsort(-count, kind='stable')[:BRANCHES].tolist():
    rows = np.flatnonzero(is_judged & (labels[:, 0] == c))
    if len(rows):
      branches[table.names[0][c]] = {
        'images': len(rows),
        'wrong': float(is_wrong[rows].mean()),
        'depth': float(answers.depth[rows].mean()),
        'ece': metrics.ece(confidence[rows], leaf[rows], labels[rows, -1]),
      }
  return branches


def curves(parts: Curves, labels: np.ndarray, table: np.ndarray) -> dict[str, list]:
  """Compute the share of wrong answers and their mean depth by several rules.

  Args:
    parts: what they are made of, of N examples.
    labels: int [N, level], -1 unknown.
    table: int [leaf, level], the paths.

  Returns:
    {rule: [[risk, levels], ...]}, a point for each value of its knob: 'answers', 'lineage' of the
    most likely leaf with a threshold of the probability, 'darts', 'speciesnet' with its two
    thresholds in proportion; and of one point each 'fixed .65', and 'speciesnet as published'. {}
    without a full path.
  """
  rows = np.flatnonzero((labels >= 0).all(1))
  if not len(rows):
    return {}
  labels, leaf = labels[rows], labels[rows, -1]
  parts, tree = jax.tree.map(lambda x: x[rows], parts), lineages.nodes(table)
  line, best, prob = parts.lineage, parts.node, parts.prob
  scores = backoff.level_scores(line.prob)

  def point(node):
    depth = np.where(node >= 0, tree.depth[node], 0)
    is_wrong = (node >= 0) & (tree.of_leaf[leaf, depth - 1] != node)
    return [float(is_wrong.mean()), float(depth.mean())]

  def answered(threshold):
    depth = baselines.on_lineage(scores, threshold)
    return [float(np.mean(_is_wrong(line.path, depth, labels))), float(depth.mean())]

  def fixed(threshold):
    depth = baselines.on_lineage(line.prob, threshold)
    return [float(np.mean(_is_wrong(line.path, depth, labels))), float(depth.mean())]

  ratio = baselines.SUMS / baselines.SPECIES
  return {
    'answers': [answered(t) for t in THRESHOLDS],
    'lineage': [fixed(t) for t in THRESHOLDS],
    'darts': [point(node) for node in parts.darts.T],
    'speciesnet': [point(baselines.speciesnet(best, prob, t, ratio * t)) for t in THRESHOLDS],
    'fixed .65': [fixed(baselines.SUMS)],
    'speciesnet as published': [point(baselines.speciesnet(best, prob))],
  }


def _calibration(results, pred, labels, table):
  """{level: {score: {'before', 'after'}}}, each with its interval; before is temperature 1."""
  calibrated = {}
  for k, level in enumerate(table.levels):
    values = {}
    for moment, x in (('before', results.before), ('after', results.after)):
      scores = {name: x[name][:, k] for name in ('brier', 'log_loss')}
      measured = bootstrap.intervals(scores, RESAMPLINGS)
      error = metrics.ece_interval(x['confidence'][:, k], pred[:, k], labels[:, k])
      values[moment] = {'ece': error} | measured
    calibrated[level] = {
      name: {moment: values[moment][name] for moment in values}
      for name in ('ece', 'brier', 'log_loss')
    }
  return calibrated
