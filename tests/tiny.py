"""A backbone that compiles in a second: two convolutions with batch norm, and pooling."""

import types

import flax.linen as nn
import jax

from hierjax.core import config, parallel
from hierjax.models import functional, layers, registry
from hierjax.models.backbone import Backbone


class Tiny(layers.Trunk):
  """Two convolutions; `features` is the last activation."""

  width: int = 16

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = layers.Conv(self.width, 4, 4, 0, compute=self.compute, name='conv')(x)
    x = layers.BatchNorm('relu', compute=self.compute, name='bn')(x, train)
    x = layers.Conv(self.width, 3, 2, 1, compute=self.compute, name='conv2')(x)
    x = layers.BatchNorm('relu', compute=self.compute, name='bn2')(x, train)
    x = self.perturb('features', x)
    return functional.global_pool(x), {'features': x}


_mesh = parallel.mesh  # before a test replaces it
SPEC = Backbone(Tiny, 16, (127.0,) * 3, (128.0,) * 3, 32)


def register(monkeypatch) -> None:
  """Make the backbone `tiny` a choice as long as the patch lasts."""
  monkeypatch.setitem(registry.BACKBONES.data, 'tiny', SPEC)


def mesh(devices: int = 1, class_devices: int | None = None) -> jax.sharding.Mesh:
  """Return a mesh of the first devices."""
  return _mesh(class_devices, jax.devices()[:devices])


def use_devices(monkeypatch, devices: int = 1) -> None:
  """Train and evaluate on some of the eight devices as long as the patch lasts."""
  monkeypatch.setattr(parallel, 'mesh', lambda class_devices=None: mesh(devices, class_devices))


def leave_out_report(monkeypatch) -> None:
  """Let `fit` end with an empty report, without the pictures in it: half of a short run's time."""
  # imported only now: what most tests need has no part in it
  from hierjax import model
  from hierjax.experiments import fit

  def write(workdir):
    (workdir / 'report.html').touch()
    return workdir / 'report.html'

  monkeypatch.setattr(fit, 'page', types.SimpleNamespace(write=write))
  monkeypatch.setattr(model.Model, 'explain', lambda *_, **__: None)


def run_config(**changes):
  """A run of 12 steps on 96 drawn images, evaluated every 6."""
  c = config.default()
  values = {
    'data.source': 'toy',
    'data.size': 32,
    'data.toy.train': 96,
    'data.toy.val': 40,
    'model.backbone': 'tiny',
    'train.batch_size': 16,
    'train.epochs': 0.0,
    'train.steps': 12,
    'train.eval_epochs': 0.0,
    'train.eval_steps': 6,
    'train.log_steps': 2,
    'optim.lr': 3e-3,
    'eval.batch_size': 16,
  }
  for path, value in {**values, **changes}.items():
    config.assign(c, path, value)
  return c


def get_config():
  """For --config=tests/tiny.py."""
  return run_config()
