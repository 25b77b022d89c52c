"""hierjax on the command line: hierarchical image classification.

  python main.py --config=configs/quickstart.py --workdir=runs/first                       train on the embedded drawings
  python main.py --config=configs/3head.py --config.data.root=FOLDER --workdir=runs/mine    train on your images
  python main.py --mode=evaluate --workdir=runs/mine --split=val                            metrics as JSON
  python main.py --mode=report   --workdir=runs/mine                                        report.html; evaluates val where that is missing
  python main.py --mode=predict  --workdir=runs/mine --images='photos/*.jpg'                one JSON line an image
  python main.py --mode=table    --config=configs/tables/s0_table1.py --workdir=runs/s0     a paper's table, row by row, beside its figures
  python main.py --mode=migrate  --from=runs/mine --taxonomy=new.csv --workdir=runs/grown    the run on a changed taxonomy; --mode=train goes on with it
  python main.py --mode=lint     --config.data.root=FOLDER                                  check taxonomy, labels and images
  python main.py --mode=describe --config=configs/3head.py                                  parameters and MACs of the model

FOLDER holds labels.csv and taxonomy.csv, or a Parquet data set, or nested class folders. Any option is a flag: --config.optim.lr=3e-4;
hierjax/core/config.py lists them all with a word on each.

--mode=table trains the rows of a published table, each in WORKDIR/ROW/seedK, and writes table.html, table.md and table.csv into WORKDIR after each row:
ours (mean and deviation over --seeds=0,1,2) beside the paper's. The same command goes on after an interruption; what has finished is not run again. Flags
--config.* change every row: --limit=300 --config.train.epochs=1 is a look in minutes, --rows='densenet121* maxvit_t,flat*' takes some rows only, --split=test
takes the figures from another split than val. One row alone: --config=configs/tables/s0_table1.py:ROW, in every other mode that takes a config; in this mode
FILE:ARGUMENT is one of several tables, where the file has several.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import traceback

# Large temporaries are fresh memory at each step; huge pages make them an eighth cheaper on Linux CPUs. malloc reads this only when a process starts.
TUNABLES = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864'
if (
  __name__ == '__main__'
  and sys.platform == 'linux'
  and os.environ.get('HIERJAX_HUGEPAGES', '1') == '1'
  and 'GLIBC_TUNABLES' not in os.environ
):
  os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, 'GLIBC_TUNABLES': TUNABLES})


def interrupted(signum, _):
  """Ctrl-C outside of the training loop, which has a handler of its own, ends in one line. A KeyboardInterrupt would be a traceback, or be lost where it
  meets a callback that cannot raise; and threads that read ahead are not waited for."""
  os.write(2, b'\nstopped\n')
  os._exit(128 + signum)


if __name__ == '__main__':
  signal.signal(signal.SIGINT, interrupted)

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

MODES = ('train', 'evaluate', 'report', 'predict', 'lint', 'describe', 'table', 'migrate')
READ_BY = {
  'workdir': ('train', 'evaluate', 'report', 'predict', 'table', 'migrate'),
  'split': ('evaluate', 'table'),
  'images': ('predict',),
  'seeds': ('table',),
  'rows': ('table',),
  'limit': ('table',),
  'from': ('migrate',),
  'taxonomy': ('migrate',),
  'renames': ('migrate',),
  'shots': ('migrate',),
}
FLAGS = flags.FLAGS
flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
flags.DEFINE_string(
  'workdir',
  '',
  "The run's folder: train writes it and goes on with it (runs/NAME by default), the others read it.",
)
flags.DEFINE_string('split', 'val', 'evaluate, table: the split.')
flags.DEFINE_list(
  'seeds', [], "table: a run of every row for each, as 0,1,2; the table's own by default."
)
flags.DEFINE_string(
  'rows', '', 'table: names of rows or patterns with *, separated by spaces; all by default.'
)
flags.DEFINE_integer(
  'limit',
  None,
  'table: at most so many images of each split, for a look; the same as --config.data.limit.',
  lower_bound=1,
)
flags.DEFINE_string('images', '', 'predict: a file, a folder or a glob in quotes.')
flags.DEFINE_string('from', '', 'migrate: the folder of the trained run.')
flags.DEFINE_string('taxonomy', '', 'migrate: the new taxonomy, a CSV.')
flags.DEFINE_string(
  'renames',
  '',
  'migrate: a CSV with the columns level, old, new; two old names for one new one are a merge, the reverse a split.',
)
flags.DEFINE_integer(
  'shots',
  0,
  'migrate: a new class starts from so many of its training images; 0 = from its siblings.',
  lower_bound=0,
)
flags.DEFINE_boolean(
  'distributed',
  False,
  'train, evaluate: this is one of several processes; SLURM, Open MPI, GKE and Cloud TPU are found by themselves.',
)
flags.DEFINE_string(
  'coordinator', '', 'distributed: HOST:PORT of process 0, where no cluster is found.'
)
flags.DEFINE_integer('num_processes', None, 'distributed: how many, where no cluster is found.')
flags.DEFINE_integer('process_id', None, 'distributed: which of them this is, from 0.')
flags.DEFINE_integer(
  'start_timeout',
  300,
  'distributed: seconds to wait for all processes at the start.',
  lower_bound=1,
)
flags.DEFINE_integer(
  'peer_timeout',
  100,
  'distributed: seconds of silence after which a process counts as dead and the others stop.',
  lower_bound=1,
)


def run_config(folder, may_change=('data.', 'eval.')):
  """The configuration of a run with this command line's --config.* flags on top; --config=FILE itself does not count."""
  from hierjax import model as predict
  from hierjax.core import config

  c = predict.run_config(pathlib.Path(folder))
  for path, value in config_flags.get_override_values(FLAGS['config']).items():
    if not path.startswith(may_change):
      *others, last = (f'--config.{group}{"*" * group.endswith(".")}' for group in may_change)
      choices = f'{", ".join(others)} and {last}'
      raise config.UserError(
        f'--config.{path}: --mode={FLAGS.mode} takes its model from {folder}; only {choices} can change'
      )
    config.assign(c, path, value)
  return c


def make_table() -> int:
  """--mode=table: all rows of the config file's table; returns the exit status."""
  from hierjax.core import config
  from hierjax.experiments import table

  file, _, argument = config_flags.get_config_filename(FLAGS['config']).partition(':')
  found = runpy.run_path(file)
  if not callable(found.get('get_table')):
    raise config.UserError(
      f'--mode=table: {file} has no function get_table; tables are in {pathlib.Path(__file__).parent / "configs" / "tables"}'
    )
  if not all(s.strip().isdecimal() for s in FLAGS.seeds):
    raise config.UserError(
      f'--seeds={",".join(FLAGS.seeds)}: must be whole numbers from 0, as 0,1,2'
    )
  overrides = dict(config_flags.get_override_values(FLAGS['config'])) | (
    {'data.limit': FLAGS.limit} if FLAGS.limit else {}
  )
  workdir = FLAGS.workdir or 'runs/' + '_'.join(filter(None, [pathlib.Path(file).stem, argument]))
  runner = table.Runner(
    *table.load(found, argument),
    workdir,
    [int(s) for s in FLAGS.seeds],
    FLAGS.rows,
    FLAGS.split if FLAGS['split'].present else '',
    overrides,
  )
  failed = runner.run(in_words)
  print((runner.workdir / 'table.md').read_text())
  print(f'table: {runner.workdir / "table.html"}', file=sys.stderr)
  return say(f'{failed} runs of rows failed; the same command tries them again') if failed else 0


def join() -> None:
  """The start of several processes; before anything else, as it must come before any use of a device."""
  from hierjax.core import config, parallel

  if not FLAGS.distributed:
    if FLAGS.coordinator or FLAGS.num_processes is not None or FLAGS.process_id is not None:
      raise config.UserError('--coordinator, --num_processes and --process_id need --distributed')
    return
  if FLAGS.mode not in ('train', 'evaluate'):
    raise config.UserError(
      f'--distributed: --mode={FLAGS.mode} runs in one process; train and evaluate run in several'
    )
  parallel.start(
    FLAGS.coordinator,
    FLAGS.num_processes,
    FLAGS.process_id,
    FLAGS.start_timeout,
    FLAGS.peer_timeout,
  )


def run() -> None:
  import jax

  from hierjax import model as predict
  from hierjax.core import config, parallel
  from hierjax.data import lint
  from hierjax.experiments import migrate
  from hierjax.report import page
  from hierjax.train import loop as train

  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(
    pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'hierjax' / 'jax'
  )
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  for name, modes in READ_BY.items():
    if FLAGS[name].present and FLAGS.mode not in modes:
      raise config.UserError(
        f'--{name} means nothing to --mode={FLAGS.mode}, only to {", ".join(modes)}'
      )
  FLAGS.workdir = os.path.expanduser(
    FLAGS.workdir
  )  # a shell leaves the ~ of --workdir=~/x as it is
  if FLAGS.mode in ('evaluate', 'report', 'predict') and not FLAGS.workdir:
    raise config.UserError(
      f'--mode={FLAGS.mode} needs --workdir=FOLDER, the one that was trained in'
    )
  if FLAGS.mode == 'train':
    c, workdir = FLAGS.config, FLAGS.workdir or f'runs/{FLAGS.config.name or "run"}'
    if not FLAGS['config'].present and os.path.exists(
      os.path.join(workdir, 'config.json')
    ):  # it goes on as it was begun
      c = run_config(workdir, tuple(config.default()))
    result = train.fit(c, workdir)
    if parallel.first():
      print(json.dumps(result))
  elif FLAGS.mode == 'evaluate':
    result = predict.load(FLAGS.workdir, run_config(FLAGS.workdir)).evaluate(
      FLAGS.split, progress=progress if parallel.first() else None
    )
    if parallel.first():
      print(f'report: {page.write(FLAGS.workdir)}', file=sys.stderr)
      print(json.dumps(result))
  elif FLAGS.mode == 'report':
    c = run_config(FLAGS.workdir)
    try:
      predict.complete(FLAGS.workdir, c, progress)
    except config.UserError as e:
      print(f'the report shows what is there: {e}', file=sys.stderr)
    print(page.write(FLAGS.workdir))
  elif FLAGS.mode == 'predict':
    if not FLAGS.images:
      raise config.UserError(
        "--mode=predict needs --images: a file, a folder or a glob in quotes, as --images='photos/*.jpg'"
      )
    for line in predict.stream(
      predict.load(FLAGS.workdir, run_config(FLAGS.workdir)), FLAGS.images
    ):
      print(json.dumps(line), flush=True)
  elif FLAGS.mode == 'migrate':
    for name in ('from', 'taxonomy', 'workdir'):
      if not FLAGS[name].value:
        raise config.UserError(
          f'--mode=migrate needs --{name}; it is called as --mode=migrate --from=RUN --taxonomy=NEW.csv --workdir=NEWRUN'
        )
    c = run_config(
      FLAGS['from'].value,
      (
        'name',
        'seed',
        'data.',
        'loss.',
        'balance.',
        'optim.',
        'train.',
        'log.',
        'curriculum.',
        'eval.',
      ),
    )
    print(
      migrate.migrate(
        FLAGS['from'].value, FLAGS.taxonomy, FLAGS.workdir, c, FLAGS.renames, FLAGS.shots
      )
    )
    print(f'--mode=train --workdir={FLAGS.workdir} trains it further', file=sys.stderr)
  elif FLAGS.mode == 'table':
    sys.exit(make_table())
  elif FLAGS.mode == 'describe':
    print(json.dumps(predict.describe(FLAGS.config)))
  else:
    config.validate(FLAGS.config)
    found = lint.check(FLAGS.config.data)
    print(found.text())
    sys.exit(any(p.severity == 'error' for p in found.problems))


def progress(done: int, total: int) -> None:
  if done < total and not sys.stderr.isatty():  # a log wants no line for each batch
    return
  print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv) -> None:
  logging.set_verbosity(
    logging.FATAL
  )  # Orbax and jax log pages, tracebacks of their threads among them; what matters is raised too, and told in a line
  from hierjax.core import config, parallel
  from hierjax.train import loop as train

  code, together = 0, False  # together: all processes have come to the same end
  try:
    if len(argv) > 1:
      raise config.UserError(
        f'what is {argv[1]!r}? All that main.py takes are flags: --mode=..., --config=..., --workdir=...; see --help'
      )
    join()
    run()
    together = True
  except train.Interrupted as e:
    print(e, file=sys.stderr)
    code, together = 128 + e.signum, True
  except BrokenPipeError:
    code = 128 + signal.SIGPIPE
  except Exception as e:
    if told := in_words(e):
      code = say(told)
    elif FLAGS.distributed:
      code = parallel.explain(e)
    else:
      raise
  parallel.stop(code, together)
  sys.exit(code)


def in_words(e: Exception) -> str:
  """What a user can do something about, in a line; '' for a fault of hierjax's own, which shall show its traceback."""
  from hierjax.core import config

  if isinstance(e, config.UserError):
    return str(e)
  if (
    isinstance(e, OSError) and e.filename is not None
  ):  # a folder that may not be written, a file that goes away
    return f'{e.filename}: {e.strerror}'
  if isinstance(e, MemoryError) or (
    isinstance(e, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(e)
  ):  # the latter as jax says it of an accelerator
    return f'out of memory ({str(e)[:200] or "of this machine"}); lower --config.train.batch_size, --config.eval.batch_size or --config.data.size'
  return ''


def say(text: str) -> int:
  """One line, whatever stands in the names and cells that it tells of; returns the exit status."""
  line = ''.join(c if c.isprintable() else ' ' if c.isspace() else repr(c)[1:-1] for c in text)
  print(
    'error: ' + (line if len(line) < 1000 else f'{line[:700]} ... {line[-250:]}'), file=sys.stderr
  )
  return 2


def stop(text: str) -> None:
  sys.exit(say(text))


def parse(argv):
  """absl's parsing; what is wrong with the options or the config file is one line."""
  from hierjax.core import config

  argv = [*argv]
  for i in [i for i, a in enumerate(argv[:-1]) if a in ('--config', '-config')][::-1]:
    argv[i : i + 2] = [f'--config={argv[i + 1]}']
  files = [a for a in argv if a.startswith(('--config=', '-config='))]
  sys.argv[1:] = argv[1:] = files + [
    a for a in argv[1:] if a not in files
  ]  # config_flags wants the file before its options, and reads sys.argv itself
  given, known = (
    [a[len('--config.') :].split('=')[0] for a in argv if a.startswith('--config.')],
    config.paths(config.default()),
  )
  for fault in map(file_fault, (a.partition('=')[2] for a in files)):
    if fault:
      stop(fault)
  if unknown := [p for p in given if not any(k == p or k.startswith(f'{p}.') for k in known)]:
    stop(
      f'--config.{unknown[0]}: no such option{config.did_you_mean(unknown[0], known)}; hierjax/core/config.py lists them'
    )
  try:  # the config flag reads its default file, and the overrides, when it is defined
    config_flags.DEFINE_config_file(
      'config',
      str(pathlib.Path(__file__).parent / 'hierjax/core/config.py'),
      'FILE.py[:ARG], usually of configs/.',
    )
    return FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as e:
    text = ' '.join(
      str(e).replace('"', '').replace("'", '').replace('\\n', ' ').replace('\\', '').split()
    )
    stop(f'{text}{"; hierjax/core/config.py lists the options" if "config." in text else ""}')


def file_fault(spec: str) -> str:
  """What is wrong with the config file FILE[:ARG]; '' if nothing is."""
  from hierjax.core import config

  file, colon, arg = spec.partition(':')
  if not pathlib.Path(file).is_file():
    return f"--config={spec}: no such file; hierjax's own are in {pathlib.Path(__file__).parent / 'configs'}"
  try:
    found = runpy.run_path(file)
    if not callable(found.get('get_config')):
      return f'--config={spec}: {file} has no function get_config'
    config.check_tree(found['get_config'](*[arg] if colon else []))
    if callable(found.get('get_table')):
      from hierjax.experiments import table

      table.load(found)
  except config.UserError as e:
    return f'--config={spec}: {e}'
  except (Exception, SystemExit) as e:
    lines = (
      [e.lineno]
      if isinstance(e, SyntaxError)
      else [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == file]
    )
    where, text = (
      f'line {lines[-1]}: ' if lines and lines[-1] else '',
      ' '.join(str(e).replace('\\n', ' ').replace('\\', '').split()),
    )
    return f'--config={spec}: {where}{type(e).__name__}: {text if len(text) < 300 else f"{text[:130]} ... {text[-130:]}"}'
  return ''


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
