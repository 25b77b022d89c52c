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
  # images that are set apart calibrate whatever is tuned
  is_recalibrated = is_tuned and name != c.data.val
  are_fitted = _are_fitted(c, {} if is_tuned else rules)
  return name if is_recalibrated or not are_fitted else None


def _are_fitted(c: ConfigDict, rules: Rules) -> bool:
  """Whether the rules have the sets and answers that the options ask for."""
  options, sets_rule, answer = c.decide, rules.get('sets'), rules.get('answer')
  if options.sets and (not sets_rule or sets_rule[:2] != (options.sets, options.set_kind)):
    return False
  if not options.risk and not options.costs:
    return True
  if answer is None:
    return False
  fitted = answer.backoff[:3] if answer.backoff else (None, None, 'one')
  requested = options.risk, options.confidence, options.by, cost_rows(c), options.price
  return requested == (*fitted, answer.costs, answer.price)


def calibration_images(c: ConfigDict) -> str:
  """Name the split of calibration images; that of validation where none is set apart."""
  if c.data.calibration:
    return c.data.calibration
  return CALIBRATION if c.data.calibration_share else c.data.val


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
  places = [lower.index(name) for name in ('from', 'to', 'cost')]
  rows = []
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
  outputs: Outputs,
  taxonomy: Taxonomy | Mixed,
  rules: Rules,
  c: ConfigDict,
  split: str,
  rows: costs.Rows | str | None = None,
) -> tuple[Rules, list[str]]:
  """Fit the temperature and the rules of answers.

  On the validation split the temperature stays as it was tuned, cross-fitted.

  Args:
    outputs: of the model on calibration images.
    taxonomy: the levels.
    rules: of the decisions, whose weights and thresholds stay.
    c: the configuration.
    split: of the images.
    rows: as `cost_rows` returns them; None for those of the configuration.

  Returns:
    The rules and lines for the user.
  """
  options = c.decide
  block = taxonomy.block('exclusive')
  table = block.taxonomy
  labels = outputs.labels[:, block.columns]
  # rules that another split has fitted go, as the temperature may become another one
  rules = {
    kind: rule for kind, rule in rules.items() if kind not in FITTED or rule.split in ('', split)
  }
  if split != c.data.val:
    probs = [outputs.probs.get(level) for level in table.levels]
    rules['exclusive'] = paths.recalibrate(probs, labels, table, rules['exclusive'])
  rows = rows or cost_rows(c)
  notes = []
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
  """Fit the rule of answers; add a note where the images are too few."""
  line = lineages.lineage(posterior, table.paths)
  if rows:
    built = costs.build(rows, table, options.price)
    losses, bound = costs.losses(line.path, labels, built), built.largest
  else:
    losses, bound = backoff.mistakes(line.path, labels), 1.0

  def fit_risk(risk):
    branches = len(table.names[0])
    return backoff.fit_backoff(line, losses, risk, options.confidence, options.by, bound, branches)

  rule = fit_risk(options.risk)
  least = bound * backoff.smallest_risk(min(rule.examples), options.confidence)
  if least > options.risk:
    notes.append(
      f'{min(rule.examples)} images of {split} are too few to guarantee a risk of '
      f'{options.risk:g}: nothing is answered where no more are; so many can guarantee {least:.2g}'
    )
  risks = {float(f'{bound * risk:g}') for risk in RISKS} - {options.risk}
  others = tuple(fit_risk(risk) for risk in sorted(risks) if risk >= least)
  n = int(np.isfinite(losses).all(1).sum())
  return AnswerRules(split, n, rule, rows, options.price, others)


def _fit_sets(posterior, labels, options, split, notes) -> Rules:
  """Fit {'sets': their rule}, or {} and add a note where the images are too few."""
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
  block = taxonomy.block('exclusive')
  table = block.taxonomy
  labels = outputs.labels[:, block.columns]
  results = outputs.reduce(taxonomy, rules).results
  answers = decisions['answer']
  pred = decisions['exclusive']['joint'].pred
  is_judged = (labels >= 0).all(1)
  is_wrong = _is_wrong(answers.path, answers.depth, labels)
  # float64 [N] each, NaN without a full path
  values = {'risk': is_wrong, 'depth': np.where(is_judged, answers.depth, np.nan)}
  for k, level in enumerate(table.levels):
    values[f'risk/{level}'] = _is_wrong(answers.path, np.minimum(answers.depth, k + 1), labels)
    # a level that is not answered is not wrong
    values[f'risk/{level}'][is_judged & (answers.depth <= k)] = 0
  rule = rules['answer']
  result = {'split': rule.split, 'examples': rule.examples, 'costs': None, 'risk': None}
  if rule.backoff:
    result |= {name: getattr(rule.backoff, name) for name in ('risk', 'confidence', 'by')}
  if rule.costs:
    values |= _costs(answers, pred[:, -1], labels, table, rule)
    result['costs'] = 'lca' if rule.costs == costs.LCA else len(rule.costs)
  return result | {
    'n': int(is_judged.sum()),
    'measured': bootstrap.intervals(values, metrics.RESAMPLINGS),
    'depths': _by_depth(answers.depth, is_wrong, table),
    'branches': _by_branch(answers, is_wrong, results.curves.lineage, labels, table),
    'curves': curves(results.curves, labels, table.paths),
    'calibration': _calibration(results, pred, labels, table),
  }


def measure_sets(outputs: Outputs, taxonomy: Taxonomy | Mixed, rules: Rules) -> dict:
  """Compute what an evaluation says of sets: how many miss the true class, and their sizes.

  Args:
    outputs: of the model on a split, reduced.
    taxonomy: the levels.
    rules: of the decisions, with 'sets'.
  """
  block = taxonomy.block('exclusive')
  results = outputs.results.sets
  is_judged = (outputs.labels[:, block.columns] >= 0).all(1)
  values = {'missed': np.where(is_judged, 1.0 - results['is_in'], np.nan)}
  for k, level in enumerate(block.levels):
    values[f'size/{level}'] = results['size'][:, k].astype(float)
  return rules['sets']._asdict() | {
    'n': int(is_judged.sum()),
    'measured': bootstrap.intervals(values, metrics.RESAMPLINGS),
  }


def describe_sets(result: Mapping) -> str:
  """Return the sets in words, of what `measure_sets` returned."""
  measured = dict(result['measured'])
  missed = measured.pop('missed')
  if not missed:
    return 'sets: no image with a full path'
  sizes = [f'{x["mean"]:.2f} of {name.removeprefix("size/")}' for name, x in measured.items()]
  return (
    f'sets: {100 * missed["mean"]:.1f}% of the images have their class outside '
    f'({100 * missed["low"]:.1f} to {100 * missed["high"]:.1f}), wanted {100 * result["risk"]:g}% '
    f'by {result["examples"]} images of {result["split"]}; classes on average {", ".join(sizes)}'
  )


def describe(result: Mapping) -> str:
  """Return the answers in words, of what `measure` returned."""
  measured = result['measured']
  risk, depth = measured['risk'], measured['depth']
  if not risk:
    return 'answers: no image with a full path'
  if result['costs']:
    cost = 1000 * measured['cost']['mean']
    argmax = 1000 * measured['cost_argmax']['mean']
    return (
      f'answers: cost per 1,000 images {cost:.0f}, of the most likely leaf {argmax:.0f}; '
      f'{depth["mean"]:.2f} levels deep, {100 * risk["mean"]:.1f}% wrong'
    )
  at_level = ''
  if result['by'] == 'level':
    levels = [x['mean'] for name, x in measured.items() if name.startswith('risk/')]
    at_level = f', {100 * max(levels):.1f}% at a level'
  return (
    f'answers: {100 * risk["mean"]:.1f}% wrong ({100 * risk["low"]:.1f} to '
    f'{100 * risk["high"]:.1f}){at_level}, wanted {100 * result["risk"]:g}% by '
    f'{result["examples"]} images of {result["split"]}; {depth["mean"]:.2f} levels deep'
  )


def _is_wrong(path, depth, labels):
  """Return 1 where a class of the answer is wrong, 0 where none is, NaN without a full path."""
  is_counted = np.arange(path.shape[1]) < depth[:, None]
  is_wrong = ((path != labels) & is_counted).any(1)
  return np.where((labels >= 0).all(1), is_wrong, np.nan)


def _costs(answers, leaf, labels, table, rule):
  """Compute what the answers and the most likely leaves cost, each float64 [N]."""
  built = costs.build(rule.costs, table, rule.price)
  is_judged = (labels >= 0).all(1)
  node = built.tree.of_leaf[answers.path[:, -1], answers.depth - 1]
  nodes = {
    'cost': np.where(answers.depth > 0, node, -1),
    'cost_argmax': built.tree.of_leaf[leaf, -1],
  }
  values = {}
  for name, node in nodes.items():
    cost = costs.realised(labels[:, -1], node, built)
    values[name] = np.where(is_judged, cost, np.nan)
  return values


def _by_depth(depth, is_wrong, table):
  """Count the images answered at each level, and the share of them that is wrong."""
  shares = {}
  for d, name in enumerate(('', *table.levels)):
    rows = (depth == d) & np.isfinite(is_wrong)
    shares[name] = {'images': int(rows.sum()), 'wrong': bootstrap.nanmean(is_wrong[rows])}
  return shares


def _by_branch(answers, is_wrong, line, labels, table):
  """Measure for each coarsest class images, risk, depth, and calibration of the finest level."""
  is_judged = np.isfinite(is_wrong)
  count = np.bincount(labels[is_judged, 0], minlength=len(table.names[0]))
  largest = np.argsort(-count, kind='stable')[:BRANCHES]
  branches = {}
  for c in largest.tolist():
    rows = np.flatnonzero(is_judged & (labels[:, 0] == c))
    if not len(rows):
      continue
    branches[table.names[0][c]] = {
      'images': len(rows),
      'wrong': float(is_wrong[rows].mean()),
      'depth': float(answers.depth[rows].mean()),
      'ece': metrics.ece(line.prob[rows, -1], line.path[rows, -1], labels[rows, -1]),
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
  labels = labels[rows]
  parts = jax.tree.map(lambda x: x[rows], parts)
  tree = lineages.nodes(table)
  line = parts.lineage
  scores = backoff.level_scores(line.prob)

  def of_nodes(node):
    depth = np.where(node >= 0, tree.depth[node], 0)
    true_node = tree.of_leaf[labels[:, -1], depth - 1]
    is_wrong = (node >= 0) & (true_node != node)
    return [float(is_wrong.mean()), float(depth.mean())]

  def of_lineage(values, threshold):
    depth = baselines.on_lineage(values, threshold)
    is_wrong = _is_wrong(line.path, depth, labels)
    return [float(np.mean(is_wrong)), float(depth.mean())]

  def of_speciesnet(species, sums):
    return of_nodes(baselines.speciesnet(parts.node, parts.prob, species, sums))

  ratio = baselines.SUMS / baselines.SPECIES
  return {
    'answers': [of_lineage(scores, t) for t in THRESHOLDS],
    'lineage': [of_lineage(line.prob, t) for t in THRESHOLDS],
    'darts': [of_nodes(node) for node in parts.darts.T],
    'speciesnet': [of_speciesnet(t, ratio * t) for t in THRESHOLDS],
    'fixed .65': [of_lineage(line.prob, baselines.SUMS)],
    'speciesnet as published': [of_speciesnet(baselines.SPECIES, baselines.SUMS)],
  }


def _calibration(results, pred, labels, table):
  """Measure {level: {score: {'before', 'after'}}}, with intervals; before is temperature 1."""
  calibrated = {}
  for k, level in enumerate(table.levels):
    values = {}
    for moment, scores in (('before', results.before), ('after', results.after)):
      error = metrics.ece_interval(scores['confidence'][:, k], pred[:, k], labels[:, k])
      of_level = {name: scores[name][:, k] for name in ('brier', 'log_loss')}
      values[moment] = {'ece': error} | bootstrap.intervals(of_level, metrics.RESAMPLINGS)
    calibrated[level] = {
      name: {moment: values[moment][name] for moment in values}
      for name in ('ece', 'brier', 'log_loss')
    }
  return calibrated
