"""What trained and exported models have in common: from probabilities to records of predictions."""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import numpy as np

from hierjax import decide
from hierjax.core.errors import UserError
from hierjax.data.image_groups import Batch, Image
from hierjax.decide.decisions import Decisions, Rules, without_fitted
from hierjax.taxonomy import Mixed, Taxonomy, leaves_of


class Predictor:
  """A model that predicts images.

  A subclass sets the attributes and defines `_run(images, batch_size)`, which yields batches as
  `image_groups.batches` does, each with what is computed for it: an object with `index` int [n],
  the readable images, and `probs` {level with a head: float64 [n, C]}; and `_network()`, which
  returns what identifies weights and preprocessing, for JSON.

  Attributes:
    taxonomy: its levels.
    levels: those that have a head.
    rules: how it decides, see `hierjax.decide.decisions`.
  """

  taxonomy: Taxonomy | Mixed
  levels: tuple[str, ...]
  rules: Rules

  def probabilities(
    self, images: Iterable[Image] | Image, batch_size: int | None = None
  ) -> dict[str, np.ndarray]:
    """Compute the probabilities of images.

    Args:
      images, batch_size: see `predict_iter`.

    Returns:
      {level with a head: float64 [N, C]}, NaN for an image that cannot be read. Those of exclusive
      levels sum to 1.
    """
    parts = {level: [np.zeros((0, self.taxonomy.num_classes(level)))] for level in self.levels}
    for batch, outputs in self._run(images, batch_size):
      for level, p in outputs.probs.items():
        part = np.full((len(batch.names), p.shape[1]), np.nan)
        part[outputs.index] = p
        parts[level].append(part)
    return {level: np.concatenate(arrays) for level, arrays in parts.items()}

  def decide(self, probs: Mapping[str, np.ndarray]) -> Decisions:
    """Decide by this model's rules on probabilities {level: float64 [N, C]} without NaN."""
    return decide.decide(probs, self.taxonomy, self.rules)

  def fingerprint(self) -> str:
    """Return 16 digits that change with the weights, preprocessing, classes and rules."""
    parts = self._network(), self.taxonomy.hash(), self.rules
    content = json.dumps(parts, default=lambda x: np.asarray(x).tolist())
    return hashlib.sha256(content.encode()).hexdigest()[:16]

  def within(self, classes: Iterable[str | Mapping[str, str]] | np.ndarray) -> Self:
    """Return this model restricted to a subset of its classes, see `decide.subsets`.

    Predictions get 'outside', how likely the image shows no allowed class. Evaluation leaves out
    images of other classes; its files stand in `into`, and 'subset' of the result counts them.

    Args:
      classes: what `taxonomy.leaves_of` takes, or the bool [leaf] that it returns.

    Raises:
      UserError: a name is no class.
    """
    allowed = classes if isinstance(classes, np.ndarray) else leaves_of(classes, self.taxonomy)
    restricted = copy.copy(self)
    rules = self.rules['exclusive']._replace(allowed=allowed)
    # a guarantee is for the classes that it was fitted with
    restricted.rules = without_fitted(self.rules) | {'exclusive': rules}
    return restricted

  def at_risk(self, risk: float) -> Self:
    """Return this model with the answers of another risk than decide.risk, see `risks`.

    Args:
      risk: one that it was calibrated for.

    Raises:
      UserError: it is none of them.
    """
    rule, exclusive = self.rules.get('answer'), self.rules.get('exclusive')
    risks = rule.risks if rule else {}
    if risk in risks:
      model = copy.copy(self)
      model.rules = self.rules | {'answer': rule._replace(backoff=risks[risk])}
      return model
    if risks:
      reason = f'the model is calibrated for {", ".join(f"{x:g}" for x in risks)}'
    elif exclusive is not None and exclusive.allowed is not None:
      reason = 'the calibration is for all classes, and guarantees nothing within some of them'
    else:
      reason = 'the model is not calibrated; hierjax evaluate --config.decide.risk=.05 does that'
    raise UserError(f'risk={risk:g}: {reason}')

  def predict(
    self, images: Iterable[Image] | Image, top: int = 5, batch_size: int | None = None
  ) -> list[dict]:
    """Predict the classes of images; returns the list of what `predict_iter` yields."""
    return list(self.predict_iter(images, top=top, batch_size=batch_size))

  def predict_iter(
    self, images: Iterable[Image] | Image, top: int = 5, batch_size: int | None = None
  ) -> Iterator[dict]:
    """Predict the classes of images one after the other, as they are read.

    A few batches are held at a time, however many images there are: they may come from a generator
    without end. The batch size changes the probabilities of an image by no more than rounding.

    Args:
      images: a path, a folder, encoded bytes, a Pillow image, or an array [h, w], [h, w, 3] (RGB)
        or [h, w, 4] as `hierjax.data.decoding.to_rgb` takes it; or a list, a generator or any other
        iterable of such; or an array [N, h, w, C].
      top: classes of each head to list.
      batch_size: views a step; None for the least of a few sizes up to eval.batch_size in which all
        images find room.

    Yields:
      One dict an image, in their order: 'file', its path or 'image NUMBER', and what
      `decide.to_records` describes; {'file', 'error'} for an image that cannot be read, which says
      why. With decide.novelty also 'new', such as 'new kind of dog', 'new superclass', or '' for an
      image of known classes, and 'novelty' {level: [score, threshold or None]}; the path is then
      that of the known classes that a new one resembles most. Nothing for an empty list or array.

    Raises:
      UserError: `images` has no images, such as a generator that was read before; something in it
        is no image; the model computes NaN; or the novelty detector is missing.
    """
    for batch, outputs in self._run(images, batch_size):
      yield from self.records(batch, outputs, top)

  def records(self, batch: Batch, outputs: object, top: int = 5) -> list[dict]:
    """Return the records of a batch by its `outputs`; `top` as in `predict_iter`."""
    part = [{'file': name, 'error': e} for name, e in zip(batch.names, batch.errors)]
    if len(outputs.index):
      decisions = decide.decide(outputs.probs, self.taxonomy, self.rules, decide.IN_RECORDS)
      records = decide.to_records(decisions, outputs.probs, self.taxonomy, top)
      self._complete(records, outputs, decisions)
      for i, record in zip(outputs.index, records):
        part[i] = {'file': batch.names[i], **record}
    return part

  def drift_note(self) -> str:
    """Say whether the images so far look like those of calibration; '' where it is unknown."""
    return ''

  def _complete(self, records, outputs, decisions):
    """Add to the records of predictions what only this kind of model can say."""
