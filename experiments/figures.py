"""How a figure is written, wherever a person reads one."""

from __future__ import annotations


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def times(ratio: float | None) -> str:
    """A ratio: "0.943×", "1.82×", "24×"; "" where there is none."""
    return "" if ratio is None else f"{number(ratio) if ratio < 10 else f'{ratio:.0f}'}×"


def change(of_error: float, metric: str) -> str:
    """A signed change of an error: in points where it is a share, else in the metric's unit."""
    return f"{100 * of_error:+.1f} pt" if metric == "accuracy" else f"{of_error:+.3g}"
