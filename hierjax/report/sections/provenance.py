"""The images of a run, its configuration, and what is needed to make it again."""

import json

from markupsafe import Markup

from hierjax.report.formats import count, duration
from hierjax.report.runs import Run, flat, get
from hierjax.report.section import Section
from hierjax.report.templates import render

# Skipped files that are named.
FILES = 500


def _data(run: Run) -> Markup:
  """Render the number of images, those that could not be read, and the notes on the data."""
  unreadable = {split: run.evals[split].get('unreadable') for split in run.splits}
  skipped = [str(file) for file in run.info.get('skipped') or []]
  return render('data', info=run.info, unreadable=unreadable, skipped=skipped, limit=FILES)


def _configuration(run: Run) -> Markup:
  """Render all options by group."""
  groups: dict[str, list] = {}
  for key, value in flat(run.config).items():
    group, _, name = key.rpartition('.')
    text = json.dumps(value, ensure_ascii=False, default=str)
    groups.setdefault(group, []).append((name, text))
  return render('configuration', groups=sorted(groups.items()))


def _reproduction(run: Run) -> Markup:
  """Render the command, seeds, versions and hashes."""
  info = run.info
  facts = {
    'seed': run.config.get('seed'),
    'seed of the split': get(run.config, 'data.split_seed'),
    'started': info.get('started'),
    'finished': info.get('finished'),
    'device': info.get('device'),
    'time': duration(info['seconds']) if info.get('seconds') else None,
    'parameters': count(info['params']) if info.get('params') else None,
    'taxonomy': run.taxonomy.hash()[:16] if run.taxonomy else None,
    'files, splits and labels': (info.get('data_sha256') or '')[:16] or None,
    'training state': (info.get('state_sha256') or '')[:16] or None,
  }
  facts = {label: value for label, value in facts.items() if value is not None}
  versions = sorted((info.get('versions') or {}).items())
  return render('reproduction', info=info, facts=[*facts.items(), *versions])


DATA = Section('data', 'Data', _data)
CONFIGURATION = Section('configuration', 'Configuration', _configuration, is_technical=True)
REPRODUCTION = Section('provenance', 'Reproducibility', _reproduction, is_technical=True)
