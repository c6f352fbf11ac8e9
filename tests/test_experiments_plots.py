import copy
import re
import sys
from dataclasses import replace

import pytest
from rehearsed import plan
from sample_study import outcome, study

from experiments import plots, report, ui
from experiments.picture import headline, picture, running_best, ticks, y_range
from experiments.publish import publish, sync_study
from search.study import Study
from spaces.errors import InputError, StudyError


def as_rmse(summary):
    """The same front with an error in place of the accuracy, two decades of it."""
    changed = copy.deepcopy(summary)
    for point in [changed["baseline"], *changed["front"]]:
        point["quality"] |= {"metric": "rmse", "test": 10 * (1 - point["quality"]["test"]) ** 2}
    return changed


@pytest.mark.parametrize("trials", [1, 2, 3, 40])
def test_a_png_is_drawn_of_any_front_with_or_without_baseline(tmp_path, trials):
    for baseline in (True, False):
        summary, outcomes = study(trials, baseline=baseline, tested=trials > 2)
        for name in ("front.png", "front", "front.pdf"):
            path = plots.front_png(summary, tmp_path / name, outcomes)
            assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_network_and_says_how_to_export_each_point():
    summary, outcomes = study(24)
    page = plots.front_html(summary, outcomes)
    assert not re.search(r'<(script|link|img)[^>]+(src|href)=["\']?(https?:)?//', page)
    for point in summary["front"]:
        assert f"brisk export digits --trial {point['trial']} --to tflite --out DIR" in page
    assert "Keras 3, static batch" in page


def test_the_page_says_what_the_marks_in_its_table_mean():
    summary, _ = study(24)
    note = "measured again at the end, it was over the <bound>"
    first, *others = ({**point, "final": True} for point in summary["front"])
    timed = report.latency(first["latency_ms"])
    page = plots.front_html({**summary, "final": True, "front": [{**first, "final": False, "notes": [note]}, *others]})
    assert f"<td>^{timed}</td>" in page
    assert "^ of the search: measured again at the end, it was over the &lt;bound&gt;" in page
    assert "^ of the search" not in plots.front_html({**summary, "final": True, "front": [first, *others]})
    plots.front_html({**summary, "baseline": None, "front": []})


def test_invented_figures_are_said_to_be_such_on_page_and_picture():
    summary, outcomes = study(8)
    assert report.REHEARSAL in headline({**summary, "rehearsal": True}, picture(summary, outcomes))[0]
    assert report.REHEARSAL in plots.front_html({**summary, "rehearsal": True}, outcomes)
    assert report.REHEARSAL not in plots.front_html(summary, outcomes)


def test_a_rehearsal_is_not_sent_to_mlflow(tmp_path):
    Study.start(tmp_path, "s", plan(tmp_path)).close()
    with pytest.raises(InputError, match="s: its figures are invented"):
        sync_study(tmp_path, "s")


def test_names_are_escaped():
    summary, _ = study(4)
    summary["study"] = "<script>alert(1)</script>"
    assert "<script>alert(1)" not in plots.front_html(summary)


def test_every_measured_candidate_is_a_mark_once():
    summary, outcomes = study(24)
    over = replace(outcome(30), state="infeasible", reason="latency 2 ms > 1 ms")
    shown = picture(summary, [*outcomes, (30, over)])
    marks = [mark.trial for mark in (*shown.front, *shown.others, *shown.over, shown.baseline)]
    measured = [number for number, found in outcomes if found.measurement]
    assert sorted(map(str, marks)) == sorted(map(str, [*measured, 30]))
    assert [mark.trial for mark in shown.over] == [30]


def test_the_axis_says_which_data_the_figures_are_of():
    assert picture(*study(8, tested=True)).y_label == "accuracy, test data"
    assert picture(*study(8, tested=False)).y_label == "accuracy, validation data"


def test_calls_of_different_batch_sizes_compare_by_the_sequence():
    summary, outcomes = study(8)
    before = picture(summary, outcomes)
    summary["front"][0]["latency_ms"] |= {"batch": 8}
    shown = picture(summary, outcomes)
    assert min(mark.x_ms for mark in shown.front) == pytest.approx(min(mark.x_ms for mark in before.front) / 8)
    assert before.x_label.startswith("latency of one call")
    assert shown.x_label.startswith("latency of one sequence")


def test_what_goes_to_mlflow_beside_the_front_says_what_the_terminal_says(tmp_path):
    summary, outcomes = study(8)
    files = plots.drawings(summary, outcomes, tmp_path)
    assert files.keys() == {"front.html", "front.png", "compression.md", "batches.md"}
    for page in (files["front.html"], files["compression.md"]):
        assert "1.4× faster, smaller, but less accurate" in page
        assert "no gain: less accurate" in page
    for page in (files["front.html"], files["batches.md"]):
        assert "excluded: memory 8887 KiB is over the bound of 4096" in page
        assert "From a batch of 4 on, throughput grows by less than 10 %." in page
    bare = {**summary, "compression": [], "batch_curve": None}
    assert plots.drawings(bare, outcomes, tmp_path).keys() == {"front.html", "front.png"}


def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.plots", None)  # as where matplotlib cannot be imported
    with Study.start(tmp_path, "s", plan(tmp_path)) as kept:
        assert "experiments.plots" in publish(tmp_path, kept.history())


def test_the_frame_holds_front_and_baseline_whatever_the_others_did():
    summary, outcomes = study(24)
    low, high = y_range(picture(summary, outcomes))
    assert all(low < mark.y < high for mark in picture(summary).chief)
    bad = replace(outcome(1).quality, validation=0.0, error=1.0)
    assert y_range(picture(summary, [*outcomes, (50, replace(outcome(1), quality=bad))])) == (low, high)


def test_an_error_is_drawn_downwards_and_over_decades_on_a_log_axis(tmp_path):
    summary, _ = study(24)
    shown = picture(as_rmse(summary))
    assert shown.smaller_is_better
    assert shown.log_y
    assert y_range(shown)[0] > 0
    assert running_best(shown) == sorted(running_best(shown), reverse=True)
    assert not picture(summary).log_y
    plots.front_png(as_rmse(summary), tmp_path / "front.png")


@pytest.mark.parametrize(
    ("span", "expected"), [((0.015, 8.0), [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]), ((3.0, 4.0), []), ((0.9, 1.1), [1])]
)
def test_ticks_are_round(span, expected):
    assert ticks(span) == expected


def test_a_home_without_a_store_is_refused_in_words(tmp_path):
    with pytest.raises(StudyError, match="there is no study"):
        ui.serve(tmp_path, "digits")


def test_a_port_in_use_is_refused():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StudyError, match="cannot be used"):
            ui.free_port(taken.getsockname()[1])
    assert ui.free_port() > 0
