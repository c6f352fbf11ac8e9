"""What a study's trials tell beyond the front: which knobs matter, whether more trials would help, and what goes with
what. Sections of the page of `brisk show --html`.

The importances are Optuna's. Its drawings are not used: they take every set of choices ("steps.1-4", "steps.1-8") for
a parameter of its own, leave out trials that a parameter does not concern, and have no logarithmic axis for a cost.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import Any

from experiments.figures import number
from experiments.picture import ticks
from objectives.objective import OBJECTIVES, learned_cost
from objectives.outcome import FORETOLD, Outcome
from search.history import History, known_space
from search.ledger import curve
from search.summary import searched_corner
from spaces.errors import SpecError
from spaces.record import from_json
from spaces.signature import Signature

FEWEST = 20
"""Trials below which importance is not told: it compares the best tenth with all, and one trial is no tenth."""

STEADY = 50  # trials from which on five are in the best tenth, as Optuna advises
MOST = 14  # parameters in a drawing, the most important ones
FEW = 8  # values that are drawn side by side, as categories are
MANY = 10_000  # dots from which on the graphics card draws them

FRONT, OTHER, MIDDLE = "#0072b2", "#a6a6a6", "#d55e00"  # as in the front's drawing: Okabe and Ito's blue and vermilion
LABELS = {"quality": "validation error", "latency": "latency, ms", "size": "size, KiB", "memory": "memory, KiB"}
CONTROLS = {"responsive": True, "displayModeBar": False}


@dataclass(frozen=True)
class Tried:
    """One trial and what came of it, parameters by their keys in the spec.

    `values` are what it is; `chosen`, those among them that it had a choice of, are Optuna's (value, distribution).
    `costs` are those of the study's objectives that are known.
    """

    number: int
    values: Mapping[str, Any]
    chosen: Mapping[str, tuple[Any, Any]]
    costs: Mapping[str, float]
    front: bool


# Figures -------------------------------------------------------------------------------------------------------------


def tried(history: History, best: Sequence[int | str] = ()) -> list[Tried]:
    """The trials of which some cost is known, in their order; `best` names those on the front."""
    if not history.outcomes:
        return []
    space, training = known_space(history.plan, history.prepared), history.plan.bench.training
    signature = from_json(Signature, history.prepared["signature"])
    teaching = {"distillation": training.distillation, "hints": training.hints}
    genes = {gene.key: gene.name for gene in space.genes}
    found = []
    for trial, outcome in history.outcomes.items():
        costs = _costs(history, outcome)
        drawn = _drawn(space, outcome, signature, teaching) if costs else {}
        if not drawn:
            continue
        keys = {name: name.split(".")[0] for name in drawn if name not in genes}
        taken = {*vars(outcome.genotype.deployment), *keys.values()}
        said = {gene: f"hp.{gene}" if gene in taken else gene for gene in genes.values()}
        groups = (outcome.genotype.architecture, outcome.genotype.training, outcome.genotype.deployment)
        values = {key: value for group in groups for key, value in vars(group).items()}
        values |= {said[gene]: value for gene, value in values.pop("values")}
        chosen = {keys[name] if name in keys else said[genes[name]]: choice for name, choice in drawn.items()}
        found.append(Tried(trial, values, chosen, costs, trial in best))
    return found


def importance(trials: Sequence[Tried], objective: str) -> dict[str, float]:
    """How much each parameter had to do with being among the best tenth in an objective: shares of 1, {} where fewer
    than `FEWEST` trials know the objective, or all alike.

    By PED-ANOVA (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255), Optuna's default, in its conditional form
    (https://arxiv.org/abs/2601.20800): a choice that depends on another counts among the trials that had it, each set
    of values apart.
    """
    known = [one for one in trials if objective in one.costs and one.chosen]
    if len(known) < FEWEST or len({one.costs[objective] for one in known}) == 1:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for one in known:
        study.add_trial(
            optuna.create_trial(
                params={key: value for key, (value, _) in one.chosen.items()},
                distributions={key: distribution for key, (_, distribution) in one.chosen.items()},
                value=one.costs[objective],
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of values that a single trial had
        return optuna.importance.get_param_importances(study)


def growth(history: History) -> tuple[list[float], list[float]]:
    """(minutes, hypervolume) after each told trial, the hypervolume by the figures of the search.

    The study's wall time is shared out by the work that each trial took; no minutes where that is not known, and no
    hypervolume where there is no corner to measure it from.
    """
    told = curve({"reference": searched_corner(history)}, [*history.rewrites.items(), *history.outcomes.items()])
    volumes = [figures["hypervolume"] for _, figures in told if "hypervolume" in figures]
    before = [*([history.baseline] if history.baseline else []), *history.rewrites.values()]
    after = [*history.twins.values(), *history.batches.values(), *history.seeds.values()]
    spent = [*accumulate(_work(outcome) for outcome in (*before, *history.outcomes.values(), *after))]
    if not spent or not spent[-1] or not history.wall_s:
        return [], volumes
    first = len(before)
    minutes = [history.wall_s / 60 * done / spent[-1] for done in spent[first : first + len(history.outcomes)]]
    return minutes, volumes


def _costs(history: History, outcome: Outcome) -> dict[str, float]:
    if outcome.stage == FORETOLD:
        return {}
    known = learned_cost if outcome.weighed else lambda outcome, name: OBJECTIVES[name].read(outcome)
    read = {name: known(outcome, name) for name in history.plan.objectives}
    return {name: cost for name, cost in read.items() if cost is not None and math.isfinite(cost)}


def _drawn(
    space: Any, outcome: Outcome, signature: Signature, teaching: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """(value, distribution) of the Optuna parameters that draw a genotype; {} where none do."""
    from optuna.trial import FixedTrial

    try:
        fixed = FixedTrial(space.parameters(outcome.genotype, signature, **teaching))
    except SpecError:
        return {}
    space.sample(fixed, signature, **teaching)
    return {name: (value, fixed.distributions[name]) for name, value in fixed.params.items()}


def _work(outcome: Outcome) -> float:
    return sum(outcome.seconds.values())


# Sections ------------------------------------------------------------------------------------------------------------


def insight(history: History, summary: Mapping[str, Any]) -> str:
    """The sections as HTML, for a page that has plotly's script already."""
    trials = tried(history, [point["trial"] for point in summary["front"]])
    objectives = list(history.plan.objectives)
    shares = {name: importance(trials, name) for name in objectives}
    keys = _ranked(trials, shares)
    return "\n".join(
        (
            _section("Which parameters matter", *_importance(trials, shares)),
            _section("What more trials brought", *_growth(history, summary)),
            _section("What goes with what", *_parallel(trials, objectives, keys)),
            _section("Parameter by parameter", *_slices(trials, objectives, keys)),
        )
    )


def _section(title: str, words: str, drawing: str = "") -> str:
    return f"<h2>{title}</h2>\n<p>{html.escape(words)}</p>\n{drawing}"


def _ranked(trials: Sequence[Tried], shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The parameters that have more than one value among the trials, the most important first."""
    keys = dict.fromkeys(key for one in trials for key in one.chosen)
    varied = [key for key in keys if len({one.values[key] for one in trials if key in one.chosen}) > 1]
    return sorted(varied, key=lambda key: -fmean(known.get(key, 0.0) for known in shares.values()))[:MOST]


def _importance(trials: Sequence[Tried], shares: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    told = {name: found for name, found in shares.items() if found}
    if not told:
        return f"Told from {FEWEST} trials on that differ in an objective; {len(trials)} were measured.", ""
    keys = dict.fromkeys(key for found in told.values() for key in found)
    ranked = sorted(keys, key=lambda key: -fmean(found.get(key, 0.0) for found in told.values()))[:MOST]
    places, names = [*range(len(ranked))], [html.escape(key) for key in ranked]
    figure = _panels(1, [LABELS[name] for name in told])
    for column, found in enumerate(told.values(), start=1):
        values = [found.get(key, 0.0) for key in ranked]
        figure.add_bar(
            x=values, y=places, customdata=names, orientation="h", marker={"color": FRONT},
            text=[f"{value:.0%}" for value in values], textposition="outside", cliponaxis=False,
            hovertemplate="%{customdata}: %{x:.1%}<extra></extra>", row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(range=[0, 1.2 * max(values)], visible=False, row=1, col=column)
        named = {"tickvals": places, "ticktext": [_short(key, 18) for key in ranked], "showticklabels": column == 1}
        figure.update_yaxes(autorange="reversed", showgrid=False, **named, row=1, col=column)
    words = (
        "How much each parameter had to do with being among the best tenth in an objective (PED-ANOVA, as shares of 1)."
    )
    if len(trials) < STEADY:
        words += f" Of {len(trials)} trials that is a rough guess: from {STEADY} on it is steadier."
    if len(ranked) == MOST:
        words += f" At most {MOST} are drawn."
    if missing := [_plain(name) for name in shares if name not in told]:
        words += f" Not told of {' and '.join(missing)}: it needs {FEWEST} trials that differ in it."
    return words, _drawing(figure, "importance", 55 + 26 * len(ranked))


def _growth(history: History, summary: Mapping[str, Any]) -> tuple[str, str]:
    minutes, volumes = growth(history)
    if len(volumes) < 2:
        return "The hypervolume is drawn from two finished trials on, once there is something to measure it from.", ""
    numbers = [*range(1, len(volumes) + 1)]
    axes = [(numbers, "trials")] + ([(minutes, "wall time, minutes")] if minutes else [])
    figure = _panels(1, [""] * len(axes))
    for column, (x, label) in enumerate(axes, start=1):
        line = {"shape": "hv", "color": FRONT, "width": 2}
        hover = f"%{{x:.4g}} {label.split(', ')[-1]}: %{{y:.4f}}<extra></extra>"
        figure.add_scatter(x=x, y=volumes, mode="lines", line=line, hovertemplate=hover, row=1, col=column)
        if summary["final"]:
            mark = {"symbol": "diamond", "size": 10, "color": MIDDLE}
            hover = "measured again at the end: %{y:.4f}<extra></extra>"
            end = {"x": [x[-1]], "y": [summary["hypervolume"]], "mode": "markers", "marker": mark}
            figure.add_scatter(**end, hovertemplate=hover, row=1, col=column)
        figure.update_xaxes(title=label, row=1, col=column)
        figure.update_yaxes(title="hypervolume" if column == 1 else "", tickformat=".3~f", row=1, col=column)
    words = (
        f"The share of the box up to {_corner(searched_corner(history))} that the front covers, all but errors by "
        "their logarithm down to a thousandth; where it is flat, more trials of this space will bring little. It ended "
        f"at {volumes[-1]:.4f}"
    )
    words += f", and at {summary['hypervolume']:.4f} as measured again (diamond)." if summary["final"] else "."
    if minutes:
        words += " The wall time is shared out by the work that each trial took."
    return words, _drawing(figure, "hypervolume", 330)


def _corner(corner: Mapping[str, float]) -> str:
    units = {name: "" if name == "quality" else f" {OBJECTIVES[name].unit}" for name in corner}
    said = [f"{_plain(name)} {number(cost)}{units[name]}" for name, cost in corner.items()]
    return f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else said[0]


def _parallel(trials: Sequence[Tried], objectives: Sequence[str], keys: Sequence[str]) -> tuple[str, str]:
    import plotly.graph_objects as go

    whole = [one for one in trials if len(one.costs) == len(objectives)]
    if len(whole) < 2 or not keys:
        return "Drawn from two finished trials on that differ in some parameter.", ""
    choices = [(_short(key, 16), axis_of([one.values.get(key) for one in whole])) for key in keys]
    costs = [(LABELS[name], cost_axis([one.costs[name] for one in whole])) for name in objectives]
    lines = [{"label": label, "values": axis.at, "range": axis.span, **axis.ticked} for label, axis in choices + costs]
    member = {"label": "front", "tickvals": [0, 1], "ticktext": ["off", "on"], "range": [-0.3, 1.3]}
    member["values"] = [int(one.front) for one in whole]
    count = sum(one.front for one in whole)
    picked = {"constraintrange": [0.7, 1.3]} if count else {}
    colour = {"color": costs[0][1].at, "colorscale": "Cividis", "showscale": False}
    figure = go.Figure(
        go.Parcoords(
            dimensions=[*lines, {**member, **picked}],
            line=colour,
            unselected={"line": {"color": OTHER, "opacity": min(0.15, 20 / len(whole))}},
            labelangle=-20,
            labelfont={"size": 12},
            tickfont={"size": 11},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        )
    )
    figure.update_layout(margin={"l": 60, "r": 40, "t": 75, "b": 25})
    words = f"A line is a trial; the darker, the lower its {_plain(objectives[0])}. "
    words += f"Those on the front ({count}) are picked out: click the last axis to let go of them. " if count else ""
    words += "Drag along an axis to pick some, twice for more, and drag a name to move its axis."
    if any(key not in one.values for one in whole for key in keys):
        words += " A line that meets an axis at “none” is of a trial that the parameter does not concern."
    wide = f'<div style="min-width: {62 * (len(lines) + 1)}px">{_drawing(figure, "parallel", 460)}</div>'
    return words, f'<div class="wide">{wide}</div>'


def _slices(trials: Sequence[Tried], objectives: Sequence[str], keys: Sequence[str]) -> tuple[str, str]:
    if len(trials) < 2 or not keys:
        return "Drawn from two measured trials on that differ in some parameter.", ""
    objectives = [name for name in objectives if any(name in one.costs for one in trials)]
    figure = _panels(len(keys), [LABELS[name] for name in objectives])
    heights = [cost_axis([one.costs[name] for one in trials if name in one.costs]) for name in objectives]
    many = len(trials) * len(keys) * len(objectives) > MANY
    for row, key in enumerate(keys, start=1):
        wide = axis_of([one.values[key] for one in trials if key in one.chosen])
        said = {name: [*map(html.escape, text)] if name == "ticktext" else text for name, text in wide.ticked.items()}
        for column, (name, high) in enumerate(zip(objectives, heights, strict=True), start=1):
            having = [one for one in trials if key in one.chosen and name in one.costs]
            _scatter(figure, having, key, name, (wide, high), many, row, column)
            figure.update_xaxes(
                range=wide.span, **said, title={"text": _short(key, 24), "standoff": 4}, row=row, col=column
            )
            figure.update_yaxes(range=high.span, **high.ticked, row=row, col=column)
    words = "Each trial by one parameter and one cost, blue on the front; lower is better. "
    words += "A dash is the median of a value. Trials that had no choice of a parameter are left out of its row."
    return words, _drawing(figure, "slices", 80 + 190 * len(keys))


def _scatter(
    figure: Any,
    trials: Sequence[Tried],
    key: str,
    name: str,
    axes: tuple[Axis, Axis],
    many: bool,
    row: int,
    column: int,
) -> None:
    import plotly.graph_objects as go

    kind = go.Scattergl if many else go.Scatter
    wide, high = axes
    for member, marker in (
        (False, {"color": OTHER, "size": 5, "opacity": 0.6}),
        (True, {"color": FRONT, "size": 7, "opacity": 0.9, "line": {"width": 0.5, "color": "white"}}),
    ):
        shown = [one for one in trials if one.front == member]
        said = [(one.number, html.escape(str(one.values[key])), number(one.costs[name])) for one in shown]
        hover = (
            f"trial %{{customdata[0]}}<br>{html.escape(key)} %{{customdata[1]}}<br>%{{customdata[2]}}<extra></extra>"
        )
        x = [wide.place(one.values[key]) + wide.apart(one.number) for one in shown]
        y = [high.place(one.costs[name]) for one in shown]
        dots = kind(x=x, y=y, mode="markers", marker=marker, customdata=said, hovertemplate=hover)
        figure.add_trace(dots, row=row, col=column)
    by_value = {value: [one.costs[name] for one in trials if one.values[key] == value] for value in wide.values}
    middles = [(wide.place(value), high.place(median(costs))) for value, costs in by_value.items() if costs]
    line = {"symbol": "line-ew", "size": 22, "line": {"width": 2, "color": MIDDLE}}
    x, y = [at for at, _ in middles], [at for _, at in middles]
    figure.add_trace(kind(x=x, y=y, mode="markers", marker=line, hoverinfo="skip"), row=row, col=column)


# Axes ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Where values lie on a drawn axis: side by side (`values`), or by size, perhaps by its logarithm. What is None, of
    no concern, lies below them.
    """

    at: list[float]  # of the values that it was made for
    span: list[float]
    values: tuple[Any, ...] = ()
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    @property
    def ticked(self) -> dict[str, Any]:
        """The ticks as plotly takes them, as plain text; {} where it finds its own."""
        if not self.ticks:
            return {}
        return {"tickvals": [at for at, _ in self.ticks], "ticktext": [said for _, said in self.ticks]}

    def place(self, value: Any) -> float:
        """Where one value lies."""
        if self.values:
            return float(self.values.index(value))
        return math.log10(value) if self.log else float(value)

    def apart(self, trial: int) -> float:
        """How far a dot is moved aside, so that those of one value can be told apart."""
        return 0.5 * ((trial * 0.618) % 1 - 0.5) if self.values else 0.0


def axis_of(values: Sequence[Any]) -> Axis:
    """The axis of a parameter, of one that does not concern all of them (None) too."""
    known = {value for value in values if value is not None}
    if len(known) > FEW and all(isinstance(value, int | float) for value in known):
        return cost_axis(values)
    ordered = tuple(sorted(known, key=_order))
    at = [-1.0 if value is None else float(ordered.index(value)) for value in values]
    marks = [*([(-1.0, "none")] if None in values else []), *((float(i), _said(one)) for i, one in enumerate(ordered))]
    return Axis(at, [min(at) - 0.5, len(ordered) - 0.5], ordered, ticks=tuple(marks))


def cost_axis(values: Sequence[float | None]) -> Axis:
    """An axis by size, logarithmic where the largest value is five times the smallest."""
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    log = low > 0 and high >= 5 * low
    first, last = (math.log10(low), math.log10(high)) if log else (low, high)
    margin = 0.06 * (last - first) or 0.05 * (abs(last) or 1.0)
    none = first - 4 * margin
    marks = [(math.log10(tick), f"{tick:g}") for tick in ticks((low, high))] if log else []
    if len(marks) > 6:
        marks = [(at, said) for at, said in marks if at.is_integer()]
    if None in values:
        marks = [(none, "none"), *(marks or [(at, f"{at:.3g}") for at in (first, (first + last) / 2, last)])]
    at = [none if value is None else math.log10(value) if log else float(value) for value in values]
    return Axis(at, [min([*at, first]) - margin, last + margin], log=log, ticks=tuple(marks))


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, also those that are written as text, then words."""
    try:
        return False, float(value), ""
    except ValueError:
        return True, 0.0, str(value)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else _cut(str(value), 12) or "none"


def _short(text: str, limit: int) -> str:
    return html.escape(_cut(text, limit))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plain(objective: str) -> str:
    return LABELS[objective].split(",")[0]


def _panels(rows: int, titles: Sequence[str]) -> Any:
    """Panels in rows and columns, the titles above the first row."""
    from plotly.subplots import make_subplots

    columns = len(titles)
    gap = 0.4 / rows if rows > 1 else 0.0
    return make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.2 / columns, vertical_spacing=min(gap, 0.3 / rows)
    )


def _drawing(figure: Any, name: str, height: int) -> str:
    layout: dict[str, Any] = {"template": "plotly_white", "height": height, "showlegend": False}
    if name != "parallel":
        layout["margin"] = {"l": 70, "r": 30, "t": 40, "b": 10 if name == "importance" else 50}
    figure.update_layout(**layout)
    figure.update_annotations(font_size=13)
    drawn: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=CONTROLS)
    return drawn
