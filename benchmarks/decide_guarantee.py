"""What risk answers with a guarantee have, and how deep they are, over random re-splits.

usage: decide_guarantee.py RUN [RUN ...] [--splits 200] [--split val] [--seed 0]

RUN is the folder of a run. Of its predictions_SPLIT.npz a random half calibrates and the other half
is the third part, again and again. The archive holds the five most likely leaves of an image; the
mass of the others is spread evenly over them, so that answers are made from a posterior somewhat
blunter than the model's. On each calibration half are fitted the temperature and the thresholds;
on the third part are measured, for each risk alpha:

  mean     realised risk of the mean guarantee, +- its standard error over the splits
  level    the largest realised risk of a level with a threshold a level
  branch   the same with a threshold a class of the coarsest level (where it has enough images)
  subset   the risk within the half of the coarsest classes that the split draws, conditioned
  PAC      share of the splits whose risk is above alpha, confidence .9: with as many calibration
           images drawn with replacement, on all images, which they are a sample of; in brackets on
           the third part, where the chance of so few images adds to it
  depth    levels answered, and how much deeper than the rules of others at the same realised risk:
           their knob is read off the third part itself, which favours them

and once: the calibration error of the finest level on the third part and what it would be if the
images were right as often as the model says, and the mean cost, in levels,
of the answers of least expected cost ('lca', with a price of 1 and of .5 a level not answered)
beside the most likely leaf's.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from hierjax.decide import backoff, baselines, calibration, costs, lineages, subsets
from hierjax.evaluate import metrics
from hierjax.taxonomy import read_taxonomy

RISKS = (0.02, 0.05, 0.1)
BONUSES = np.concatenate([[0], np.geomspace(0.05, 500, 60)])
THRESHOLDS = np.linspace(0, 1, 101)


def read(folder, split):
  """Labels int [N, L] with full paths, a posterior float [N, leaf], and the taxonomy."""
  table = read_taxonomy(folder / 'taxonomy.csv', ()).table('exclusive')
  arrays = np.load(folder / f'predictions_{split}.npz')
  rules, finest = json.loads((folder / 'decode.json').read_text()), len(table.levels) - 1
  if any(w for level, w in rules['weights'].items() if level != table.levels[-1]):
    print('  note: coarser heads have weights; the finest head alone is read here')
  labels, top, p = arrays['labels'], arrays[f'top_{finest}'], arrays[f'top_prob_{finest}']
  left = np.maximum(1 - p.sum(1, keepdims=True), 1e-9) / (len(table.paths) - top.shape[1])
  posterior = np.repeat(left, len(table.paths), 1)
  np.put_along_axis(posterior, top, p, 1)
  posterior = calibration.temper(posterior, rules.get('temperature', 1.0))
  rows = (labels >= 0).all(1)
  return labels[rows], posterior[rows], table


def judge(node, leaf, tree):
  """Wrong or not bool [..., N], and depth int [..., N] of nodes, -1 the root."""
  depth = np.where(node >= 0, tree.depth[node], 0)
  return (node >= 0) & (tree.of_leaf[leaf, depth - 1] != node), depth


def rules_of_others(posterior, leaf, table):
  """{rule: (wrong [knob, N], depth [knob, N])}."""
  tree = lineages.nodes(table.paths)
  best, prob = baselines.best_by_level(posterior, table.paths)
  line = lineages.lineage(posterior, table.paths)
  of_top = tree.of_leaf[line.path[:, -1]]
  ratio = baselines.SUMS / baselines.SPECIES
  fixed = []
  for t in THRESHOLDS:
    depth = baselines.on_lineage(line.prob, t)
    fixed.append(np.where(depth > 0, of_top[np.arange(len(leaf)), depth - 1], -1))
  nodes = {
    'DARTS': baselines.darts(posterior, table.paths, BONUSES),
    'SpeciesNet': np.stack([baselines.speciesnet(best, prob, t, ratio * t) for t in THRESHOLDS]),
    'fixed': np.stack(fixed),
  }
  published = {'fixed .65': nodes['fixed'][65], 'SpeciesNet': baselines.speciesnet(best, prob)}
  for name, node in published.items():
    is_wrong, depth = judge(node, leaf, tree)
    print(f'  {name} as published: risk {is_wrong.mean():.3f}, depth {depth.mean():.3f}')
  return {name: judge(node, leaf, tree) for name, node in nodes.items()}


def depth_at(risk, others, rows):
  """The depth of a rule whose knob gives this risk on these rows."""
  risks, depths = (x[:, rows].mean(1) for x in others)
  order = np.lexsort((depths, risks))
  return np.interp(risk, risks[order], np.maximum.accumulate(depths[order]))


def realised(line, labels, rule):
  """Wrong answers bool [N] and depth [N]."""
  depth = backoff.answered_depth(line, rule)
  is_counted = np.arange(labels.shape[1]) < depth[:, None]
  return ((line.path != labels) & is_counted), depth


def resplit(posterior, labels, table, others, rng, results):
  """Fit on a random half, measure on the other, and append to the results."""
  order = rng.permutation(len(labels))
  fitted, new = order[: len(order) // 2], order[len(order) // 2 :]
  temperature = calibration.fit_temperature(posterior[fitted], labels[fitted, -1])
  tempered = calibration.temper(posterior, temperature)
  p, y = tempered[new], labels[new, -1]
  results.setdefault('ece', []).append(metrics.ece(p.max(1), p.argmax(1), y))
  confidence = p.max(1)
  _, total, right = metrics.reliability(confidence, rng.random(len(p)) < confidence)
  results.setdefault('chance', []).append(np.abs(right - total).sum() / len(p))
  line = lineages.lineage(tempered, table.paths)
  half, third = (lineages.Lineage(line.path[r], line.prob[r]) for r in (fitted, new))
  picked = rng.integers(len(labels), size=len(fitted))
  sample = lineages.Lineage(line.path[picked], line.prob[picked])
  losses, classes = backoff.mistakes(line.path, labels), len(table.names[0])
  allowed = np.isin(table.paths[:, 0], rng.permutation(classes)[: -(-classes // 2)])
  inside = allowed[labels[:, -1]]
  conditioned = subsets.condition(np.log(tempered), allowed).prob
  conditioned = lineages.lineage(conditioned, table.paths)
  for risk in RISKS:
    fit = {'risk': risk, 'branches': classes, 'minimum': 50}
    rule = backoff.fit_backoff(half, losses[fitted], **fit)
    wrong, depth = realised(third, labels[new], rule)
    mean = wrong.any(1).mean()
    out = results.setdefault(risk, {})
    out.setdefault('mean', []).append(mean)
    out.setdefault('depth', []).append(depth.mean())
    for name, values in others.items():
      out.setdefault(f'over {name}', []).append(depth.mean() - depth_at(mean, values, new))
    rule = backoff.fit_backoff(half, losses[fitted], confidence=0.9, **fit)
    out.setdefault('third', []).append(realised(third, labels[new], rule)[0].any(1).mean() > risk)
    rule = backoff.fit_backoff(sample, losses[picked], confidence=0.9, **fit)
    out.setdefault('PAC', []).append(realised(line, labels, rule)[0].any(1).mean() > risk)
    rule = backoff.fit_backoff(half, losses[fitted], by='level', **fit)
    wrong, _ = realised(third, labels[new], rule)
    out.setdefault('level', []).append(wrong.mean(0))
    rule = backoff.fit_backoff(half, losses[fitted], by='branch', **fit)
    wrong, _ = realised(third, labels[new], rule)
    out.setdefault('branch', []).append(wrong.any(1).mean())
    a, b = fitted[inside[fitted]], new[inside[new]]
    within = [lineages.Lineage(conditioned.path[r], conditioned.prob[r]) for r in (a, b)]
    rule = backoff.fit_backoff(within[0], backoff.mistakes(conditioned.path[a], labels[a]), **fit)
    out.setdefault('subset', []).append(realised(within[1], labels[b], rule)[0].any(1).mean())


def least_costs(posterior, labels, table):
  """Print what answers of least expected cost cost."""
  top = posterior.argmax(1)
  for price in (1.0, 0.5):
    built = costs.build(costs.LCA, table, price)
    answers = costs.answer(posterior, built)
    node = built.tree.of_leaf[answers.path[:, -1], answers.depth - 1]
    node = np.where(answers.depth > 0, node, -1)
    cost = costs.realised(labels[:, -1], node, built)
    base = costs.realised(labels[:, -1], built.tree.of_leaf[top, -1], built)
    difference = cost - base
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    print(
      f'  lca, price {price:g}: argmax {base.mean():.4f}, least expected {cost.mean():.4f} '
      f'({100 * (cost.mean() / base.mean() - 1):+.1f} %, +- {100 * error / base.mean():.1f})'
    )


def main():
  """Print the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', nargs='+', type=pathlib.Path)
  parser.add_argument('--splits', type=int, default=200)
  parser.add_argument('--split', default='val')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  for folder in args.runs:
    labels, posterior, table = read(folder, args.split)
    accuracy = (posterior.argmax(1) == labels[:, -1]).mean()
    sizes = ', '.join(f'{x} {len(names)}' for x, names in zip(table.levels, table.names))
    print(f'{folder}: {len(labels)} images, {sizes}; finest accuracy {accuracy:.3f}')
    others = rules_of_others(posterior, labels[:, -1], table)
    rng, results = np.random.default_rng(args.seed), {}
    for _ in range(args.splits):
      resplit(posterior, labels, table, others, rng, results)
    ece, chance = np.mean(results['ece']), np.mean(results['chance'])
    print(f'  finest ECE on the third part {ece:.4f}; exact probabilities would have {chance:.4f}')
    least_costs(posterior, labels, table)
    for risk in RISKS:
      out = {name: np.array(values) for name, values in results[risk].items()}
      error = {name: x.std(0, ddof=1) / len(x) ** 0.5 for name, x in out.items() if name != 'PAC'}
      worst = out['level'].mean(0).argmax()
      cells = [f'mean {out["mean"].mean():.4f} +- {error["mean"]:.4f}']
      cells += [f'level {out["level"].mean(0)[worst]:.4f}', f'branch {out["branch"].mean():.4f}']
      cells += [
        f'subset {out["subset"].mean():.4f}',
        f'PAC {out["PAC"].mean():.3f} ({out["third"].mean():.3f})',
      ]
      cells += [f'depth {out["depth"].mean():.3f}']
      cells += [
        f'{name} {out[name].mean():+.3f} +- {error[name]:.3f}' for name in out if 'over' in name
      ]
      print(f'  alpha {risk:g}: ' + ', '.join(cells))


if __name__ == '__main__':
  main()
