"""Data sets on the Hugging Face hub."""

import pathlib

from hierjax.core import hub


def download(address: str) -> pathlib.Path:
  """Download the Parquet files and taxonomy.csv of a data set.

  Args:
    address: see `core.hub.parse`.

  Returns:
    The folder of the local copy.

  Raises:
    UserError: it could not be downloaded; says how to do it by hand.
  """
  repository, revision = hub.parse(address)
  import huggingface_hub

  by_hand = (
    f'; by hand, where there is a network: hf download {repository} --repo-type dataset --include '
    "'*.parquet' --local-dir FOLDER, then --config.data.root=FOLDER"
  )
  with hub.explained(f'{address}: could not be downloaded', by_hand):
    folder = huggingface_hub.snapshot_download(
      repository,
      repo_type='dataset',
      revision=revision,
      allow_patterns=['*.parquet', 'taxonomy.csv'],
    )
  return pathlib.Path(folder)
