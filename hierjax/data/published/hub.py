"""Data sets on the Hugging Face hub."""

import pathlib

from hierjax.core.errors import UserError


def download(name: str) -> pathlib.Path:
  """Download the Parquet files and taxonomy.csv of 'OWNER/NAME[@REVISION]'; return the folder."""
  import huggingface_hub

  repo, _, revision = name.partition('@')
  try:
    folder = huggingface_hub.snapshot_download(
      repo,
      repo_type='dataset',
      revision=revision or None,
      allow_patterns=['*.parquet', 'taxonomy.csv'],
    )
  except Exception as error:  # the hub client raises its own, httpx's and the system's errors
    reason = f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'
    raise UserError(
      f'--config.data.root=hf:{name}: could not be downloaded ({reason}); by hand, where there is '
      f"a network: hf download {repo} --repo-type dataset --include '*.parquet' --local-dir "
      'FOLDER, then --config.data.root=FOLDER'
    ) from None
  return pathlib.Path(folder)
