"""Addresses of repositories on the Hugging Face hub, and what goes wrong with it in one line."""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from hierjax.core.errors import UserError

PREFIX = 'hf:'
ADDRESS = re.compile(r'hf:(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?', re.ASCII)


class Address(NamedTuple):
  """A repository: 'OWNER/NAME', and its branch, tag or commit, or None for the main branch."""

  repository: str
  revision: str | None


def parse(text: str) -> Address:
  """Parse the address of a repository of models or of data sets.

  Args:
    text: 'hf:OWNER/NAME' or 'hf:OWNER/NAME@REVISION'.

  Raises:
    UserError: it is of another form.
  """
  match = ADDRESS.fullmatch(text)
  if not match:
    raise UserError(
      f'{text}: must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION, a repository of the Hugging Face '
      'hub and its branch, tag or commit, as hf:timm/resnet18.a1_in1k@main'
    )
  return Address(*match.groups())


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
