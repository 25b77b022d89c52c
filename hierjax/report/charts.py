"""The report's drawings: inline SVG in the page's CSS variables, so that it is light or dark with the page, and pictures as data addresses."""

import base64
import dataclasses
import io
import itertools
import math
import re

import cv2
import numpy as np
from markupsafe import Markup

from hierjax.report.runs import finite

POINTS = 300  # points a curve is drawn with; more lines than that are averaged in bins
WINDOWS = 30  # a smoothed curve is the running mean over this part of its points


@dataclasses.dataclass(frozen=True)
class Series:
  x: np.ndarray
  y: np.ndarray
  colour: int  # 0.., the palette of the style sheet
  dots: bool  # validation: a strong line with its points marked; training: thin
  alpha: float


@dataclasses.dataclass(frozen=True)
class Chart:
  title: str
  axis: str
  series: tuple[Series, ...]
  marks: tuple[float, ...]
  span: tuple[float, float]  # of the x axis, the same for every chart of a run
  percent: bool = False
  label: str = ''  # of the y axis
  extent: tuple[float, float] | None = None  # of the y axis


def series(
  lines: list[dict],
  axis: str,
  key: str,
  colour: int,
  dots: bool,
  alpha: float | None = None,
  smooth: bool = False,
) -> Series:
  """One curve; what is not finite is left out and long curves are averaged in bins, so that a report stays small."""
  points = np.array(
    [(line[axis], line[key]) for line in lines if finite(line.get(key)) and finite(line.get(axis))],
    float,
  ).reshape(-1, 2)
  if smooth and (window := len(points) // WINDOWS) > 1:
    kernel = np.ones(window)
    points[:, 1] = np.convolve(points[:, 1], kernel, 'same') / np.convolve(
      np.ones(len(points)), kernel, 'same'
    )
  if len(points) > POINTS:
    points = np.array([part.mean(0) for part in np.array_split(points, POINTS)])
  return Series(points[:, 0], points[:, 1], colour, dots, alpha or (1.0 if dots else 0.55))


COLOURS = 6  # as many as the style sheet has
DASHES = ('-', (0, (4, 1.6)), (0, (1, 1.4)))  # of the first so many curves, of the next ones ...
INK, GRID, TINTS = (
  '#010203',
  '#010204',
  [f'#0102{k + 16:02x}' for k in range(COLOURS)],
)  # placeholders, each replaced by a CSS variable


def _style(title: str):
  import matplotlib  # here and not above: reading a run or importing hierjax must not wait for it

  return matplotlib.rc_context(
    {
      'svg.fonttype': 'none',
      'svg.hashsalt': title,
      'font.family': 'DejaVu Sans',
      'font.size': 9,
      'text.color': INK,
      'axes.labelcolor': INK,
      'xtick.color': INK,
      'ytick.color': INK,
      'axes.edgecolor': GRID,
      'axes.linewidth': 0.8,
    }
  )


def _svg(figure, title: str) -> Markup:
  out = io.StringIO()
  figure.savefig(
    out,
    format='svg',
    transparent=True,
    metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None},
  )
  return inline(out.getvalue(), re.sub('[^a-z0-9]+', '-', title.lower()), title)


def draw(chart: Chart) -> Markup:
  """A line chart. It holds no text of a user's."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import FuncFormatter, MaxNLocator

  with _style(chart.title):
    figure = Figure(figsize=(4.6, 2.7))
    left = 0.155 if chart.label else 0.12
    axes = figure.add_axes((left, 0.165, 0.975 - left, 0.785))
    for one in chart.series:
      tint = TINTS[one.colour % COLOURS]
      marker = 'o' if one.dots or len(one.x) == 1 else None
      axes.plot(
        one.x,
        one.y,
        color=tint,
        alpha=one.alpha,
        lw=1.9 if one.dots or one.alpha == 1 else 1.1,
        marker=marker,
        ms=3.2,
        ls=DASHES[min(one.colour // COLOURS, len(DASHES) - 1)],
        markevery=max(1, len(one.x) // 25),
        solid_capstyle='round',
      )
    for mark in chart.marks:
      axes.axvline(mark, color=INK, lw=0.9, ls=(0, (1.5, 2.5)), alpha=0.7)
    every = np.concatenate([one.y for one in chart.series])
    if chart.percent:
      axes.set_ylim(0, 1 if every.max() > 0.5 else max(every.max() * 1.15, 0.02))
      axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{100 * y:.3g}%'))
    else:
      # A first loss or gradient norm far above the rest would press the curve flat: the axis ends above 99 in 100 of the points.
      top = max(np.quantile(every, 0.99) * 1.08, every[len(every) // 2 :].max() * 1.08)
      axes.set_ylim(min(0, every.min() * 1.08), top or 1)
      axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    if chart.extent:
      axes.set_ylim(*chart.extent)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    margin = 0.02 * (chart.span[1] - chart.span[0])
    axes.set_xlim(chart.span[0] - margin, chart.span[1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.span[1] - chart.span[0] > 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.6g}'))
    axes.set_xlabel(chart.axis, labelpad=2)
    axes.set_ylabel(chart.label, labelpad=2)
    axes.grid(axis='y', color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    for side in ('top', 'right', 'left'):
      axes.spines[side].set_visible(False)
    return _svg(figure, chart.title)


def _tick(value: float, _) -> str:
  """A short label: 0.00025 as 2.5e-4."""
  if value == 0 or abs(value) >= 0.01:
    return f'{value:,.3g}' if abs(value) < 1000 else f'{value:,.0f}'
  mantissa, exponent = f'{value:.2e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'


def inline(svg: str, prefix: str, label: str) -> Markup:
  """Matplotlib's SVG made fit to stand in the page: no prologue, ids of its own, the page's colours, a label for screen readers."""
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg') :], flags=re.S)
  svg = re.sub(r'\b(id="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
  svg = svg.replace(INK, 'var(--ink)').replace(GRID, 'var(--grid)')
  for k, tint in enumerate(TINTS):
    svg = svg.replace(tint, f'var(--c{k})')
  svg = re.sub(
    r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
    rf'<svg viewBox="\1" role="img" aria-label="{label}">',
    svg,
    count=1,
  )
  return Markup(svg.replace('xlink:href', 'href').strip())


FEWEST = 5  # images in a bin whose accuracy is drawn


def reliability(title: str, curves: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> Markup:
  """A reliability diagram: accuracy over confidence per bin, the area of a dot its share of the images, and below how many images each bin holds.

  curves: (colour, number, sum of confidence, sum of right) per bin, as metrics.reliability gives them.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import FuncFormatter

  with _style(title):
    figure = Figure(figsize=(3.3, 3.7))
    axes, below = (
      figure.add_axes((0.185, 0.31, 0.745, 0.665)),
      figure.add_axes((0.185, 0.125, 0.745, 0.145)),
    )
    axes.plot([0, 1], [0, 1], color=INK, lw=0.9, ls=(0, (1.5, 2.5)), alpha=0.7)
    for place, (colour, n, confidence, right) in enumerate(curves):
      full = n >= FEWEST
      x, y, share = confidence[full] / n[full], right[full] / n[full], n[full] / n.sum()
      axes.plot(x, y, color=TINTS[colour], lw=1.2, alpha=0.8)
      axes.scatter(
        x, y, s=6 + 260 * share, color=TINTS[colour], alpha=0.75, lw=0, clip_on=False, zorder=3
      )
      left, width = np.arange(len(n)) / len(n), 0.8 / len(n) / len(curves)
      below.bar(
        left + 0.1 / len(n) + (place + 0.5) * width,
        n / n.sum(),
        width,
        color=TINTS[colour],
        alpha=0.85,
        lw=0,
      )
    for one in (axes, below):
      one.set_xlim(-0.01, 1.01)
      one.grid(color=GRID, lw=0.8)
      one.set_axisbelow(True)
      one.tick_params(length=0, pad=3)
      for side in ('top', 'right', 'left'):
        one.spines[side].set_visible(False)
      for axis in (one.xaxis, one.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: f'{100 * v:.0f}%'))
    axes.set_ylim(-0.01, 1.01)
    axes.set_xticks(np.linspace(0, 1, 6), [])
    axes.set_ylabel('accuracy', labelpad=1)
    below.set_xticks(np.linspace(0, 1, 6))
    below.tick_params(axis='x', pad=6)
    below.set_ylabel('images', labelpad=1)
    below.set_xlabel('probability shown', labelpad=2)
    return _svg(figure, title)


def against(title: str, groups: list[tuple[int, np.ndarray]]) -> Markup:
  """Shares before and now as points [n, 2] over the diagonal of no change, by groups of a colour; equal points are drawn as a larger one."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import FuncFormatter

  with _style(title):
    figure = Figure(figsize=(3.3, 3.3))
    axes = figure.add_axes((0.185, 0.145, 0.745, 0.815))
    axes.plot([0, 1], [0, 1], color=INK, lw=0.9, ls=(0, (1.5, 2.5)), alpha=0.7)
    for colour, xy in groups:
      at, n = np.unique(xy.round(3), axis=0, return_counts=True)
      axes.scatter(*at.T, s=14 * n, color=TINTS[colour], alpha=0.7, lw=0, clip_on=False, zorder=3)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel('before', labelpad=2)
    axes.set_ylabel('now', labelpad=1)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=3)
    for side in ('top', 'right', 'left'):
      axes.spines[side].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_formatter(FuncFormatter(lambda v, _: f'{100 * v:.0f}%'))
    return _svg(figure, title)


STEPS = 8  # shades of the confusion matrix


def shade(share: float) -> int:
  """Which of the STEPS shades, 1 the faintest: by the square root, so that what is rare can still be seen."""
  return min(STEPS, max(1, math.ceil(STEPS * math.sqrt(share))))


def cells(
  true: np.ndarray, pred: np.ndarray, count: np.ndarray, of: np.ndarray
) -> list[tuple[str, str]]:
  """Unit squares of a confusion matrix as (class of the style sheet, path): one path for each shade, diagonal ('d') and beside it ('o') apart.

  true, pred: places along the two axes; count: images; of: images of the true class. Only cells that are not empty are drawn.
  """
  paths: dict[str, list[str]] = {}
  for y, x, n, total in zip(true.tolist(), pred.tolist(), count.tolist(), of.tolist()):
    paths.setdefault(f'{"d" if x == y else "o"} k{shade(n / total)}', []).append(
      f'M{x} {y}h1v1h-1z'
    )
  return [(name, ''.join(parts)) for name, parts in sorted(paths.items())]


def fit(xy: np.ndarray, width: float, height: float, margin: float = 8) -> np.ndarray:
  """Places [n, 2] in a picture of this size."""
  low, high = xy.min(0), xy.max(0)
  return margin + (xy - low) / np.maximum(high - low, 1e-9) * (
    width - 2 * margin,
    height - 2 * margin,
  )


def scatter(at: np.ndarray, groups: np.ndarray) -> list[tuple[int, str]]:
  """Points as (group, path of round dots); groups int [n], drawn in the order of -1, n-1, ..., 0, so that the first lies on top."""
  return [
    (group, ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in at[groups == group].tolist()))
    for group in sorted(set(groups.tolist()), key=lambda g: (g >= 0, -g))
  ]


SINGLY = 40  # cells of a strip that can be told apart


def strip(shades: list[int]) -> list[tuple[int, str]]:
  """A row of unit cells, as (shade, path); more of them than can be told apart are sorted, so that the widths show how many there are of each."""
  if len(shades) > SINGLY:
    ends = np.cumsum(np.bincount(shades)).tolist()
    return [
      (one, f'M{start} 0H{end}V1H{start}z')
      for one, (start, end) in enumerate(itertools.pairwise([0, *ends]))
      if start < end
    ]
  paths: dict[int, list[str]] = {}
  for x, one in enumerate(shades):
    paths.setdefault(one, []).append(f'M{x} 0h1v1h-1z')
  return [(one, ''.join(parts)) for one, parts in sorted(paths.items())]


def address(image: bytes, kind: str = 'jpeg') -> str:
  return f'data:image/{kind};base64,{base64.b64encode(image).decode()}'


def heat(picture: bytes, heatmap: np.ndarray, side: int = 168) -> bytes:
  """A JPEG of the picture, darkened and in grey, under the heat map, uint8 [h, w], in colour: the more heat, the more of it."""
  import matplotlib

  image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
  scale = min(1.0, side / max(image.shape[:2]))
  image = cv2.resize(
    image,
    (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))),
    interpolation=cv2.INTER_AREA,
  )
  level = np.clip(
    cv2.resize(heatmap.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC) / 255,
    0,
    1,
  )[..., None]
  colour = 255 * matplotlib.colormaps['inferno'](level[..., 0])[..., :3]
  grey = image.mean(-1, keepdims=True)
  mixed = (1 - 0.65 * level) * (0.55 * grey + 0.25 * image) + 0.65 * level * colour
  return cv2.imencode(
    '.jpg', np.clip(mixed, 0, 255).astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 78]
  )[1].tobytes()
