"""README and docs: their links lead somewhere, their commands are accepted, no page is missing."""

import pathlib
import re
import shlex

import pytest

from hierjax.cli import arguments, config_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def commands(text: str) -> list[str]:
  """Return the calls of hierjax in the code blocks of a page."""
  lines = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.S)).replace('\\\n', ' ').splitlines()
  return [line for line in lines if re.match(r'(hierjax|python main\.py) ', line)]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
  for link in re.findall(r'\]\(([^)#]+)[^)]*\)', page.read_text()):
    if not link.startswith('http'):
      assert (page.parent / link).exists(), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_accepted(page):
  for command in commands(page.read_text()):
    words = shlex.split(command, comments=True)
    # arguments begin with the program's name, which may be that of main.py
    parsed = arguments.parse(words[words[0] == 'python' :])
    if parsed.config_file and not parsed.config_file.startswith('...'):
      assert config_files.find(parsed.config_file).is_file(), command


def test_the_readme_is_short_and_names_every_command():
  text = (ROOT / 'README.md').read_text()
  lines = text.splitlines()
  assert len(lines) <= 120 and max(map(len, lines)) <= 120
  listed = {arguments.parse(shlex.split(c, comments=True)).mode for c in commands(text)}
  assert listed == set(arguments.MODES)


def test_every_page_is_in_the_menu_of_the_site():
  """`make docs` builds the site, and checks its links and anchors."""
  menu = re.findall(r'^ +- (?:Home: )?(\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
  pages = {page.relative_to(ROOT / 'docs').as_posix() for page in PAGES[1:]}
  assert pages <= {*menu} and len(menu) == len({*menu})


def test_the_api_has_a_page_for_each_wing():
  wings = {path.parent.name for path in (ROOT / 'hierjax').glob('*/__init__.py')} - {'cli'}
  pages = {page.stem: page.read_text() for page in (ROOT / 'docs' / 'api').glob('*.md')}
  assert {name for name in wings if f'::: hierjax.{name}\n' in pages.get(name, '')} == wings
