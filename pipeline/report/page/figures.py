"""The plots of a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report.page import choice, svg
from pipeline.report.page.choice import Candidate
from pipeline.report.page.content import Figure
from pipeline.report.units import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from pipeline.verification.verdict import Verdict

_ROW = 15  # points from one row of dots to the next
_MARKED = 20  # each of up to so many epochs has a marker
_LEAST_TICKS, _MOST_TICKS = 3, 6
_PAD = 1.3  # of logarithmic axes, around the values


def training(name: str, curve: Sequence[Mapping[str, Any]], text: str) -> Figure:
    """Draws a value by epoch.

    Args:
        name: "loss" or "accuracy", of the training images.
        curve: The "curve" of `training.json`.
        text: What the plot shows, in words.
    """
    title = f"{name.capitalize()} on training images"
    with svg.plotting(f"figure-training-{name}", title, text, 130) as plot:
        axes = plot.drawing.subplots()
        axes.plot(
            [float(entry["epoch"]) for entry in curve],
            [float(entry[name]) for entry in curve],
            marker="o" if len(curve) <= _MARKED else "",
            color=svg.SERIES[0],
        )
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", integer=True)
        if name == "accuracy":
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("epoch")
    return Figure(title, text, plot.svg)


def latency(name: str, title: str, points: Sequence[Candidate], text: str) -> Figure:
    """Draws each engine's latency with its interval, in one panel for each batch size.

    Args:
        name: Makes the identifier of the figure.
    """
    batches = choice.loads(points)
    panels = [
        sorted((p for p in points if (p.batch, p.size) == batch), key=lambda p: -p.seconds)
        for batch in batches
    ]
    rows = [len(panel) for panel in panels]
    height = _ROW * sum(rows) + 44 * len(rows)
    with svg.plotting(f"figure-latency-{name}", title, text, height) as plot:
        every = plot.drawing.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
        for axes, panel, (batch, size) in zip(every, panels, batches, strict=True):
            places = range(len(panel))
            values = [point.seconds for point in panel]
            reach = [
                [max(0.0, point.seconds - point.low) for point in panel],
                [max(0.0, point.high - point.seconds) for point in panel],
            ]
            colour = svg.SERIES[0]
            axes.errorbar(values, places, xerr=reach, fmt="o", color=colour, capsize=2.5)
            axes.set_yticks(places, [_label(point, points) for point in panel])
            axes.set_ylim(-0.7, len(panel) - 0.3)
            axes.set_title(f"batch {batch}" + (f" at {size}" if size else ""))
            low, high = min(p.low for p in panel), max(p.high for p in panel)
            log_axis(axes, axes.xaxis, low, high, round_duration)
            axes.grid(visible=False, axis="y")
    return Figure(title, text, plot.svg)


def _label(point: Candidate, points: Sequence[Candidate]) -> str:
    several = len({other.precision for other in points}) > 1
    label = f"{point.engine} {point.precision}" if several else point.engine
    return f"{label} {point.sessions}x{point.threads}" if point.served else label


def trade_off(
    name: str, title: str, points: Sequence[Candidate], best: Sequence[Candidate], text: str
) -> Figure:
    """Draws images or rows per second over latency, a line for each engine through its batch sizes.

    Args:
        name: Makes the identifier of the figure.
        best: The points on the frontier.
    """
    lines: dict[str, list[Candidate]] = {}
    for point in sorted(points, key=lambda entry: entry.batch):
        lines.setdefault(_label(point, points), []).append(point)
    columns = 2
    height = 210 + 13 * math.ceil(len(lines) / columns)
    with svg.plotting(f"figure-frontier-{name}", title, text, height) as plot:
        axes = plot.drawing.subplots()
        axes.plot(
            [point.seconds for point in best],
            [point.rate for point in best],
            color=svg.GRID,
            linewidth=7,
            solid_capstyle="round",
            marker="o",
            markersize=7,
            zorder=1,
        )
        for number, (label, line) in enumerate(lines.items()):
            axes.plot(
                [point.seconds for point in line],
                [point.rate for point in line],
                color=svg.SERIES[number % len(svg.SERIES)],
                marker=svg.MARKERS[number % len(svg.MARKERS)],
                linewidth=1,
                label=label,
            )
        for point in best:
            axes.annotate(
                f"{point.batch}",
                (point.seconds, point.rate),
                xytext=(-5, 5),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        low, high = min(p.seconds for p in points), max(p.seconds for p in points)
        log_axis(axes, axes.xaxis, low, high, round_duration)
        rates = [point.rate for point in points]
        log_axis(axes, axes.yaxis, min(rates), max(rates), lambda value: f"{value:,.0f}")
        axes.set_xlabel("latency of one inference, end to end")
        axes.set_title(f"{points[0].counted}/s")
        plot.drawing.legend(loc="outside lower left", ncols=columns)
    return Figure(title, text, plot.svg)


def noise(
    name: str, title: str, verdicts: Sequence[Verdict], text: str, *, limited: bool
) -> Figure:
    """Draws the errors of each output in units of the noise floor, and their limits.

    Args:
        name: Makes the identifier of the figure.
        verdicts: Verdicts with outputs, of one precision.
        limited: Whether the limits apply.
    """
    rows = [(verdict, output) for verdict in reversed(verdicts) for output in verdict.outputs]
    several = any(len(verdict.outputs) > 1 for verdict in verdicts)
    with svg.plotting(f"figure-noise-{name}", title, text, _ROW * len(rows) + 76) as plot:
        axes = plot.drawing.subplots()
        places = range(len(rows))
        kinds = (
            ("rms, all rows", [output.rms_ratio for _, output in rows], verdicts[0].k[0]),
            ("largest, any row", [output.max_ratio for _, output in rows], verdicts[0].k[1]),
        )
        finite = [value for _, values, _ in kinds for value in values if 0 < value < math.inf]
        limits = [limit for _, _, limit in kinds if limited]
        for (label, values, limit), colour, marker in zip(
            kinds, svg.SERIES, svg.MARKERS, strict=False
        ):
            words = f"{label} (limit {limit:g})" if limited else label
            axes.plot(values, places, marker, color=colour, label=words)
            if limited:
                axes.axvline(limit, color=colour, linewidth=1, linestyle="--")
        axes.set_yticks(
            places,
            [
                f"{verdict.subject}, {output.label}" if several else verdict.subject
                for verdict, output in rows
            ],
        )
        axes.set_ylim(-0.7, len(rows) - 0.3)
        low, high = min([*finite, *limits], default=1), max([*finite, *limits], default=1)
        log_axis(axes, axes.xaxis, low, high, lambda value: f"{value:g}")
        axes.set_xlabel("error in units of the model's own rounding noise")
        axes.grid(visible=False, axis="y")
        plot.drawing.legend(loc="outside upper left", ncols=2)
    return Figure(title, text, plot.svg)


def log_axis(
    axes: Axes, axis: Axis, low: float, high: float, words: Callable[[float], str]
) -> None:
    """Makes an axis logarithmic, with three to six ticks at round numbers.

    Raises:
        ValueError: A value is not positive.
    """
    from matplotlib.ticker import MaxNLocator

    if not low > 0:
        raise ValueError(f"{low} is not above 0")
    if axis is axes.xaxis:
        low, high = low / _PAD, high * _PAD
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    else:
        low, high = low / _PAD, high * _PAD**2  # the uppermost points have labels above them
        axes.set_yscale("log")
        axes.set_ylim(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= _LEAST_TICKS:
            break
    else:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(ticks[:: math.ceil(len(ticks) / _MOST_TICKS)])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, _: words(value))


def round_duration(seconds: float) -> str:
    """Returns a round time without the digits that say how exact it is, such as "10 ms"."""
    number, unit = duration(seconds).split()
    return f"{float(number.replace(',', '')):,g} {unit}"
