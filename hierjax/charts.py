"""The report's drawings: inline SVG in the page's CSS variables, so that it is light or dark with the page, and pictures as data addresses."""
import base64
import dataclasses
import io
import math
import re

import cv2
import numpy as np
from markupsafe import Markup

POINTS = 300  # points a curve is drawn with; more lines than that are averaged in bins


@dataclasses.dataclass(frozen=True)
class Series:
  x: np.ndarray
  y: np.ndarray
  colour: int    # 0.., the palette of the style sheet
  dots: bool     # validation: a strong line with its points marked; training: thin
  alpha: float


@dataclasses.dataclass(frozen=True)
class Chart:
  title: str
  axis: str
  series: tuple[Series, ...]
  marks: tuple[float, ...]
  span: tuple[float, float]  # of the x axis, the same for every chart of a run
  percent: bool = False


def _series(lines: list[dict], axis: str, key: str, colour: int, dots: bool, alpha: float | None = None) -> Series:
  """One curve; what is not finite is left out and long curves are averaged in bins, so that a report stays small."""
  points = np.array([(line[axis], line[key]) for line in lines if _finite(line.get(key)) and _finite(line.get(axis))], float).reshape(-1, 2)
  if len(points) > POINTS: points = np.array([part.mean(0) for part in np.array_split(points, POINTS)])
  return Series(points[:, 0], points[:, 1], colour, dots, alpha or (1. if dots else .55))


COLOURS = 6                                       # as many as the style sheet has
INK, GRID, TINTS = '#010203', '#010204', [f'#0102{k + 16:02x}' for k in range(COLOURS)]  # placeholders, each replaced by a CSS variable


def draw(chart: Chart) -> Markup:
  """A line chart as inline SVG in the page's CSS variables, so that it is light or dark with the page. It holds no text of a user's."""
  import matplotlib  # here and not above: reading a run or importing hierjax must not wait for it
  from matplotlib.figure import Figure
  from matplotlib.ticker import FuncFormatter, MaxNLocator
  style = {'svg.fonttype': 'none', 'svg.hashsalt': chart.title, 'font.family': 'DejaVu Sans', 'font.size': 9, 'text.color': INK,
           'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK, 'axes.edgecolor': GRID, 'axes.linewidth': .8}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(4.6, 2.7))
    axes = figure.add_axes((.12, .165, .855, .785))
    for one in chart.series:
      tint = TINTS[one.colour % COLOURS]
      marker = 'o' if one.dots or len(one.x) == 1 else None
      axes.plot(one.x, one.y, color=tint, alpha=one.alpha, lw=1.9 if one.dots or one.alpha == 1 else 1.1, marker=marker, ms=3.2,
                markevery=max(1, len(one.x) // 25), solid_capstyle='round')
    for mark in chart.marks: axes.axvline(mark, color=INK, lw=.9, ls=(0, (1.5, 2.5)), alpha=.7)
    every = np.concatenate([one.y for one in chart.series])
    if chart.percent:
      axes.set_ylim(0, 1 if every.max() > .5 else max(every.max() * 1.15, .02))
      axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{100 * y:.3g}%'))
    else:
      # A first loss or gradient norm far above the rest would press the curve flat: the axis ends above 99 in 100 of the points.
      top = max(np.quantile(every, .99) * 1.08, every[len(every) // 2:].max() * 1.08)
      axes.set_ylim(min(0, every.min() * 1.08), top or 1)
      axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    margin = .02 * (chart.span[1] - chart.span[0])
    axes.set_xlim(chart.span[0] - margin, chart.span[1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=chart.span[1] - chart.span[0] > 3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.6g}'))
    axes.set_xlabel(chart.axis, labelpad=2)
    axes.grid(axis='y', color=GRID, lw=.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    for side in ('top', 'right', 'left'): axes.spines[side].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format='svg', transparent=True, metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
  return inline(out.getvalue(), re.sub('[^a-z]+', '-', chart.title.lower()), f'{chart.title} over the run')


def _tick(value: float, _) -> str:
  """A short label: 0.00025 as 2.5e-4."""
  if value == 0 or abs(value) >= .01: return f'{value:,.3g}' if abs(value) < 1000 else f'{value:,.0f}'
  mantissa, exponent = f'{value:.2e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'


def inline(svg: str, prefix: str, label: str) -> Markup:
  """Matplotlib's SVG made fit to stand in the page: no prologue, ids of its own, the page's colours, a label for screen readers."""
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg[svg.index('<svg'):], flags=re.S)
  svg = re.sub(r'\b(id="|href="#|url\(#)', rf'\g<1>{prefix}-', svg)
  svg = svg.replace(INK, 'var(--ink)').replace(GRID, 'var(--grid)')
  for k, tint in enumerate(TINTS): svg = svg.replace(tint, f'var(--c{k})')
  svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1)
  return Markup(svg.replace('xlink:href', 'href').strip())
