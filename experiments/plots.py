"""The front as a picture: quality against latency, as PNG and as one interactive page that needs no network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.curves import batches_html, curve_of, draw_batches
from experiments.figures import number
from experiments.insight import insight
from experiments.picture import Mark, Picture, headline, picture, running_best, stairs, ticks, x_range, y_range
from experiments.report import bits, footnotes, quality, timed
from experiments.tables import COMPRESSION, Rows, batch, batch_title, compression, markdown
from objectives.outcome import Outcome
from search.history import History
from search.ledger import form, title

FRONT, BASELINE, OTHER = "#0072b2", "#d55e00", "#a6a6a6"  # Okabe and Ito's blue and vermilion: apart for every eye


def front_png(summary: Mapping[str, Any], path: Path, outcomes: Sequence[tuple[int | str, Outcome]] = ()) -> Path:
    """Draw the front into a PNG of 1600 x 1000 pixels, and below it the curve over batch sizes; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shown = picture(summary, outcomes)
    curve = curve_of(summary)
    heights = (6.25, 3.0) if curve else (6.25,)
    figure = Figure(figsize=(10, sum(heights)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    if curve:
        draw_batches(below[0], curve)
    axes.set_xscale("log")
    axes.set_yscale("log" if shown.log_y else "linear")
    axes.xaxis.set_major_locator(FixedLocator(ticks(x_range(shown))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(shown.x_label)
    axes.set_ylabel(shown.y_label)
    axes.set_title("\n".join(headline(summary, shown)), loc="left", fontsize=11)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_marks(figure, axes, shown)
    _frame(axes, shown)
    if shown.front or shown.baseline or shown.others:
        corner = "upper right" if shown.smaller_is_better else "lower right"
        axes.legend(loc=corner, frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _label(figure, axes, shown)
    figure.savefig(path, format="png")
    return path


def front_html(
    summary: Mapping[str, Any],
    outcomes: Sequence[tuple[int | str, Outcome]] = (),
    history: History | None = None,
) -> str:
    """One page with the interactive front, plotly's script inside it; a click on a point shows how to export it.

    Below it are the tables and, from the `history`, what its trials tell beyond the front.
    """
    import plotly.graph_objects as go

    shown, study = picture(summary, outcomes), str(summary["study"])
    figure = go.Figure()
    for marks, name, colour, symbol in (
        (shown.others, shown.others_label, OTHER, "circle"),
        (shown.over, "over a bound", OTHER, "x-thin-open"),
    ):
        if marks:
            figure.add_trace(
                _trace(go, marks, study, name, {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7})
            )
    if shown.front:
        x, y = [mark.x_ms for mark in shown.front], running_best(shown)
        line = {"shape": "hv", "color": FRONT, "width": 1.5}
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))
        sizes = [mark.size_kib for mark in shown.front]
        colours = {"color": sizes, "colorscale": "Cividis_r", "showscale": True, "colorbar": {"title": "size, KiB"}}
        marker = {"size": 13, "line": {"width": 1, "color": "#333"}, **colours}
        figure.add_trace(_trace(go, shown.front, study, "front", marker, bars=True))
    if shown.baseline:
        marker = {"size": 15, "symbol": "diamond", "color": BASELINE}
        figure.add_trace(_trace(go, (shown.baseline,), study, f"baseline: {shown.baseline.name}", marker, bars=True))
    figure.update_layout(
        template="plotly_white",
        title={"text": "<br>".join(map(html.escape, headline(summary, shown))), "font": {"size": 15}, "x": 0.01},
        legend={"orientation": "h", "y": -0.14},
        hoverlabel={"align": "left"},
        margin={"l": 70, "r": 30, "t": 70, "b": 60},
        height=600,
    )
    at = ticks(x_range(shown))
    span = [math.log10(end) for end in x_range(shown)]
    figure.update_xaxes(type="log", title=shown.x_label, range=span, tickvals=at, ticktext=[f"{tick:g}" for tick in at])
    y_span = [math.log10(end) for end in y_range(shown)] if shown.log_y else y_range(shown)
    figure.update_yaxes(type="log" if shown.log_y else "linear", title=shown.y_label, range=y_span)
    drawing = figure.to_html(full_html=False, include_plotlyjs=True, div_id="front", config=CONTROLS)
    return PAGE.format(
        title=html.escape(study),
        drawing=drawing,
        study=html.escape(study),
        table=_rows(summary),
        compression=_set(COMPRESSION, compression(summary)),
        batches=batches_html(curve) + _set(curve["text"], batch(summary)) if (curve := curve_of(summary)) else "",
        insight=insight(history, summary) if history else "",
    )


PLACES = ((-7, 4), (0, 16), (-7, 16), (9, -12), (0, 28), (0, -24))
"""Where a point's name may stand, in printer's points off it; upwards is towards the front's better side."""

CONTROLS = {"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]}


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: front</title><style>
body {{ font: 15px system-ui, sans-serif; margin: 1.5em auto; max-width: 1100px; padding: 0 1em; color: #222 }}
#how {{ background: #f4f4f4; padding: .6em .8em; border-radius: 4px; overflow-x: auto }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; width: 100% }}
th, td {{ padding: .25em .7em; text-align: right }}
.front th:nth-child(-n+4), .front td:nth-child(-n+4) {{ text-align: left }}
tr:nth-child(even) {{ background: #f8f8f8 }}
.beside th:last-child, .beside td:last-child {{ text-align: left }}
tr.baseline {{ font-weight: bold }}
.notes {{ color: #666; font-size: .9em }}
h2 {{ font-size: 1.15em; margin: 2em 0 .3em }}
</style></head><body>
{drawing}
<p>Click a point to see how to take it:</p>
<pre id="how">brisk export {study} --pick knee --to tflite --out DIR</pre>
<div class="wide">{table}</div>
{compression}
{batches}
{insight}
<script>
document.getElementById("front").on("plotly_click", function (click) {{
  var how = click.points[0].customdata;
  if (how) document.getElementById("how").textContent = how[1];
}});
</script>
</body></html>
"""


def _frame(axes: Any, shown: Picture) -> None:
    low, high = y_range(shown)
    axes.set_ylim(low, high)
    axes.set_xlim(*x_range(shown))
    hidden = sum(not low <= mark.y <= high for mark in (*shown.others, *shown.over))
    if hidden:
        axes.text(0.01, 0.01, f"outside the picture: {hidden}", transform=axes.transAxes, fontsize=8, color="#666")


def _draw_marks(figure: Any, axes: Any, shown: Picture) -> None:
    for marks, symbol, name in ((shown.others, "o", shown.others_label), (shown.over, "x", "over a bound")):
        if marks:
            axes.scatter(
                [m.x_ms for m in marks], [m.y for m in marks], s=24, c=OTHER, marker=symbol, label=name, alpha=0.8
            )
    if shown.front:
        x, y = [m.x_ms for m in shown.front], [m.y for m in shown.front]
        axes.step(x, running_best(shown), where="post", color=FRONT, linewidth=1.3, zorder=2)
        axes.errorbar(x, y, **_bars(shown.front), fmt="none", ecolor=FRONT, elinewidth=0.9, alpha=0.6, zorder=2)
        sizes = [m.size_kib for m in shown.front]
        dots = axes.scatter(
            x, y, c=sizes, cmap="cividis_r", s=62, edgecolors="#333", linewidths=0.8, zorder=3, label="front"
        )
        figure.colorbar(dots, ax=axes, label="size, KiB", pad=0.01, aspect=35)
    if shown.baseline:
        mark = (shown.baseline,)
        axes.errorbar(mark[0].x_ms, mark[0].y, **_bars(mark), fmt="none", ecolor=BASELINE, elinewidth=0.9, zorder=2)
        axes.scatter(mark[0].x_ms, mark[0].y, s=90, c=BASELINE, marker="D", zorder=4, label=f"baseline: {mark[0].name}")


def _bars(marks: Sequence[Mark]) -> dict[str, Any]:
    return {
        "xerr": [[m.x_ms - m.low_ms for m in marks], [m.high_ms - m.x_ms for m in marks]],
        "yerr": [m.stderr for m in marks] if any(m.stderr for m in marks) else None,
    }


def _label(figure: Any, axes: Any, shown: Picture) -> None:
    """Name as many points as fit without covering one another, first on the front's better side: nothing is there."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    legend, inside = axes.get_legend(), axes.get_window_extent(renderer)
    taken = [legend.get_window_extent(renderer).padded(4)] if legend else []
    drawn = [axes.transData.transform(point) for point in stairs(shown)]
    out = -1 if shown.smaller_is_better else 1
    for mark in _in_order(shown.front):
        aside = [(9, 0)] if mark is shown.front[-1] else []
        for across, up in [*aside, *((across, up * out) for across, up in PLACES)]:
            note = axes.annotate(
                f"{mark.trial}: {mark.name}", (mark.x_ms, mark.y), (across, up),
                textcoords="offset points", fontsize=7.5,
                ha="center" if not across else "left" if across > 0 else "right",
                va="center" if not up else "bottom" if up > 0 else "top",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#888"} if abs(up) > 12 else None,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer).padded(2)  # the words alone, without the leader
            free = not any(box.overlaps(other) for other in taken) and not any(box.contains(*point) for point in drawn)
            if free and inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1:
                taken.append(box)
                break
            note.remove()


def _in_order(front: Sequence[Mark]) -> list[Mark]:
    if len(front) < 3:
        return list(front)
    middle = front[1:-1]
    ranked = sorted(range(len(middle)), key=lambda index: (index % 2, abs(index - len(middle) // 2)))
    return [front[0], front[-1], *(middle[index] for index in ranked)]


def _trace(go: Any, marks: Sequence[Mark], study: str, name: str, marker: dict[str, Any], *, bars: bool = False) -> Any:
    spread = _bars(marks) if bars else {}
    errors: dict[str, Any] = {}
    thin = {"thickness": 1, "width": 0, "color": "#777"}
    if bars:
        below, above = spread["xerr"]
        errors["error_x"] = {"type": "data", "array": above, "arrayminus": below, **thin}
        if spread["yerr"]:
            errors["error_y"] = {"type": "data", "array": spread["yerr"], **thin}
    take = f"brisk export {study} --trial %s --to tflite --out DIR"
    said = [(f"trial {m.trial}: {html.escape(m.name)}", take % m.trial, m.size_kib) for m in marks]
    hover = (
        "<b>%{customdata[0]}</b><br>%{x:.4g} ms<br>%{y:.4g}<br>%{customdata[2]:.1f} KiB"
        "<br><i>%{customdata[1]}</i><extra></extra>"
    )
    return go.Scatter(
        x=[m.x_ms for m in marks], y=[m.y for m in marks], mode="markers", name=html.escape(name), marker=marker,
        customdata=said, hovertemplate=hover, **errors,
    )  # fmt: skip


def _rows(summary: Mapping[str, Any]) -> str:
    """The front as an HTML table, the baseline first, and what its marks mean."""
    heads = ("trial", "model", "bits", "form", "latency, ms", "faster", "quality", "size, KiB")
    baseline = summary.get("baseline")
    lines = ['<table class="front"><tr>' + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    points = [*([baseline] if baseline else []), *sorted(summary["front"], key=lambda p: -p["throughput_per_s"])]
    for point in points:
        cells = (
            str(point["trial"]),
            title(point["genotype"]),
            bits(point),
            form(point["genotype"]),
            timed(summary, point),
            f"{number(point['speedup'])}×" if point.get("speedup") else "",
            quality(point["quality"]),
            f"{point['size_bytes'] / 1024:.1f}",
        )
        kind = ' class="baseline"' if point is baseline else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    notes = "<br>".join(map(html.escape, footnotes(summary, points)))
    return "\n".join([*lines, "</table>", f'<p class="notes">{notes}</p>'])


def _set(title: str, rows: Rows) -> str:
    """A table of `experiments.tables` as HTML below its title; "" where it has no rows."""
    heads, cells = rows
    if not cells:
        return ""
    lines = [("th", heads), *(("td", line) for line in cells)]
    drawn = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) for tag, line in lines]
    table = "\n".join(f"<tr>{row}</tr>" for row in drawn)
    return f'<p>{html.escape(title)}</p><div class="wide"><table class="beside">{table}</table></div>'


def drawings(
    summary: Mapping[str, Any],
    outcomes: Sequence[tuple[int | str, Outcome]],
    folder: Path,
    history: History | None = None,
) -> dict[str, str | bytes]:
    """The files that go beside the front in MLflow, by name: page, picture, and the tables beside the front."""
    png = front_png(summary, folder / "front.png", outcomes)
    curve = summary.get("batch_curve")
    tables = {
        "compression.md": markdown(COMPRESSION, compression(summary)),
        "batches.md": markdown(f"{batch_title(curve)} {curve['text']}", batch(summary)) if curve else "",
    }
    page = front_html(summary, outcomes, history)
    files: dict[str, str | bytes] = {"front.html": page, "front.png": png.read_bytes()}
    return files | {name: table for name, table in tables.items() if table}
