"""What pyproject.toml leaves open: the packages, and what they need by the requirements files."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
EXTRAS = ('cuda12', 'tpu', 'export', 'serve', 'wandb', 'onednn', 'test', 'docs')


def requirements(text: str) -> list[str]:
  """Return the packages in a file's text, without those of files that it includes."""
  return re.findall(r'^[a-zA-Z].*', text, re.MULTILINE)


base, _, train = (ROOT / 'requirements.txt').read_text().partition('\n# train:')
extras = {name: requirements((ROOT / f'requirements-{name}.txt').read_text()) for name in EXTRAS}
setuptools.setup(
  # configs/ is hierjax.configs where hierjax is installed
  package_dir={'hierjax.configs': 'configs'},
  packages=[
    *setuptools.find_packages(include=['hierjax*']),
    *(f'hierjax.{name}' for name in setuptools.find_namespace_packages(include=['configs*'])),
  ],
  install_requires=requirements(base),
  extras_require={'train': requirements(train), **extras},
)
