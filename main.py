"""hierjax on the command line: hierarchical image classification.

  python main.py --config=configs/quickstart.py --workdir=runs/first                       train on the embedded drawings
  python main.py --config=configs/3head.py --config.data.root=FOLDER --workdir=runs/mine    train on your images
  python main.py --mode=evaluate --workdir=runs/mine --split=val                            metrics as JSON
  python main.py --mode=predict  --workdir=runs/mine --images='photos/*.jpg'                one JSON line an image
  python main.py --mode=lint     --config.data.root=FOLDER                                  check taxonomy, labels and images
  python main.py --mode=describe --config=configs/3head.py                                  parameters and MACs of the model

FOLDER holds labels.csv and taxonomy.csv, or a Parquet data set, or nested class folders. Any option is a flag: --config.optim.lr=3e-4;
hierjax/config.py lists them all with a word on each.
"""

import json
import os
import pathlib
import signal
import sys

# Large temporaries are fresh memory at each step; huge pages make them an eighth cheaper on Linux CPUs. malloc reads this only when a process starts.
TUNABLES = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864'
if __name__ == '__main__' and sys.platform == 'linux' and os.environ.get('HIERJAX_HUGEPAGES', '1') == '1' and 'GLIBC_TUNABLES' not in os.environ:
  os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, 'GLIBC_TUNABLES': TUNABLES})

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

MODES = ('train', 'evaluate', 'predict', 'lint', 'describe')
FLAGS = flags.FLAGS
flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
flags.DEFINE_string('workdir', '', "The run's folder: train writes it and goes on with it (runs/NAME by default), evaluate and predict read it.")
flags.DEFINE_string('split', 'val', 'evaluate: the split.')
flags.DEFINE_string('images', '', 'predict: a file, a folder or a glob in quotes.')
flags.DEFINE_boolean('distributed', False, 'train, evaluate: this is one of several processes; SLURM, Open MPI, GKE and Cloud TPU are found by themselves.')
flags.DEFINE_string('coordinator', '', 'distributed: HOST:PORT of process 0, where no cluster is found.')
flags.DEFINE_integer('num_processes', None, 'distributed: how many, where no cluster is found.')
flags.DEFINE_integer('process_id', None, 'distributed: which of them this is, from 0.')
flags.DEFINE_integer('start_timeout', 300, 'distributed: seconds to wait for all processes at the start.', lower_bound=1)
flags.DEFINE_integer('peer_timeout', 100, 'distributed: seconds of silence after which a process counts as dead and the others stop.', lower_bound=1)


def run_config():
  """The configuration of --workdir's run with this command line's --config.* flags on top; --config=FILE itself does not count."""
  from hierjax import config, predict
  c = predict.run_config(pathlib.Path(FLAGS.workdir))
  for path, value in config_flags.get_override_values(FLAGS['config']).items():
    if not path.startswith(('data.', 'eval.')):
      raise config.UserError(f'--config.{path}: --mode={FLAGS.mode} takes its model from {FLAGS.workdir}; only --config.data.* and --config.eval.* can change')
    config.assign(c, path, value)
  return c


def join() -> None:
  """The start of several processes; before anything else, as it must come before any use of a device."""
  from hierjax import config, parallel
  if not FLAGS.distributed:
    if FLAGS.coordinator or FLAGS.num_processes is not None or FLAGS.process_id is not None:
      raise config.UserError('--coordinator, --num_processes and --process_id need --distributed')
    return
  if FLAGS.mode not in ('train', 'evaluate'):
    raise config.UserError(f'--distributed: --mode={FLAGS.mode} runs in one process; train and evaluate run in several')
  parallel.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, FLAGS.start_timeout, FLAGS.peer_timeout)


def run() -> None:
  import jax

  from hierjax import config, lint, parallel, predict, report, train
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(pathlib.Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'hierjax' / 'jax')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  if FLAGS.mode in ('evaluate', 'predict') and not FLAGS.workdir:
    raise config.UserError(f'--mode={FLAGS.mode} needs --workdir=FOLDER, the one that was trained in')
  if FLAGS.mode == 'train':
    result = train.fit(FLAGS.config, FLAGS.workdir or f'runs/{FLAGS.config.name or "run"}')
    if parallel.first():
      print(json.dumps(result))
  elif FLAGS.mode == 'evaluate':
    result = predict.load(FLAGS.workdir, run_config()).evaluate(FLAGS.split, progress=progress if parallel.first() else None)
    if parallel.first():
      print(f'report: {report.write(FLAGS.workdir)}', file=sys.stderr)
      print(json.dumps(result))
  elif FLAGS.mode == 'predict':
    if not FLAGS.images:
      raise config.UserError("--mode=predict needs --images: a file, a folder or a glob in quotes, as --images='photos/*.jpg'")
    for line in predict.stream(predict.load(FLAGS.workdir, run_config()), FLAGS.images):
      print(json.dumps(line), flush=True)
  elif FLAGS.mode == 'describe':
    print(json.dumps(predict.describe(FLAGS.config)))
  else:
    found = lint.from_config(FLAGS.config.data)
    print(found.text())
    sys.exit(any(p.severity == 'error' for p in found.problems))


def progress(done: int, total: int) -> None:
  if done < total and not sys.stderr.isatty():  # a log wants no line for each batch
    return
  print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv) -> None:
  logging.set_verbosity(logging.WARNING)  # Orbax and jax log a page each
  from hierjax import config, parallel, train
  code, together = 0, True  # together: all processes have come to the same end
  try:
    if len(argv) > 1:
      raise config.UserError(f'what is {argv[1]!r}? All that main.py takes are flags: --mode=..., --config=..., --workdir=...; see --help')
    join()
    run()
  except config.UserError as e:
    print(f'error: {e}', file=sys.stderr)
    code, together = 2, False
  except train.Interrupted as e:
    print(e, file=sys.stderr)
    code = 128 + e.signum
  except BrokenPipeError:
    code, together = 128 + signal.SIGPIPE, False
  except (Exception, KeyboardInterrupt) as e:
    if not FLAGS.distributed:
      raise
    code, together = parallel.explain(e), False
  parallel.stop(code, together)
  sys.exit(code)


def parse(argv):
  """absl's parsing, with one line in place of a traceback for an unknown or ill-typed option or a config file that is not there."""
  try:  # the config flag reads its default file, and the overrides, when it is defined
    config_flags.DEFINE_config_file('config', str(pathlib.Path(__file__).parent / 'hierjax/config.py'), 'FILE.py[:ARG], usually of configs/.')
    rest = FLAGS(argv)
    _ = FLAGS.config.seed  # a missing file is noticed only when its options are read
    return rest
  except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError, ImportError) as e:
    lines = [line.strip() for line in str(e).replace('\\n', ' ').splitlines() if line.strip()]
    told = lines[-1] if 'Traceback' in str(e) else ' '.join(lines)  # a config file that fails brings its traceback
    told = told.removeprefix('hierjax.config.UserError: ').replace('"', '').replace("'", '').replace('\\', '')
    options = [a for a in argv if a.startswith('--config.') and a.split('=')[0].rpartition('.')[2] in told and a not in told]
    where = '; hierjax/config.py lists the options' if options or 'config.' in told else ''
    print(f'error: {", ".join(options)}{": " if options else ""}{told}{where}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
