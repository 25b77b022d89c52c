"""Data sets on the Hugging Face hub."""

import contextlib
import pathlib
from collections.abc import Iterator

from hierjax.core.errors import UserError


def download(name: str) -> pathlib.Path:
  """Download the Parquet files and taxonomy.csv of a data set.

  Args:
    name: 'OWNER/NAME' or 'OWNER/NAME@REVISION'.

  Returns:
    The folder of the local copy.

  Raises:
    UserError: it could not be downloaded; says how to do it by hand.
  """
  import huggingface_hub

  repo, _, revision = name.partition('@')
  by_hand = (
    f'; by hand, where there is a network: hf download {repo} --repo-type dataset --include '
    "'*.parquet' --local-dir FOLDER, then --config.data.root=FOLDER"
  )
  with explained(f'--config.data.root=hf:{name}: could not be downloaded', by_hand):
    folder = huggingface_hub.snapshot_download(
      repo,
      repo_type='dataset',
      revision=revision or None,
      allow_patterns=['*.parquet', 'taxonomy.csv'],
    )
  return pathlib.Path(folder)


@contextlib.contextmanager
def explained(failure: str, advice: str = '') -> Iterator[None]:
  """Turn what the client of the hub raises into a `UserError`: what failed, why, and advice."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # the client's own, httpx's and the system's errors
    reason = f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'
    raise UserError(f'{failure} ({reason}){advice}') from None
