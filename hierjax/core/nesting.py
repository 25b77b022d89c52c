"""Limits on lists, tuples and dicts within each other, in data that came from elsewhere."""

from typing import Any


def check(content: Any, max_depth: int, max_nodes: int) -> None:
  """Check that data are nested neither deeply nor, by sharing their parts, exponentially.

  What passes can be hashed, printed and walked through.

  Args:
    content: what was read.
    max_depth: of containers in each other.
    max_nodes: of containers and their elements, each counted as often as it is reached.

  Raises:
    ValueError: it is nested more deeply, or has more nodes.
  """
  layer, count = [content], 1
  for _ in range(max_depth + 1):
    containers = [node for node in layer if isinstance(node, dict | list | tuple)]
    if not containers:
      return
    count += sum(map(len, containers))
    if count > max_nodes:
      raise ValueError(f'it has more than {max_nodes} elements')
    layer = []
    for node in containers:
      layer += node.values() if isinstance(node, dict) else node
  raise ValueError(f'it is nested more than {max_depth} deep')
