"""The chosen model over batch sizes, drawn: sequences a second, and the memory that a call takes."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.figures import number
from experiments.tables import batch_title

SPEED, MEMORY, OUT = "#0072b2", "#d55e00", "#a6a6a6"  # Okabe and Ito's blue and vermilion, grey for what is excluded

Row = Mapping[str, Any]


def curve_of(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The study's curve where it has figures to draw."""
    curve: Mapping[str, Any] | None = summary.get("batch_curve")
    return curve if curve and _measured(curve["rows"]) else None


def draw_batches(axes: Any, curve: Mapping[str, Any]) -> None:
    """The curve into matplotlib's `axes`; a batch over a bound is a grey cross, the knee a dotted line."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rows = _measured(curve["rows"])
    served = [row for row in rows if not row["excluded"]]
    memory = axes.twinx()
    speed = axes.plot(_batches(served), _speeds(served), color=SPEED, marker="o", markersize=5, label="throughput")
    used = memory.plot(
        _batches(rows), _kib(rows), color=MEMORY, marker="s", markersize=4, linestyle="--", label="memory"
    )
    marks = [*speed, *used]
    if over := [row for row in rows if row["excluded"]]:
        marks += axes.plot(_batches(over), _speeds(over), "x", color=OUT, markersize=8, label="over a bound")
    if curve["knee"] is not None and len(served) > 1:
        axes.axvline(curve["knee"], color="#666", linewidth=0.9, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_batches(rows)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    for drawn, label in ((axes, "sequences a second"), (memory, "memory, KiB")):
        drawn.set_ylim(0, (1.1 if drawn is axes else 1.6) * drawn.get_ylim()[1])  # so that the lines keep apart
        drawn.set_ylabel(label)
        drawn.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        drawn.spines["top"].set_visible(False)
    axes.set_xlabel("batch: sequences of one call")
    axes.set_title(_title(curve), loc="left", fontsize=10)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.legend(handles=marks, loc="lower right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)


def batches_html(curve: Mapping[str, Any]) -> str:
    """The curve as a part of a page that has plotly's script already."""
    import plotly.graph_objects as go

    rows = _measured(curve["rows"])
    served, over = [row for row in rows if not row["excluded"]], [row for row in rows if row["excluded"]]
    figure = go.Figure()
    for shown, name, style in (
        (served, "throughput", {"mode": "lines+markers", "line": {"color": SPEED}}),
        (over, "over a bound", {"mode": "markers", "marker": {"color": OUT, "symbol": "x", "size": 10}}),
    ):
        if shown:
            said = [(number(row["latency_ms"]["median"]), html.escape(row["excluded"])) for row in shown]
            hover = "batch %{x}: %{y:,.0f} sequences a second<br>%{customdata[0]} ms a call<br>%{customdata[1]}"
            x, y = _batches(shown), _speeds(shown)
            figure.add_scatter(x=x, y=y, name=name, customdata=said, hovertemplate=hover + "<extra></extra>", **style)
    dashed = {"mode": "lines+markers", "line": {"color": MEMORY, "dash": "dash"}, "marker": {"symbol": "square"}}
    hover = "batch %{x}: %{y:,.0f} KiB<extra></extra>"
    figure.add_scatter(x=_batches(rows), y=_kib(rows), name="memory", yaxis="y2", hovertemplate=hover, **dashed)
    if curve["knee"] is not None and len(served) > 1:
        dotted = {"color": "#666", "width": 1, "dash": "dot"}
        x, y = [curve["knee"]] * 2, [0, max(_speeds(rows))]
        figure.add_scatter(x=x, y=y, mode="lines", line=dotted, hoverinfo="skip", showlegend=False)
    figure.update_layout(
        template="plotly_white",
        title={"text": html.escape(_title(curve)), "font": {"size": 15}, "x": 0.01},
        yaxis={"title": "sequences a second", "rangemode": "tozero"},
        yaxis2={"title": "memory, KiB", "overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False},
        legend={"orientation": "h", "y": -0.25},
        height=380,
        margin={"l": 70, "r": 70, "t": 50, "b": 60},
    )
    at = _batches(rows)
    figure.update_xaxes(type="log", title="batch: sequences of one call", tickvals=at, ticktext=[str(n) for n in at])
    drawing: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id="batches")
    return drawing


def _title(curve: Mapping[str, Any]) -> str:
    return f"{batch_title(curve)} {curve['text'][:1].lower()}{curve['text'][1:]}".strip(": ")


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["latency_ms"] is not None]


def _batches(rows: Sequence[Row]) -> list[int]:
    return [row["batch"] for row in rows]


def _speeds(rows: Sequence[Row]) -> list[float]:
    return [row["throughput_per_s"] for row in rows]


def _kib(rows: Sequence[Row]) -> list[float]:
    return [row["peak_memory_bytes"] / 1024 for row in rows]
