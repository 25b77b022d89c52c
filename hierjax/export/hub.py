"""Exported models on the Hugging Face hub: the files of a folder, README.md as the card.

Importing this module imports no jax.
"""

import glob
import os
import pathlib
import shutil

from hierjax import runtime
from hierjax.core import hub
from hierjax.core.errors import UserError

# Where huggingface_hub notes what it has downloaded, in the folder itself.
NOTES = '.cache'


def push(folder: pathlib.Path, address: str) -> str:
  """Upload the files of an exported model, if they are those of its manifest, as one commit.

  Args:
    folder: of the model.
    address: of a repository of models, see `core.hub.parse`; a new one is made, private.

  Returns:
    Its URL.
  """
  repository, revision = hub.parse(address)
  runtime.read_files(folder)
  names = [runtime.MANIFEST, *runtime.listed(folder)]
  import huggingface_hub

  with hub.explained(f'{address}: could not be pushed to'):
    api = huggingface_hub.HfApi()
    url = api.create_repo(repository, private=True, exist_ok=True)
    api.upload_folder(
      repo_id=repository,
      folder_path=folder,
      revision=revision,
      allow_patterns=names,
      commit_message='hierjax push',
    )
  return str(url)


def pull(address: str, output: pathlib.Path) -> None:
  """Download an exported model into a new folder, which appears when all its files are checked.

  Args:
    address: see `core.hub.parse`.
    output: the folder.
  """
  repository, revision = hub.parse(address)
  if output.exists() or output.is_symlink():
    raise UserError(f'{output}: exists; give a new folder, or remove it')
  import huggingface_hub

  partial = output.absolute().with_name(f'.{output.name}.{os.getpid()}')
  try:
    # the manifest says which files there are to be; others of the repository are not fetched
    for names in ((runtime.MANIFEST,), ()):
      with hub.explained(f'{address}: could not be pulled'):
        huggingface_hub.snapshot_download(
          repository,
          revision=revision,
          local_dir=partial,
          allow_patterns=[*map(glob.escape, names or runtime.listed(partial))],
        )
    runtime.read_files(partial)
    shutil.rmtree(partial / NOTES, ignore_errors=True)
    os.rename(partial, output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
