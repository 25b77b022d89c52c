"""A plan: options chosen by a fingerprint of the data and the machine, each with its reason.

Only options that neither the config nor a flag sets are chosen. A rule says what it rests on:
arithmetic, a measurement (BUILD_NOTES.md), or a rule of thumb.
"""

import copy
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import model
from hierjax.core import config, parallel
from hierjax.data import decoding
from hierjax.experiments.workdir import has_run
from hierjax.models import registry
from hierjax.train import setup

SAMPLES = 64  # images whose size is looked at
# Images that training sees in all. The larger number is that of the Big Transfer paper for its
# largest data sets (arXiv:1912.11370, 20,000 steps of 512).
MIN_SEEN, MAX_SEEN, MAX_EPOCHS = 32_000, 10_240_000, 50
OPTIONS = ('data.size', 'train.epochs', 'loss.any_level', 'loss.logit_adjust', 'model.dtype')
OPTIONS += ('data.threads', 'eval.tta')


class Fingerprint(NamedTuple):
  """What a plan knows of the data and the machine."""

  images: int  # of the training split
  val_images: int
  classes: dict[str, int]  # {level: number}, coarse to fine, tag levels last
  tags: tuple[str, ...]  # the tag levels
  tail: tuple[int, float] | None  # training images of the rarest and of the median finest class
  missing: dict[str, float]  # {exclusive level: share of the training images without its label}
  partial: float  # share of them with a coarser label, but none of the finest level
  side: float | None  # median of the shorter sides of sampled images in pixels
  devices: str  # '1 cpu'
  cores: int  # of this process


def fingerprint(run: setup.Setup) -> Fingerprint:
  """Look at the data of a run and at the machine."""
  taxonomy, labels, tail, sides = run.taxonomy, run.train.labels, None, []
  n, block = len(labels), taxonomy.block('exclusive')
  if block:
    counts = np.unique(labels[labels[:, -1] >= 0, -1], return_counts=True)[1]
    tail = (int(counts.min()), float(np.median(counts))) if len(counts) else None
  is_known = labels >= 0
  for i in sorted({k * n // SAMPLES for k in range(SAMPLES)}):
    try:
      # of a JPEG the header is enough
      sides.append(min(decoding.open_picture(run.train.reader(i))[:2]))
    except (OSError, decoding.BrokenImage):
      continue
  return Fingerprint(
    images=n,
    val_images=len(run.val.labels),
    classes={level: taxonomy.num_classes(level) for level in taxonomy.levels},
    tags=tuple(taxonomy.multi),
    tail=tail,
    missing=dict(zip(block.levels, (1 - is_known.mean(0)).tolist())) if block else {},
    partial=float((is_known.any(1) & ~is_known[:, -1]).mean()) if block else 0.0,
    side=float(np.median(sides)) if sides else None,
    devices=f'{run.mesh.size} {jax.devices()[0].platform}',
    cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
  )


def _rules(c: ConfigDict, f: Fingerprint) -> Iterator[tuple[str, object, str]]:
  """Yield option, value and reason; the caller assigns each that is open before the next."""
  backbone = registry.BACKBONES[c.model.backbone]
  least, step = min(backbone.size, 32 if c.model.stem == 'small' else 128), backbone.multiple
  if f.side:
    reason = f'the shorter side of the median image has {f.side:g} pixels, {c.model.backbone} is '
    reason += f'for {backbone.size}: more adds time, not detail; below {least} its maps get small'
    yield 'data.size', min(backbone.size, max(least, step * -(-int(f.side) // step))), reason
  if not c.train.steps and not c.train.examples:
    epochs = max(c.train.epochs, min(MIN_SEEN / f.images, MAX_EPOCHS))
    reason = f'training sees at least {MIN_SEEN:,} images in at most {MAX_EPOCHS} epochs (a rule '
    reason += f'of thumb), at most {MAX_SEEN:,} (BiT paper); here are {f.images:,}'
    yield 'train.epochs', float(f'{min(epochs, MAX_SEEN / f.images):.2g}'), reason
  if f.partial and not any(c.loss[k] for k in ('smoothing', 'lca', 'hxe', 'hace', 'margin')):
    reason = f'{f.partial:.1%} of the training images have a coarser label but no finest one: the '
    reason += 'finest head learns from them, too (on Stanford Cars with half of them hidden, one '
    yield 'loss.any_level', True, reason + 'head: accuracy .683, and .501 without these images)'
  if f.tail and f.tail[1] >= 5 * f.tail[0]:
    reason = f'the rarest class has {f.tail[0]} images, the median one {f.tail[1]:g}. Left as it '
    reason += 'is: 1 is for where rare classes count as much as frequent ones'
    yield 'loss.logit_adjust', c.loss.logit_adjust, reason
  if f.devices.endswith('cpu'):
    yield 'model.dtype', 'float32', 'a processor computes; bfloat16 is for accelerators'
    reason = 'the step needs the cores, and two threads read 2,500 images/s of Stanford Cars'
    yield 'data.threads', min(2, f.cores), reason
  else:
    yield 'model.dtype', 'bfloat16', 'for accelerators (ResNet-50 on an H200: 1.6 times as fast)'
    yield 'data.threads', min(16, f.cores), 'the cores are free while the accelerator computes'
  if c.data.augment.enabled and c.data.augment.flip:
    reason = 'the model learns from mirrored images, so it may judge both views (ladder on Cars: '
    yield 'eval.tta', 2, reason + '+3.3 points); one more pass at the end'
  else:
    yield 'eval.tta', 1, 'the model does not learn from mirrored images'


def choose(c: ConfigDict, f: Fingerprint) -> tuple[ConfigDict, dict[str, str]]:
  """Choose the options that neither the config nor a flag sets, be it to the default.

  Returns:
    A copy of the config with the choices and without `plan`, and {chosen option: reason}.
  """
  c, reasons = copy.deepcopy(c), {}
  c.plan = False
  for option, value, reason in _rules(c, f):
    if not config.is_set(c, option):
      config.assign(c, option, value)
      reasons[option] = reason
  return c, reasons


def for_run(c: ConfigDict, workdir: pathlib.Path) -> tuple[ConfigDict, list[str]]:
  """Choose what a config with `plan` leaves open; a run in the folder keeps what it began with.

  Returns:
    A config without `plan`, and notes for the log.
  """
  config.check_tree(c)
  if not c.plan:
    return c, []
  if has_run(workdir):
    reasons = {option: '' for option in OPTIONS if not config.is_set(c, option)}
    planned = model.run_config(workdir)
  else:
    planned, reasons = choose(c, fingerprint(setup.build(c)))
  values = {option: config.value_at(planned, option) for option in reasons}
  c = copy.deepcopy(c)
  # the machines of several processes may differ: the first one decides
  for option, value in {**parallel.exchange(values)[0], 'plan': False}.items():
    config.assign(c, option, value)
  return c, [f'plan: {name}={values[name]}: {text}' for name, text in reasons.items() if text]
