"""--mode=predict: classes of images, a line of JSON for each."""

from hierjax.cli import images, runs
from hierjax.cli.arguments import Arguments
from hierjax.core import json_files


def run(args: Arguments) -> int:
  """Print the predictions of all images, each as soon as it is there.

  Args:
    args: the arguments.
  """
  trained = runs.load(args)
  for line in images.predict_files(trained, args.images):
    print(json_files.dump(line), flush=True)
  return 0
