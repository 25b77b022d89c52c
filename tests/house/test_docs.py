"""README and docs: their links lead somewhere, their commands are accepted, no page is missing."""

import pathlib
import re
import shlex
import subprocess

import pytest
import yaml
from kubeflow_trainer_api import models as kubeflow

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


# what each kind of manifest is, by the definitions that its engine publishes
MANIFESTS = {
  'jobset.x-k8s.io/v1alpha2 JobSet': kubeflow.JobsetV1alpha2JobSet,
  'trainer.kubeflow.org/v1alpha1 TrainingRuntime': kubeflow.TrainerV1alpha1TrainingRuntime,
  'trainer.kubeflow.org/v1alpha1 TrainJob': kubeflow.TrainerV1alpha1TrainJob,
}
# what SkyPilot's must have, and of which types; its own package is too large for the tests
SKYPILOT = {
  'num_nodes': int,
  'resources': {
    'accelerators': str,
    'use_spot': bool,
    'job_recovery': {'recover_on_exit_codes': [int]},
  },
  'file_mounts': dict,
  'setup': str,
  'run': str,
}


def lacks(value, schema, place=''):
  """Where a value has not what a schema asks for."""
  if isinstance(schema, list):
    items = value if isinstance(value, list) and value else [None]
    return [fault for item in items for fault in lacks(item, schema[0], f'{place}[]')]
  if isinstance(schema, dict):
    fields = value if isinstance(value, dict) else {}
    return [
      x for key, kind in schema.items() for x in lacks(fields.get(key), kind, f'{place}.{key}')
    ]
  return [] if isinstance(value, schema) else [f'{place}: {value!r} is no {schema.__name__}']


def manifests():
  text = (ROOT / 'docs/distributed.md').read_text()
  for block in re.findall(r'```yaml\n(.*?)```', text, re.S):
    content = yaml.safe_load(block)
    kind = ' '.join(content[key] for key in ('apiVersion', 'kind') if key in content)
    yield kind or 'SkyPilot', content


def test_manifests_have_the_fields_of_their_kinds():
  documents = dict(manifests())
  assert list(documents) == [*MANIFESTS, 'SkyPilot']
  assert not lacks(documents['SkyPilot'], SKYPILOT)
  for kind, model in MANIFESTS.items():
    # reading checks types and what is required, and leaves out what the engine does not know
    assert model.from_dict(documents[kind]).to_dict() == documents[kind]
  runtime = documents['trainer.kubeflow.org/v1alpha1 TrainingRuntime']['spec']['template']['spec']
  job, train_job = runtime['replicatedJobs'][0], documents['trainer.kubeflow.org/v1alpha1 TrainJob']
  pods = job['template']['spec']['template']['spec']
  # by these names and this label Kubeflow Trainer finds what it sets variables of
  assert (job['name'], pods['containers'][0]['name']) == ('node', 'node')
  label = job['template']['metadata']['labels']['trainer.kubeflow.org/trainjob-ancestor-step']
  assert label == 'trainer' and train_job['spec']['runtimeRef']['kind'] == 'TrainingRuntime'
  for words in (train_job['spec']['trainer']['command'], *scripts(documents)):
    flags = [word for word in words if word.startswith('--')]
    parsed = arguments.parse(['main.py', *flags])
    assert parsed.distributed and config_files.find(parsed.config_file).is_file()


def scripts(documents):
  """The words of shell commands in manifests, with a number for each variable."""
  pods = documents['jobset.x-k8s.io/v1alpha2 JobSet']['spec']['replicatedJobs'][0]['template'][
    'spec'
  ]
  texts = [pods['template']['spec']['containers'][0]['args'][0], documents['SkyPilot']['run']]
  for text in texts:
    yield shlex.split(re.sub(r'\$\(.*?\)|\$\w+', '1', text))


def test_shell_scripts_of_distributed_training_are_shell():
  text = (ROOT / 'docs/distributed.md').read_text()
  blocks = re.findall(r'```sh\n(.*?)```', text, re.S) + [dict(manifests())['SkyPilot']['run']]
  for block in blocks:
    result = subprocess.run(['bash', '-n'], input=block, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr


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
