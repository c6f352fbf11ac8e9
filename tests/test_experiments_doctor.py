"""What doctor finds, and that it says so honestly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import doctor
from objectives.latency.devices.fake import Fake
from objectives.outcome import Conditions, MeasureFailure, Measurement
from spaces.errors import DeviceError


def comparing(*medians_ms: float):
    """A comparison that finds these latencies, whatever it is given."""
    found = Fake().measure([Path(__file__)], Conditions())[0]
    assert isinstance(found, Measurement)
    plain = found.__dict__
    return lambda candidates, conditions: [Measurement(**{**plain, "median_ms": ms}) for ms in medians_ms]


@pytest.mark.parametrize(
    ("medians_ms", "ok"),
    [
        ((0.100, 0.102, 0.200), True),
        ((0.100, 0.104, 0.204), False),  # no tie at 3 %
        ((0.020, 0.021, 0.041), True),  # under 30 us a tie is 6 %
        ((0.100, 0.100, 0.208), False),  # twice is not twice
    ],
)
def test_the_self_check_is_a_tie_and_a_doubling(medians_ms: tuple[float, ...], ok: bool) -> None:
    assert doctor.self_check(comparing(*medians_ms))["ok"] is ok


def test_a_reference_that_cannot_be_measured_is_a_problem(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path, lambda candidates, conditions: [MeasureFailure("died by SIGILL")] * 3)
    assert not report["ok"]
    assert "the reference model could not be measured: died by SIGILL" in report["problems"]
    assert "died by SIGILL" in doctor.render(report)


def test_a_machine_on_which_nothing_can_be_measured_is_a_problem(tmp_path: Path) -> None:
    def refuse(*_: object) -> list[Measurement | MeasureFailure]:
        raise DeviceError("nothing can be measured here: the meter cannot be started")

    report = doctor.examine(tmp_path, refuse)
    assert any("the meter cannot be started" in problem for problem in report["problems"])


def test_other_packages_with_our_names_are_found(tmp_path: Path) -> None:
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "__init__.py").touch()
    (tmp_path / "search.py").touch()
    (tmp_path / "objectives").mkdir()  # no package: Python looks on
    found = doctor.shadowed(doctor.ROOT, [str(tmp_path), str(doctor.ROOT)])
    assert {each["name"] for each in found} == {"spaces", "search"}
    report = doctor.examine(tmp_path, comparing(0.1, 0.1, 0.2))
    assert not report["ok"]
    assert any("spaces" in problem and "move or uninstall" in problem for problem in report["problems"])


def test_the_report_is_json_and_reads_well_at_eighty_columns(tmp_path: Path) -> None:
    report = doctor.examine(tmp_path, comparing(0.1, 0.101, 0.2))
    assert json.loads(json.dumps(report)) == report
    assert report["ok"], report["problems"]
    text = doctor.render(report)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("ai-edge-litert", "A/A test", "+1.0% (allowed ±3%): a tie", "All is well"):
        assert word in text
    assert all(report["versions"].values())
    assert report["clock"]["cost_ns"] < 1e6
