"""A backbone, a form of heads, a loss and a metric; docs/extending.md explains them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import hierjax


class TwoLayers(nn.Module):
  """A small convolutional backbone of plain Flax layers."""

  width: int = 32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = nn.relu(nn.Conv(self.width, (3, 3), strides=2, kernel_init=nn.initializers.he_normal())(x))
    x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
    return x.mean((1, 2))


class HiddenLayer(nn.Module):
  """A hidden layer and a linear layer for each level."""

  classes: tuple[tuple[str, int], ...]  # (level, number of classes), coarse to fine

  @nn.compact
  def __call__(self, features: jax.Array, train: bool = False) -> dict[str, jax.Array]:
    logits = {}
    for level, n in self.classes:
      hidden = nn.relu(nn.Dense(64, name=f'{level}_hidden')(features))
      logits[level] = nn.Dense(n, name=level)(hidden)
    return logits


def confidence_penalty(inputs) -> tuple[jax.Array, jax.Array]:
  """Negative entropy of the finest head (Pereyra et al. 2017, arXiv:1701.06548)."""
  *_, logits = inputs.logits.values()
  log_p = jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(log_p) * log_p, -1), jnp.ones(len(logits))


def coarse_error(predictions: np.ndarray, labels: np.ndarray, taxonomy) -> np.ndarray:
  """Whether the class of the coarsest level is wrong; NaN where it is unknown."""
  wrong = (predictions[:, 0] != labels[:, 0]).astype(float)
  return np.where(labels[:, 0] < 0, np.nan, wrong)


hierjax.register_backbone('two_layers', TwoLayers, features=32)
hierjax.register_head('hidden_layer', HiddenLayer)
hierjax.register_loss('confidence_penalty', confidence_penalty)
hierjax.register_metric('coarse_error', coarse_error, higher_is_better=False)
