"""Charts of the report as inline SVG in the page's CSS variables, and pictures as data addresses.

Through the variables a chart is light or dark with the page. Of users' texts it holds the title.
"""

import base64
import hashlib
import io
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite

# Longer curves are averaged in this many bins; a running mean covers 1 / WINDOWS of the points.
POINTS, WINDOWS = 300, 30
# Images that a bin of a reliability diagram needs for a dot.
MIN_IMAGES = 5
# Shades of a confusion matrix, and cells of a strip that can be distinguished.
SHADES, STRIP_CELLS = 8, 40
# Free space along the edges of a picture of points.
MARGIN = 8
# The longer side of a picture with its heat map, in pixels at most.
HEAT_MAP_SIDE = 168
# Places along a heat map from which on it is drawn smoothly; fewer are drawn as the cells they are.
SHARP = 7
# Colours in the style sheet, and the dashes of the first six curves, of the next six, ...
COLOURS, DASHES = 6, ('-', (0, (4, 1.6)), (0, (1, 1.4)))
# Colours that stand for the page's CSS variables until `_svg` puts those in.
INK, GRID = '#010203', '#010204'
TINTS = [f'#0102{k + 16:02x}' for k in range(COLOURS)]
DOTTED = {'color': INK, 'lw': 0.9, 'ls': (0, (1.5, 2.5)), 'alpha': 0.7}


class Curve(NamedTuple):
  """A curve: points float [n], the number of its colour, marked points (validation), opacity."""

  x: np.ndarray
  y: np.ndarray
  colour: int
  has_dots: bool = False
  alpha: float = 1.0


class Chart(NamedTuple):
  """A line chart.

  Attributes:
    title: for screen readers.
    axis: label of the x axis.
    curves: at least one.
    span: limits of the x axis.
    marks: places of vertical lines.
    percent: whether y is a share.
    label: label of the y axis.
    extent: limits of the y axis; None to choose them.
  """

  title: str
  axis: str
  curves: tuple[Curve, ...]
  span: tuple[float, float]
  marks: tuple[float, ...] = ()
  percent: bool = False
  label: str = ''
  extent: tuple[float, float] | None = None


def logged_curve(
  lines: Sequence[dict], axis: str, key: str, colour: int, smooth: bool = False, **style
) -> Curve:
  """Make a curve of a logged value; long ones are averaged in bins so that a report stays small.

  Args:
    lines: of metrics.jsonl; those without a finite value are left out.
    axis: key of x.
    key: key of y.
    colour: number of its colour.
    smooth: whether to draw the running mean.
    **style: `has_dots` and `alpha` of the curve.

  Returns:
    The curve; it may have no points.
  """
  pairs = [(line.get(axis), line.get(key)) for line in lines]
  pairs = [pair for pair in pairs if all(map(is_finite, pair))]
  points = np.array(pairs, float).reshape(-1, 2)
  window = len(points) // WINDOWS
  if smooth and window > 1:
    kernel, ones = np.ones(window), np.ones(len(points))
    sums = np.convolve(points[:, 1], kernel, 'same')
    points[:, 1] = sums / np.convolve(ones, kernel, 'same')
  if len(points) > POINTS:
    points = np.array([part.mean(0) for part in np.array_split(points, POINTS)])
  return Curve(points[:, 0], points[:, 1], colour, **style)


def _style(title: str):
  """Return a context with the fonts and colours of the report."""
  import matplotlib

  style = {'svg.fonttype': 'none', 'svg.hashsalt': _digest(title)}
  style |= {'font.family': 'DejaVu Sans', 'font.size': 10.5}
  style |= {'axes.linewidth': 0.8, 'axes.edgecolor': GRID}
  style |= dict.fromkeys(('text.color', 'axes.labelcolor', 'xtick.color', 'ytick.color'), INK)
  return matplotlib.rc_context(style)


def _svg(figure, title: str) -> Markup:
  """Turn the figure into SVG fit for a page: no prologue, unique ids, CSS colours, a label."""
  out, prefix = io.StringIO(), _digest(title)
  metadata = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  figure.savefig(out, format='svg', transparent=True, metadata=metadata)
  svg = out.getvalue()
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.S)
  svg = re.sub(r'\b(id="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
  svg = svg.replace(INK, 'var(--ink)').replace(GRID, 'var(--grid)').replace('xlink:href', 'href')
  for k, tint in enumerate(TINTS):
    svg = svg.replace(tint, f'var(--c{k})')
  start = re.match(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', svg)
  opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(start[1], title)
  return opening + Markup(svg[start.end() :].strip())


def _digest(title: str) -> str:
  """Make a prefix for the ids of a chart, whatever names the title quotes."""
  return 'chart-' + hashlib.sha256(title.encode('utf-8', 'backslashreplace')).hexdigest()[:12]


def _plain_axes(axes, pad: float, grid: str = 'both') -> None:
  """Draw a grid instead of ticks and spines."""
  axes.grid(axis=grid, color=GRID, lw=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(length=0, pad=pad)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)


def _percent(*axes, digits: str = '.0f') -> None:
  """Print percentages along x or y axes."""
  from matplotlib.ticker import FuncFormatter

  for axis in axes:
    axis.set_major_formatter(FuncFormatter(lambda v, _: f'{100 * v:{digits}}%'))


def draw(chart: Chart) -> Markup:
  """Draw a line chart."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  with _style(chart.title):
    figure = Figure(figsize=(4.6, 2.7))
    left = 0.17 if chart.label else 0.135
    axes = figure.add_axes((left, 0.19, 0.975 - left, 0.76))
    for curve in chart.curves:
      axes.plot(
        curve.x,
        curve.y,
        color=TINTS[curve.colour % COLOURS],
        alpha=curve.alpha,
        lw=1.9 if curve.has_dots or curve.alpha == 1 else 1.1,
        marker='o' if curve.has_dots or len(curve.x) == 1 else None,
        ms=3.2,
        ls=DASHES[min(curve.colour // COLOURS, len(DASHES) - 1)],
        markevery=max(1, len(curve.x) // 25),
        solid_capstyle='round',
      )
    for mark in chart.marks:
      axes.axvline(mark, **DOTTED)
    axes.set_ylim(*(chart.extent or _limits(chart)))
    if chart.percent:
      _percent(axes.yaxis, digits='.3g')
    else:
      axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    low, high = chart.span
    margin = 0.02 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=high - low > 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.6g}'))
    axes.set_xlabel(chart.axis, labelpad=2)
    axes.set_ylabel(chart.label, labelpad=2)
    _plain_axes(axes, 4, grid='y')
    return _svg(figure, chart.title)


def _limits(chart: Chart) -> tuple[float, float]:
  """Choose the limits of the y axis."""
  values = np.concatenate([curve.y for curve in chart.curves])
  if chart.percent:
    return 0, 1 if values.max() > 0.5 else max(values.max() * 1.15, 0.02)
  # A first loss or gradient norm far above the others would press the curve flat: the axis ends
  # above 99% of the points.
  top = 1.08 * max(np.quantile(values, 0.99), values[len(values) // 2 :].max())
  return min(0, values.min() * 1.08), top or 1


def _tick(value: float, _) -> str:
  """Print a short label: 0.00025 as 2.5e-4."""
  if value == 0 or abs(value) >= 0.01:
    return f'{value:,.3g}' if abs(value) < 1000 else f'{value:,.0f}'
  mantissa, exponent = f'{value:.2e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'


def reliability(title: str, curves: Sequence[tuple]) -> Markup:
  """Draw a reliability diagram, and below it the number of images in each bin.

  A dot is a bin: its height is the accuracy, its area the share of the images. A curve is the
  number of its colour and the three arrays [bins] of `evaluate.metrics.reliability`.
  """
  from matplotlib.figure import Figure

  with _style(title):
    figure = Figure(figsize=(3.3, 3.7))
    axes = figure.add_axes((0.21, 0.32, 0.72, 0.655))
    below = figure.add_axes((0.21, 0.14, 0.72, 0.135))
    axes.plot([0, 1], [0, 1], **DOTTED)
    for place, (colour, n, confidence, right) in enumerate(curves):
      tint = TINTS[colour]
      share = n / n.sum()
      full = n >= MIN_IMAGES
      x = confidence[full] / n[full]
      y = right[full] / n[full]
      axes.plot(x, y, color=tint, lw=1.2, alpha=0.8)
      size = 6 + 260 * share[full]
      axes.scatter(x, y, s=size, color=tint, alpha=0.75, lw=0, clip_on=False, zorder=3)
      # the bars of all curves side by side fill 80% of a bin
      width = 0.8 / len(n) / len(curves)
      middle = np.arange(len(n)) / len(n) + 0.1 / len(n) + (place + 0.5) * width
      below.bar(middle, share, width, color=tint, alpha=0.85, lw=0)
    for part in (axes, below):
      part.set_xlim(-0.01, 1.01)
      _plain_axes(part, 3)
      _percent(part.xaxis, part.yaxis)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xticks(np.linspace(0, 1, 6), [])
    axes.set_ylabel('accuracy', labelpad=1)
    below.set_xticks(np.linspace(0, 1, 6))
    below.tick_params(axis='x', pad=6)
    below.set_ylabel('images', labelpad=1)
    below.set_xlabel('predicted probability', labelpad=2)
    return _svg(figure, title)


def before_and_now(title: str, groups: Sequence[tuple[int, np.ndarray]]) -> Markup:
  """Draw shares now over shares before; equal points are one larger dot.

  A group is the number of its colour and its shares before and now, float [n, 2].
  """
  from matplotlib.figure import Figure

  with _style(title):
    figure = Figure(figsize=(3.3, 3.3))
    axes = figure.add_axes((0.21, 0.16, 0.72, 0.8))
    axes.plot([0, 1], [0, 1], **DOTTED)
    for colour, xy in groups:
      places, n = np.unique(xy.round(3), axis=0, return_counts=True)
      tint = TINTS[colour]
      axes.scatter(*places.T, s=14 * n, color=tint, alpha=0.7, lw=0, clip_on=False, zorder=3)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel('before', labelpad=2)
    axes.set_ylabel('now', labelpad=1)
    _plain_axes(axes, 3)
    _percent(axes.xaxis, axes.yaxis)
    return _svg(figure, title)


def shade(share: float) -> int:
  """Return one of the shades 1 to SHADES, by the square root so that rare mistakes are visible."""
  return min(SHADES, max(1, math.ceil(SHADES * math.sqrt(share))))


def shade_class(n: int, total: int, is_diagonal: bool) -> str:
  """Return the CSS class of a cell with n of the `total` images of its row; '' for an empty one."""
  return f'{"d" if is_diagonal else "o"} k{shade(n / total)}' if n else ''


def cells(
  true: np.ndarray, pred: np.ndarray, counts: np.ndarray, totals: np.ndarray
) -> list[tuple[str, str]]:
  """Draw the cells of a confusion matrix as unit squares.

  Args:
    true: int [n], row of each cell that is not empty.
    pred: int [n], its column.
    counts: int [n], its images.
    totals: int [n], the images of its row.

  Returns:
    (CSS class, path) for each shade; 'd' is on the diagonal, 'o' off it.
  """
  paths: dict[str, list[str]] = {}
  for y, x, n, total in np.stack([true, pred, counts, totals], 1).astype(int).tolist():
    name = shade_class(n, total, x == y)
    paths.setdefault(name, []).append(f'M{x} {y}h1v1h-1z')
  return [(name, ''.join(parts)) for name, parts in sorted(paths.items())]


def fit(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Scale points float [n, 2] into a picture of this size, with a margin along its edges."""
  low, high = xy.min(0), xy.max(0)
  inner = np.array(size) - 2 * MARGIN
  return MARGIN + (xy - low) / np.maximum(high - low, 1e-9) * inner


def scatter(xy: np.ndarray, groups: np.ndarray) -> list[tuple[int, str]]:
  """Draw points [n, 2] as one (group, path of dots) for each of the groups int [n], 0 on top."""
  paths = []
  for group in sorted(set(groups.tolist()), key=lambda group: (group >= 0, -group)):
    points = xy[groups == group].tolist()
    paths.append((group, ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in points)))
  return paths


def strip(shades: Sequence[int]) -> list[tuple[int, str]]:
  """Draw a row of cells as (shade, path); sorted where there are too many to distinguish."""
  if len(shades) > STRIP_CELLS:
    ends = np.cumsum(np.bincount(shades)).tolist()
    parts = enumerate(itertools.pairwise([0, *ends]))
    return [(k, f'M{start} 0H{end}V1H{start}z') for k, (start, end) in parts if start < end]
  paths: dict[int, str] = {}
  for x, k in enumerate(shades):
    paths[k] = paths.get(k, '') + f'M{x} 0h1v1h-1z'
  return sorted(paths.items())


def address(jpeg: bytes) -> str:
  """Make a data address of a JPEG file."""
  return f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'


def heat_map(picture: bytes, values: np.ndarray) -> bytes:
  """Lay a heat map in colour over a darkened picture, one of few places as cells.

  Args:
    picture: a JPEG file.
    values: uint8 [h, w].

  Returns:
    A JPEG file.
  """
  import matplotlib

  image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
  height, width = image.shape[:2]
  scale = min(1.0, HEAT_MAP_SIDE / max(height, width))
  size = max(1, round(width * scale)), max(1, round(height * scale))
  image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  how = cv2.INTER_CUBIC if min(values.shape) >= SHARP else cv2.INTER_NEAREST
  heat = cv2.resize(values.astype(np.float32), size, interpolation=how) / 255
  heat = np.clip(heat, 0, 1)
  colour = 255 * matplotlib.colormaps['inferno'](heat)[..., :3]
  darkened = 0.55 * image.mean(-1, keepdims=True) + 0.25 * image
  weight = 0.65 * heat[..., None]
  mixed = (1 - weight) * darkened + weight * colour
  bgr = np.clip(mixed, 0, 255).astype(np.uint8)[..., ::-1]
  return cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 78])[1].tobytes()
