"""hierjax predict: classes of images, a line of JSON for each, on stdout or in a file."""

import importlib
import os
import sys
import zlib
from collections import Counter

from hierjax import runtime
from hierjax.cli import images
from hierjax.cli.arguments import Arguments
from hierjax.cli.predictions import Output
from hierjax.core import json_files, terminal
from hierjax.core.errors import UserError
from hierjax.evaluate.predictor import Predictor
from hierjax.taxonomy import read_classes

# what evaluation has fitted, predict only reads; --risk takes another risk
CHANGEABLE = ('data.', 'eval.', 'decide.novelty', 'decide.label_gains', 'plugins')
# of an exported model: how a CSV of images is read, and what its records have
CSV_OPTIONS = ('data.file_column', 'data.image_root', 'data.delimiter', 'data.encoding')
EXPORTED = (*CSV_OPTIONS, 'decide.label_gains')


def run(args: Arguments) -> None:
  """Predict all images, each as soon as it is there, and count those that cannot be read."""
  if args.artefact:
    args.check_overrides(EXPORTED, args.artefact)
    c, load = args.config, _load_exported
  else:
    # Imported only for runs, with jax, which exported models do without.
    runs = importlib.import_module('hierjax.cli.runs')
    c, load = runs.run_config(args, args.workdir, CHANGEABLE), runs.load
  paths = images.expand(args.images, c.data)
  shard = _shard(args.shard)
  if shard:
    # by its name, so that an image stays in its shard when others are added
    i, n = shard
    paths = {x: path for x, path in paths.items() if zlib.crc32(os.fsencode(x)) % n == i}
  output = Output(args.output, shard) if args.output else None
  predictor = load(args)
  if args.risk is not None:
    try:
      risk = float(args.risk)
    except ValueError:
      raise UserError(f'--risk={args.risk}: must be a number, as .05') from None
    predictor = predictor.at_risk(risk)
  if output:
    output.open(predictor.fingerprint())
    remaining = {name: path for name, path in paths.items() if name not in output.names}
    if len(remaining) < len(paths):
      count = len(paths) - len(remaining)
      terminal.say(f'{output.path} holds {count} of {len(paths)} images, which are skipped')
    paths = remaining
  records = predictor.predict_iter(paths.values())
  errors, show = Counter(), terminal.Progress()
  for count, (name, record) in enumerate(zip(paths, records), 1):
    record['file'] = name
    errors.update([record['error']] if 'error' in record else [])
    if output:
      output.write(record)
    else:
      print(json_files.dump(record), flush=True)
    # a terminal shows one of the two
    if output or not sys.stdout.isatty():
      show(count, len(paths))
  if output:
    output.close()
  if note := predictor.drift_note():
    terminal.say(note)
  if errors:
    listing = '; '.join(f'{reason} ({n})' for reason, n in errors.most_common(3))
    terminal.say(f'{errors.total()} of {len(paths)} images could not be read: {listing}')


def _shard(text):
  """Parse --shard=i/n into (i, n); None without it."""
  if text is None:
    return None
  i, _, n = text.partition('/')
  if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
    raise UserError(f'--shard={text}: must be i/n with i from 0 to n - 1, as 0/4')
  return int(i), int(n)


def _load_exported(args: Arguments) -> Predictor:
  exported = runtime.load(args.artefact).explaining(gains=args.config.decide.label_gains)
  if not args.classes:
    return exported
  return exported.within(read_classes(args.classes, exported.taxonomy, args.region))
