"""hierjax backbones: the backbones that there are."""

import fnmatch

from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.core.errors import UserError, did_you_mean
from hierjax.models import counts
from hierjax.models.registry import BACKBONES, licence


def run(args: Arguments) -> None:
  """Print the backbones whose names have a word or match a pattern with *.

  Args:
    args: the arguments; without a word all are listed, but not counted, which takes a minute.

  Raises:
    UserError: no name does.
  """
  patterns = [word if '*' in word else f'*{word}*' for word in args.patterns or ['*']]
  names = [name for name in BACKBONES if any(fnmatch.fnmatch(name, p) for p in patterns)]
  if not names:
    hint = did_you_mean(args.patterns[0], BACKBONES, 3)
    raise UserError(f'no backbone is called {" or ".join(args.patterns)}{hint}')
  lines = [f'{"backbone":38} size features parameters    GMACs  licence of the weights']
  for name in names:
    spec, numbers = BACKBONES[name], f'{"-":>10} {"-":>8}'
    if args.patterns:
      module = spec.build()
      # timm computes 378 of 384 pixels where patches have 14
      size = spec.size - spec.size % getattr(module, 'patch', 1)
      variables = counts.shapes(module, size)
      macs = counts.macs(module, variables, size) / 1e9
      numbers = f'{counts.parameters(variables["params"]):10} {macs:8.2f}'
    lines.append(f'{name:38} {spec.size:4} {spec.features:8} {numbers}  {licence(name)}')
  terminal.show('\n'.join(lines))
