"""The faults that `make test-mutants` puts in, by wing, each with the tests that must notice.

`faults(file, tests, {text: replacement, ...})` makes the mutants of one file. A text stands exactly
once in its file; the tests are files or ids of pytest, as few as concern the fault.
"""

from mutants import Mutant

EXCLUSIVE = 'tests/losses/test_losses.py'
TAGS = 'tests/losses/test_multilabel.py'
BALANCING = 'tests/losses/test_balancing.py'
TABLE = 'tests/taxonomy/test_taxonomy.py'
HEADS = 'tests/models/test_heads.py'
LAYERS = 'tests/models/test_layers.py'
TRANSFORMS = 'tests/data/test_transforms.py'
METRICS = 'tests/evaluate/test_metrics.py'


def faults(file: str, tests: str, changes: dict[str, str]) -> list[Mutant]:
  """Return the mutants of a file that the same tests concern."""
  return [Mutant(file, text, replacement, tests) for text, replacement in changes.items()]


LOSSES = [
  *faults(
    'hierjax/losses/exclusive.py',
    f'{EXCLUSIVE}::test_cross_entropy_against_a_loop {EXCLUSIVE}::test_hierarchical_smoothing '
    f'{EXCLUSIVE}::test_unknown_label_has_no_gradient {EXCLUSIVE}::test_masked_mean',
    {
      'return jnp.where(labels >= 0, loss, 0.0)': 'return jnp.where(labels > 0, loss, 0.0)',
      'jnp.asarray(1 - spread * count, jnp.float32)': 'jnp.ones(len(family))',
      'np.float32(share) / np.maximum(count, 1)': 'np.float32(share)',
      'count = jnp.sum(mask > 0)': 'count = len(mask)',
    },
  ),
  *faults(
    'hierjax/losses/exclusive.py',
    f'{EXCLUSIVE}::test_lca_targets_against_a_loop {EXCLUSIVE}::test_info_nce_against_a_loop '
    f'{EXCLUSIVE}::test_class_means_against_a_loop {EXCLUSIVE}::test_against_loops '
    f'{EXCLUSIVE}::test_eight_devices_are_one',
    {
      'weight *= jnp.where(is_known, dilution, 1.0)': 'weight *= dilution',
      'distance = jnp.mean(~agree, axis=0)': 'distance = jnp.sum(~agree, axis=0)',
      'scale = beta / max(taxonomy.height(), 1)': 'scale = beta',
      'np.float32(np.exp(-alpha * k))': 'np.float32(np.exp(-alpha * (k + 1)))',
      '    above = node\n': '',
      'last = jnp.where(labels >= 0, logits.shape[1], -1)': 'last = labels',
      'return sums / jnp.maximum(counts, 1)[:, None]': 'return sums / len(labels)',
      'sums, counts = jax.lax.psum((sums, counts), axis)': 'sums = jax.lax.psum(sums, axis)',
    },
  ),
  *faults(
    'hierjax/losses/terms.py',
    f'{EXCLUSIVE}::test_against_loops {EXCLUSIVE}::test_supervised_contrastive_against_a_loop '
    f'{EXCLUSIVE}::test_matching_is_least_where_the_heads_agree '
    f'{EXCLUSIVE}::test_co_annotation_spreads_over_what_agrees '
    f'{EXCLUSIVE}::test_tree_path_is_0_on_the_path_and_leaves_unknown_levels_alone '
    f'{EXCLUSIVE}::test_distillation_against_a_loop',
    {
      '/ count - jnp.log(count.astype(jnp.float32))': '/ count',
      'np.log(np.bincount(column))': '0 * np.log(np.bincount(column))',
      'return sum(losses) / len(coarser)': 'return sum(losses)',
      'others = np.delete(np.arange(len(taxonomy.levels)), k)': (
        'others = np.arange(len(taxonomy.levels))'
      ),
      'is_other = jnp.arange(len(batch))[None] != first': (
        'is_other = jnp.arange(len(batch))[None] >= first'
      ),
      'x.astype(jnp.float32) / temperature': 'x.astype(jnp.float32)',
    },
  ),
  *faults(
    'hierjax/losses/tags.py',
    f'{TAGS}::test_binary_cross_entropy_against_a_loop {TAGS}::test_focal_loss_by_hand '
    f'{TAGS}::test_positive_weights {TAGS}::test_max_constraint_and_its_loss_against_loops '
    f'{TAGS}::test_unknown_targets_have_no_part {TAGS}::test_binary_losses_against_optax',
    {
      'jnp.exp(gamma * _log_likelihood(logits, 1 - targets))': (
        'jnp.exp(gamma * _log_likelihood(logits, targets))'
      ),
      'alpha, 1 - alpha)': 'alpha, alpha)',
      '/ jnp.maximum(is_known.sum(1), 1)': '/ is_known.shape[1]',
      'np.clip(negatives / np.maximum(positives, 1), 1 / limit, limit)': (
        'np.clip(negatives / np.maximum(positives, 1), 0, limit)'
      ),
      '(targets[:, above] != 1) | (targets[:, below] == 1)': '(targets[:, below] == 1)',
    },
  ),
  *faults(
    'hierjax/losses/balancers.py',
    f'{BALANCING}::test_uw_and_imtl_l {BALANCING}::test_dwa_over_epochs {BALANCING}::test_dtp '
    f'{BALANCING}::test_memoryless {BALANCING}::test_famo {BALANCING}::test_gradnorm '
    f'{BALANCING}::test_db_mtl',
    {
      'lambda s: 1 / (2 * jnp.exp(s)),': 'lambda s: 1 / jnp.exp(s),',
      "before = jnp.where(begins, state['last'], state['before'])": "before = state['before']",
      '-((1 - a) ** gamma) * jnp.log(a)': '-(a**gamma) * jnp.log(a)',
      'jax.nn.softmax(losses / gamma)': 'jax.nn.softmax(losses * gamma)',
      'jnp.exp(mean - log) / count': 'jnp.exp(mean - log)',
      "fall = jnp.log(state['losses'] + EPS) - jnp.log(losses + EPS)": (
        "fall = jnp.log(losses + EPS) - jnp.log(state['losses'] + EPS)"
      ),
      'jnp.mean(weights * norms) * rate**alpha': 'jnp.mean(weights * norms) * rate',
    },
  ),
  *faults(
    'hierjax/losses/balancers.py',
    f'{BALANCING}::test_two_tasks {BALANCING}::test_mgda_and_cagrad_against_slsqp',
    {'return (1 + c * ratio * w) / (1 + c**2)': 'return 1 + c * ratio * w'},
  ),
  *faults(
    'hierjax/losses/solvers.py',
    f'{BALANCING}::test_surgery_against_vectors {BALANCING}::test_imtl_g_projects_alike '
    f'{BALANCING}::test_fairgrad_and_nash_against_root_finding '
    f'{BALANCING}::test_aligned_has_one_singular_value',
    {
      'axis=1), 0)\n    along = jnp.where': 'axis=1), 9)\n    along = jnp.where',
      'jnp.where(meets & (current < goal), added, 0)': 'jnp.where(meets, added, 0)',
      'w = jnp.where(present, solved / norms, 0)': 'w = jnp.where(present, solved, 0)',
      'jnp.sqrt(least / jnp.where(above, values, 1))': 'least / jnp.where(above, values, 1)',
      'norms ** (-2 / (power + 1)) * x': 'norms ** (-1 / (power + 1)) * x',
    },
  ),
]

TAXONOMY = [
  *faults(
    'hierjax/taxonomy/relations.py',
    TABLE,
    {
      'return (self.paths[a] != self.paths[b]).sum(-1)': (
        'return (self.paths[a] == self.paths[b]).sum(-1)'
      ),
      'np.polynomial.Polynomial([-1, 1]) ** sum': 'np.polynomial.Polynomial([1, 1]) ** sum',
      'np.where(low == high, low, -1)': 'low',
    },
  ),
  *faults(
    'hierjax/taxonomy/table.py',
    TABLE,
    {
      'is_carried[self.paths[self.depth <= k, k]] = True': (
        'is_carried[self.paths[self.depth < k, k]] = True'
      ),
      'enumerate(path[:depth])': 'enumerate(path[: depth - 1])',
      'is_ended = self.depth <= k + 1': 'is_ended = self.depth <= k',
    },
  ),
  *faults(
    'hierjax/taxonomy/tags.py',
    f'{TAGS} tests/train/test_mixed.py',
    {
      'lower = np.flatnonzero(parent >= 0)': 'lower = np.flatnonzero(parent > 0)',
      'rows[is_unknown & (finer == 1).any(-1), c] = 1': (
        'rows[is_unknown & (finer == 1).all(-1), c] = 1'
      ),
      '(rows[:, below] == 1) & (rows[:, ancestor : ancestor + 1] == 0)': (
        '(rows[:, below] == 1) & (rows[:, ancestor : ancestor + 1] <= 0)'
      ),
    },
  ),
]

MODELS = [
  *faults(
    'hierjax/models/heads.py',
    HEADS,
    {
      'previous = [_stop(out[level], self.stop_gradient and train)]': (
        'previous = [_stop(out[level], train)]'
      ),
      'np.where(is_self, 0.9, 0.1 / (self.paths - 1))': 'np.where(is_self, 0.9, 0.1)',
      "gate = nn.softmax(layers.Dense(experts.shape[1], **options, name='gate')(x))": (
        "gate = nn.sigmoid(layers.Dense(experts.shape[1], **options, name='gate')(x))"
      ),
      'y = path.layer(i, nn.relu(y) if i else y)': 'y = path.layer(i, nn.relu(y))',
      '(_stop(parts[other], train) for other in finer)': '(parts[other] for other in finer)',
    },
  ),
  *faults(
    'hierjax/models/heads.py',
    'tests/train/test_step_oracles.py::test_prototypes_are_perturbed_both_ways',
    {
      'minval=-self.noise, maxval=self.noise': 'minval=0.0, maxval=self.noise',
      'return normalized(p + noise)': 'return p + noise',
    },
  ),
  *faults(
    'hierjax/models/heads_joined.py',
    HEADS,
    {
      'nodes[level][taxonomy.paths[taxonomy.depth <= reached, k]] = False': 'pass',
      'if nests(level, coarser):': 'if True:',
    },
  ),
  *faults(
    'hierjax/models/heads_base.py',
    'tests/experiments/test_migrate.py::test_classes_with_one_source_keep_their_logits_bit_for_bit',
    {'sums = jax.nn.logsumexp(parts, -1, where=jnp.asarray(mask))': 'sums = parts.max(-1)'},
  ),
  *faults(
    'hierjax/models/heads.py',
    'tests/train/test_train_balance.py::test_prototype_heads',
    {'prototypes(x.shape[-1], train).T / self.temperature': 'prototypes(x.shape[-1], train).T'},
  ),
  *faults(
    'hierjax/models/functional.py',
    'tests/train/test_train.py::test_eight_devices_equal_one',
    {'lax.axis_index(axis) * shape[0], shape[0])': '0, shape[0])'},
  ),
  *faults(
    'hierjax/models/functional.py',
    LAYERS,
    {
      'x * jnp.exp(-0.5 * x * x)': 'x * jnp.exp(-x * x)',
      'return s * (1 + x * (1 - s))': 'return s * (1 + x * s)',
      'transpose(0, 2, 4, 1, 3, 5)': 'transpose(0, 2, 4, 3, 1, 5)',
      'down * (2 * columns - 1) + right': 'right * (2 * columns - 1) + down',
    },
  ),
  *faults(
    'hierjax/models/plain_kernels.py',
    LAYERS,
    {
      'lax.rsqrt(var + eps)': 'lax.rsqrt(var)',
      'jnp.maximum(square - jnp.square(mean), 0)': 'square',
    },
  ),
]

DATA = [
  *faults(
    'hierjax/data/stratify.py',
    'tests/data/test_stratify.py',
    {
      'round(want[k], 9), round(room[k], 9)': 'round(room[k], 9), round(want[k], 9)',
      "f'{seed}:'.encode()": "b''",
    },
  ),
  *faults(
    'hierjax/data/transforms.py',
    TRANSFORMS,
    {
      'low * (high / low) ** draws[1]': 'low + (high - low) * draws[1]',
      'crop_h / 2 + (full_h - crop_h) * draws[3]': 'crop_h / 2 + (full_h - crop_h) * draws[2]',
      'if draws[5] < augment.flip:': 'if draws[5] > augment.flip:',
      'augment.rotate * (2 * draws[4] - 1)': 'augment.rotate * draws[4]',
      '(1 - contrast) * grey': 'contrast * grey',
      'x, y = (size - new_w) // 2, (size - new_h) // 2': 'x, y = 0, 0',
    },
  ),
  *faults(
    'hierjax/data/transforms.py',
    'tests/data/test_regions.py',
    {
      'np.clip(box + MARGINS, 0, 1)': 'box',
      'draws[1] < augment.guided_mask': 'draws[0] < augment.guided_mask',
      '(c + 0.5)': 'c',
    },
  ),
  *faults(
    'hierjax/data/policy.py',
    'tests/data/test_policy.py',
    {
      'size * (STEPS + 1)': 'size * STEPS',
      'matrix = matrix @ MAPS[name](strength)': 'matrix = MAPS[name](strength) @ matrix',
      'np.cumsum(histogram) - histogram': 'np.cumsum(histogram)',
    },
  ),
  *faults(
    'hierjax/data/pipeline.py',
    'tests/data/test_pipeline.py::test_alternating_flip_shows_each_side_once_in_two_epochs',
    {'(side + epoch) % 2': 'side % 2'},
  ),
  *faults(
    'hierjax/data/decoding.py',
    TRANSFORMS,
    {'if orientation in (2, 3, 6, 7):': 'if orientation in (2, 3, 5, 7):'},
  ),
]

DECIDE = [
  *faults(
    'hierjax/decide/paths.py',
    'tests/decide/test_paths.py',
    {
      'score = path_scores(probs, taxonomy, weights)': (
        'score = path_scores(probs, taxonomy, np.ones(len(probs)))'
      ),
      'taxonomy.merge(posterior, np.add)': 'taxonomy.merge(posterior, np.maximum)',
      'np.nextafter(path_score[rows, best], np.inf)': 'path_score[rows, best]',
    },
  )
]

EVALUATE = [
  *faults(
    'hierjax/decide/paths.py',
    'tests/evaluate/test_results.py::test_the_highest_are_those_of_a_stable_sort',
    {
      'best[:, i] = scores.argmax(1)': (
        'best[:, i] = scores.shape[1] - 1 - scores[:, ::-1].argmax(1)'
      ),
      'np.sort(top(np.concatenate(maxima, 1), n), 1)': 'top(np.concatenate(maxima, 1), n)',
    },
  ),
  *faults(
    'hierjax/evaluate/metrics.py',
    f'{METRICS}::test_everything_against_loops {METRICS}::test_by_hand '
    f'{METRICS}::test_ties_follow_the_ids '
    f'{METRICS}::test_a_branch_that_ended_counts_its_class_once',
    {
      "out['fpa'] = _where(is_known.all(-1), is_right.all(-1))": (
        "out['fpa'] = _where(is_known.all(-1), is_right.any(-1))"
      ),
      'height = taxonomy.lca(pred[:, -1], labels[:, -1])': (
        'height = taxonomy.lca(pred[:, 0], labels[:, 0])'
      ),
      'is_label[:, :n].any(1)': 'is_label[:, 1:n].any(1)',
      "out['hr_macro'] = shared / true": "out['hr_macro'] = shared / predicted",
      'max(sum(map(len, taxonomy.names[1:])), 1)': 'max(sum(map(len, taxonomy.names)), 1)',
      'is_counted = ~taxonomy.carried(level)': 'is_counted = taxonomy.carried(level) | True',
      'sum(a * c for a, c in tops) / sum(c for _, c in tops)': (
        'sum(a for a, c in tops) / len(tops)'
      ),
    },
  ),
  *faults(
    'hierjax/evaluate/bootstrap.py',
    METRICS,
    {
      'np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])': (
        'np.quantile(means, [(1 - level), level])'
      ),
      'means[:, len(a) :].mean(1) - means[:, : len(a)].mean(1)': (
        'means[:, : len(a)].mean(1) - means[:, len(a) :].mean(1)'
      ),
    },
  ),
]

UNCERTAINTY = [
  *faults(
    'hierjax/evaluate/bootstrap.py',
    'tests/evaluate/test_difference.py',
    {
      'np.hypot(end - mean, of_seeds)': 'abs(end - mean)',
      'means.var(1, ddof=1) / n': 'means.var(1) / n',
      'means = means[:1] - means[1:]': 'means = means',
    },
  ),
  *faults(
    'hierjax/decide/paths.py',
    'tests/decide/test_calibration.py',
    {
      'condition(path_score, allowed, temperature)': 'condition(path_score, allowed)',
      'tuned_rows = rows[1 - half :: 2]': 'tuned_rows = rows[half::2]',
      '/ half_weights.sum()': '/ 1.0',
    },
  ),
]

NOVELTY = [
  *faults(
    'hierjax/decide/novelty.py',
    'tests/decide/test_novelty_calibration.py',
    {
      '(len(ranks) + 1) + ROUNDING': 'len(ranks) + 1 + ROUNDING',
      'return (1 + _as_high(reference, scores)) /': 'return _as_high(reference, scores) /',
    },
  ),
  *faults(
    'hierjax/decide/nodes.py',
    'tests/decide/test_novelty_calibration.py',
    {'fold[rows] = np.arange(len(rows)) % FOLDS': 'fold[rows] = np.arange(len(rows)) % 4'},
  ),
  *faults(
    'hierjax/decide/novelty.py',
    'tests/decide/test_novelty.py',
    {'rows = (y >= 0) & ~is_left_out[y]': 'rows = y >= 0'},
  ),
  *faults(
    'hierjax/model.py',
    'tests/decide/test_novelty_calibration.py::test_calibrated_on_val_whatever_is_evaluated',
    {'self._fit_detector(None, folder)': 'self._fit_detector(outputs, folder)'},
  ),
]

ORACLES = 'tests/train/test_step_oracles.py'
TRAIN = [
  *faults(
    'hierjax/train/step.py',
    f'{ORACLES}::test_clip_shortens_a_long_gradient_and_leaves_a_short_one',
    {
      'g * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))': 'g * clip / jnp.maximum(norm, 1e-12)'
    },
  ),
  *faults(
    'hierjax/train/objective.py',
    f'{ORACLES}::test_class_weights_weigh_the_losses_and_the_terms',
    {
      '_example_weights(labels, task.class_weights)\n': '1.0\n',
      'masked_mean(weight * per_example, mask, axis)': 'masked_mean(per_example, mask, axis)',
    },
  ),
  *faults(
    'hierjax/evaluate/summary.py',
    f'{ORACLES}::test_loss_weights_weigh_the_validation_loss',
    {'sum(weights[level] * losses[level] for': 'sum(losses[level] for'},
  ),
  *faults(
    'hierjax/train/optim.py',
    f'{ORACLES}::test_rates_of_the_heads_grow_upwards',
    {
      'steps_up = len(levels) - 1 - levels.index(level)': 'steps_up = levels.index(level)',
      'c.optim.heads_lr * c.optim.heads_growth**steps_up': 'c.optim.heads_growth**steps_up',
    },
  ),
  *faults(
    'hierjax/train/optim.py',
    'tests/train/test_optim.py',
    {
      "core + decay if o.name == 'adamw' else decay + core": 'core + decay',
      'c.optim.plateau_patience + 1': 'c.optim.plateau_patience',
      'optax.cosine_decay_schedule(o.lr, total_steps - warmup)': (
        'optax.cosine_decay_schedule(o.lr, total_steps)'
      ),
      'steps = max(1, round(node.share * total_steps))': 'steps = max(1, round(node.share))',
      're.fullmatch(pattern, name)': 're.match(pattern, name)',
    },
  ),
  *faults(
    'hierjax/train/step.py',
    'tests/train/test_shard.py::test_devices_that_share_out_the_classes_equal_one',
    {'axes = (context.axis, classes) if': 'axes = context.axis if'},
  ),
  *faults(
    'hierjax/train/reduction.py',
    'tests/train/test_shard.py::test_devices_that_share_out_the_classes_equal_one '
    'tests/train/test_shard.py::test_gradients_are_reduced_in_buckets',
    {'summed[i] = jax.lax.psum(x, axis)': 'summed[i] = x', 'size += sizes[i]': 'size = sizes[i]'},
  ),
  *faults(
    'hierjax/train/state.py',
    'tests/train/test_shard.py::test_devices_that_share_out_the_classes_equal_one',
    {"(parallel.CLASS_AXIS,) if 'heads' in keys": "() if 'heads' in keys"},
  ),
  *faults(
    'hierjax/train/step.py',
    'tests/train/test_train.py::test_ema_against_a_loop',
    {'e + share * (p - e)': 'e + (1 - share) * (p - e)'},
  ),
  *faults(
    'hierjax/train/optim.py',
    'tests/train/test_train.py::test_frozen_backbone_costs_no_gradient',
    {'x != FIXED and group_of(path) not in freeze': 'x != FIXED'},
  ),
  *faults(
    'hierjax/train/step.py',
    'tests/train/test_train_balance.py::test_gradients_of_shared_weights_are_combined',
    {
      'grads = {**balancing.weighted(balanced.loss_weights, others), **balanced.gradient}': (
        'grads = {**result.grads[0], **balanced.gradient}'
      )
    },
  ),
]

EXPERIMENTS = [
  *faults(
    'hierjax/experiments/migrate_heads.py',
    'tests/experiments/test_migrate.py',
    {'new.levels[: new.index(level)][::-1]': 'new.levels[: new.index(level)]'},
  )
]

CORE = [
  *faults(
    'hierjax/core/options.py',
    'tests/core tests/losses/test_balance_options.py',
    {
      'value == 0 and self._zero_is_off()': 'value == 0',
      'return tuple(value) if isinstance(value, list) else value': 'return value',
    },
  ),
  *faults(
    'hierjax/core/config.py',
    'tests/core tests/train/test_train.py::test_resume_refuses_other_options_and_other_taxonomy',
    {
      'if before != after:': 'if before is None:',
      'option.validate(value_at(c, path))': 'value_at(c, path)',
    },
  ),
]

REPORT = [
  *faults(
    'hierjax/report/formats.py',
    'tests/report/test_report.py::test_numbers_in_words',
    {'{seconds // 60} min {seconds % 60:02d} s': '{seconds // 60} min {seconds % 60} s'},
  )
]

MUTANTS = [
  *LOSSES,
  *TAXONOMY,
  *MODELS,
  *DATA,
  *DECIDE,
  *EVALUATE,
  *UNCERTAINTY,
  *NOVELTY,
  *TRAIN,
  *EXPERIMENTS,
  *CORE,
  *REPORT,
]
