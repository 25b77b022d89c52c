"""hierjax predict: classes of images, a line of JSON for each, on stdout or in a file."""

import importlib
import sys
from collections import Counter

from hierjax import runtime
from hierjax.cli import images
from hierjax.cli.arguments import Arguments
from hierjax.cli.predictions import Output
from hierjax.core import json_files, terminal
from hierjax.evaluate.predictor import Predictor
from hierjax.taxonomy import read_classes


def run(args: Arguments) -> int:
  """Predict all images, each as soon as it is there, and count those that cannot be read."""
  # Imported only for runs, with jax, which exported models do without.
  runs = None if args.artefact else importlib.import_module('hierjax.cli.runs')
  c = runs.run_config(args, args.workdir) if runs else args.config
  paths = images.expand(args.images, c.data)
  output = Output(args.output) if args.output else None
  skipped = [name for name in paths if output and name in output.names]
  if skipped:
    terminal.say(
      f'{args.output} holds {len(skipped)} of {len(paths)} images, which are skipped; for another '
      'model give another --output'
    )
  paths = {name: path for name, path in paths.items() if not output or name not in output.names}
  load = runs.load if runs else _load_exported
  records = load(args).predict_iter(paths.values()) if paths else ()
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
  if errors:
    listing = '; '.join(f'{reason} ({n})' for reason, n in errors.most_common(3))
    terminal.say(f'{errors.total()} of {len(paths)} images could not be read: {listing}')
  return 0


def _load_exported(args: Arguments) -> Predictor:
  exported = runtime.load(args.artefact)
  if not args.classes:
    return exported
  return exported.within(read_classes(args.classes, exported.taxonomy, args.region))
