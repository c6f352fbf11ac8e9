import io
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rehearsed import plan
from rich.console import Console
from sample_study import STOCK, outcome, study

from experiments import report
from experiments.cli import main
from experiments.launch import _shipping, allowed, launch, most_useful
from experiments.progress import Progress, told_line
from experiments.spec import LatencyBound, Objectives
from search.budget import Limits
from search.drive import drive
from search.ledger import title
from search.study import Study
from spaces.errors import SpecError
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import to_json


def written(summary, width=120, **kinds):
    out = io.StringIO()
    report.write(summary, Console(file=out, width=width, highlight=False, **kinds))
    return out.getvalue()


@pytest.mark.parametrize("width", [56, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_window_and_no_figure_is_cut(width):
    summary, _ = study(24)
    lines = written(summary, width).splitlines()
    assert max(map(len, lines)) <= max(width, 66)
    text = "\n".join(lines)
    assert "…" not in text
    for point in summary["front"]:
        assert report.latency(point["latency_ms"]) in text
        assert report.quality(point["quality"]) in text
    assert "brisk export digits --pick knee --to tflite --out DIR" in text


def test_the_baseline_comes_first_and_names_its_exporter_then_the_fastest():
    summary, _ = study(24)
    lines = written({**summary, "front": summary["front"][::-1]}).splitlines()
    assert STOCK in lines[0]
    head = next(index for index, line in enumerate(lines) if line.lstrip().startswith("trial"))
    assert lines[head + 1].split()[0] == "base"
    trials = [int(line.split()[0]) for line in lines[head + 2 : head + 2 + len(summary["front"])]]
    assert trials == [point["trial"] for point in summary["front"]]


def test_a_stream_that_is_no_terminal_gets_no_control_codes_and_one_without_utf8_gets_ascii(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    summary, _ = study(24)
    for encoding in ("utf-8", "ascii", "latin-1"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        report.write(summary, report.console(stream))
        stream.flush()
        text = raw.getvalue().decode(encoding)
        assert "\x1b" not in text
        assert text.isascii() == (encoding != "utf-8")


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", written(study(24)[0], force_terminal=True))


def test_a_study_with_nothing_to_show_says_what_to_do():
    summary, _ = study(1, baseline=False)
    summary["counts"]["infeasible"] = 1
    assert "loosen a bound" in written(summary)
    summary["counts"]["running"] = 1
    assert "loosen" not in written(summary)


def test_a_study_that_has_told_nothing_yet_is_not_advised_to_loosen_bounds():
    summary, _ = study(1, baseline=False)
    assert "loosen" not in written({**summary, "counts": dict.fromkeys(summary["counts"], 0)})


def test_what_was_left_at_work_is_not_said_to_run():
    summary, _ = study(24)
    summary["counts"]["running"] = 2
    assert "No process drives it now" in written({**summary, "driven": False})
    assert "No process drives it now" not in written({**summary, "driven": True})
    assert "No process drives it now" not in written(summary)  # the driver's own report


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [("200000 100000", "1000", (2, 900)), ("50000 100000", "max", (1, None)), ("max 100000", "1000", (None, 900))],
)
def test_a_container_leaves_less_than_the_machine_has(tmp_path, cpu, memory, expected):
    group = tmp_path / "fs" / "inner"
    group.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/inner\n")
    machine = allowed(tmp_path / "none", tmp_path / "none")
    for folder, name, text in (
        (tmp_path / "fs", "cpu.max", cpu),
        (tmp_path / "fs", "memory.max", memory),
        (tmp_path / "fs", "memory.current", "400"),
        (tmp_path / "fs", "memory.stat", "anon 100\ninactive_file 200\nactive_file 100"),  # given back when needed
        (group, "memory.max", "max"),
    ):
        (folder / name).write_text(f"{text}\n")
    cores, free = allowed(tmp_path / "fs", tmp_path / "self")
    assert cores == min(machine[0], expected[0] or machine[0])
    assert free == expected[1] or (expected[1] is None and free > 2**20)


def test_a_rehearsal_says_so_and_leads_nowhere():
    summary, _ = study(24)
    text = written({**summary, "rehearsal": True})
    assert text.startswith("REHEARSAL: invented figures\n")
    assert "brisk ui" not in text
    assert "brisk export" not in text
    out = io.StringIO()
    report.write_point({**summary, "rehearsal": True}, summary["front"][0], Console(file=out, width=120))
    assert out.getvalue().startswith("REHEARSAL: invented figures\n")


def test_a_study_that_ended_early_says_why():
    summary, _ = study(24)
    assert "its time was up" in written({**summary, "ended": "timeout"})
    assert "not tried yet" in written({**summary, "ended": "exhausted"})
    assert "what stop_when asks for" in written({**summary, "ended": "target"})
    assert "hypervolume has settled" in written({**summary, "ended": "settled"})
    assert "measured again, none does" in " ".join(written({**summary, "ended": "missed"}).split())
    assert "It was interrupted" in written({**summary, "ended": "interrupted"})
    assert "It ended" not in written({**summary, "ended": "trials"})


def test_of_points_that_tie_one_is_shown_and_how_many_it_stands_for():
    summary, _ = study(24)
    first, second, third, *others = summary["front"]
    tied = [first, {**second, "tie_of": first["trial"]}, {**third, "tie_of": first["trial"]}, *others]
    lines = written({**summary, "front": tied, "batch_curve": None}).splitlines()
    row = next(line for line in lines if line.lstrip().startswith(f"{first['trial']} "))
    assert "+2 ties" in row
    beaten = [{**first, "ties": [second["trial"], 10**6]}, *tied[1:]]
    assert "+3 ties" in written({**summary, "front": beaten, "batch_curve": None})
    assert not any(line.lstrip().startswith(f"{second['trial']} ") for line in lines)
    assert any(line.startswith("+ as many points") for line in lines)
    assert "+ as many" not in written(summary)
    out = io.StringIO()
    report.write_point({**summary, "front": tied}, tied[1], Console(file=out, width=120))
    assert f"\n{second['trial']:>5} " in out.getvalue()  # a point that was asked for is always shown
    report.write_point({**summary, "front": tied}, beaten[0], Console(file=out, width=120))
    assert " ties" not in out.getvalue()


def test_a_validation_figure_has_its_standard_error_where_that_is_known():
    found = {"validation": 0.95, "stderr": 0.0123, "test": None, "test_stderr": None}
    assert report.quality(found) == "0.950±0.012"
    assert report.quality({**found, "stderr": None}) == "0.950"
    assert report.quality({**found, "test": 0.94, "test_stderr": 0.02}) == "0.940±0.020"


def test_what_was_not_measured_again_is_marked_and_said():
    summary, _ = study(24)
    note = "measured again at the end, it was over the bound"
    first, *others = ({**point, "final": True} for point in summary["front"])
    text = written({**summary, "final": True, "front": [{**first, "final": False, "notes": [note]}, *others]})
    assert f"^{report.latency(first['latency_ms'])}" in text
    assert f"^ of the search: {note}" in text
    out = io.StringIO()
    report.write_point(
        {**summary, "final": True}, {**first, "final": False, "notes": [note]}, Console(file=out, width=120)
    )
    assert f"^ of the search: {note}" in out.getvalue()
    assert "^" not in written({**summary, "final": True, "front": [first, *others]})
    assert "^" not in written(summary)


def test_what_other_seeds_came_to_is_said():
    summary, _ = study(24)
    first, *others = summary["front"]
    lucky = {**first, "seeds": {"validation": [0.975, 0.968, 0.971], "mean": 0.9695, "std": 0.003}}
    words = f"Trial {first['trial']} from other seeds: validation accuracy 0.968, 0.971; 0.975 in the search"
    assert words in written({**summary, "front": [lucky, *others]})
    form = {**lucky, "trial": 999}
    assert written({**summary, "front": [lucky, form, *others]}).count("other seeds") == 1  # of each trained model
    assert "other seeds" not in written(summary)


def check(name, verdict, text=""):
    return {"check": name, "verdict": verdict, "text": text}


@pytest.mark.parametrize("width", [80, 120])
def test_health_is_a_few_lines_and_the_advice_follows(width):
    summary, _ = study(24)
    bad = [check("ends", "bad", f"3 of 4 front models have gene{n} at the upper end 64: widen it") for n in range(8)]
    good = [check(f"predictable {name}", "good") for name in ("quality", "latency", "size")]
    checks = [*good, check("bounds", "good"), *bad, check("settled", "unknown")]
    advice = {"verdict": "worth going on", "text": "it is too early to tell"}
    lines = written({**summary, "health": checks, "advice": advice}, width).splitlines()
    block = [line.rstrip() for line in lines[lines.index("Health") + 1 :]]
    assert block[0] == "bad      3 of 4 front models have gene0 at the upper end 64: widen it"
    assert block[5:9] == [
        "bad      3 more: see --json",
        "good     predictable quality, latency, size; bounds",
        "unknown  settled",
        "Advice: worth going on, for it is too early to tell",
    ]
    assert "Health" not in written(summary)


def test_what_was_spared_is_told_where_it_was():
    summary, _ = study(24)
    economy = {"models": 9, "stopped_models": 3, "epochs_spared": 1.7, "known_crashes": 2, "foretold": 0}
    economy["latency_model"] = {"error": 0.083, "used": True, "outcomes": 1200, "constants": {}}
    text = written({**summary, "economy": economy})
    assert "Spared: 3 trainings stopped early (1.7 whole ones), 2 known to crash\n" in text
    assert "Latency foretold from 1,200 candidates: 9 of 10 within 8%\n" in text
    economy["latency_model"] |= {"error": 0.7, "used": False}
    assert "9 of 10 within 70%, which is too far to skip any\n" in written({**summary, "economy": economy})
    assert "Spared" not in written({**summary, "economy": {"stopped_models": 0, "latency_model": None}})


def test_idle_time_is_told():
    summary, _ = study(24)
    assert "neither 9%; workers idle 12%\n" in written(
        {**summary, "seconds": {**summary["seconds"], "idle_share": 0.12}}
    )


def test_how_fast_it_trained_is_one_line():
    summary, _ = study(24)
    assert "Trained on 1,234,567 sequences, 4,210 a second in each worker" in written(summary)
    assert "Trained on" not in written({**summary, "training": {"sequences": 0}})


def test_failures_of_a_kind_are_told_once():
    failures = [{"trial": n, "stage": "lower", "reason": "signal\n11"} for n in range(12)]
    failures.append({"trial": 99, "stage": "train", "reason": "out of memory"})
    first, second = report.failure_lines(failures)
    assert first == "12 failed at lower: signal 11 (trials 0, 1, 2, 3, 4, 5, 6, 7…)"
    assert second == "1 failed at train: out of memory (trial 99)"


def bits_of(asked, realised):
    return report.bits({"genotype": {"deployment": {"bits": asked}}, "artifact": {"realised_bits": realised}})


def test_a_bit_width_that_became_another_says_so():
    assert bits_of("8", {"input": 8, "recurrent": 8, "head": 32}) == "8"
    assert bits_of("8", {"input": 32, "recurrent": 32, "head": 32}) == "8→32"
    assert bits_of("rec4", {"input": 8, "recurrent": 8, "head": 32}) == "rec4→rec 8"
    assert bits_of("rec8", {"input": 32, "recurrent": 8}) == "rec8"
    assert bits_of("mine", {"input": 3}) == "mine"


def test_a_figure_that_did_not_converge_or_is_not_trusted_is_marked():
    measured = {"median": 0.2, "ci": [0.19, 0.22], "converged": True}
    assert report.latency(measured) == "0.200 ±10.0%"
    assert report.latency({**measured, "converged": False}).startswith("~")
    summary, _ = study(4)
    summary["front"][0]["latency_ms"] |= {"trusted": False, "why": "the clock is coarse"}
    assert "! not to be relied on: the clock is coarse" in written(summary)


@given(st.floats(1e-4, 1e5))
def test_numbers_keep_three_digits_and_have_no_exponent(value):
    text = report.number(value)
    assert "e" not in text
    if value >= 0.01:
        assert float(text) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.7, "1 min 00 s"), (231, "3 min 51 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


# A running study ------------------------------------------------------------------------------------------------------


def events(trials=6):
    """What `search.drive` tells of a study with one lane."""
    _, outcomes = study(trials)
    for number, found in outcomes:
        place = {"lane": 0, "trials": [number], "trial": number}
        yield {"event": "group", "genotypes": [to_json(found.genotype)], **place}
        yield {"event": "stage", "stage": "train", "form": None, "detail": "", **place}
        yield {"event": "epoch", "epoch": 3, "of": 30, "loss": 0.25, **place}
        yield {"event": "told", "form": 0, "outcome": to_json(found), "counts": {}, **place}
    yield {"event": "warning", "text": "the test figures are missing"}


def test_without_a_terminal_there_is_one_line_for_each_outcome():
    out = io.StringIO()
    with Progress(stream=out, trials=6) as progress:
        for event in events():
            progress(event)
    lines = out.getvalue().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("[0/6] baseline complete: lstm 128")
    assert lines[5] == "[5/6] trial 5 failed: gru 96 fs2 · rec8 · loop/4 at lower: the converter ended with signal 11"
    assert lines[6] == "warning: the test figures are missing"


@pytest.mark.parametrize("width", [20, 80, 120])
def test_the_display_shows_what_runs_what_is_done_and_the_best(width):
    out = io.StringIO()
    progress = Progress(True, stream=io.StringIO(), trials=20, timeout_s=600)
    for event in events():
        progress(event)
    progress._started -= 100
    screen = Console(file=out, width=width)
    screen.print(progress._render())
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    if width >= 80:
        assert "train" in text
        assert "epoch 3/30" in text
        assert "trials 5/20: 4 complete, 1 failed" in text
        assert "latency 0.0279 ms" in text
        assert "left" in text


def test_a_worker_with_nothing_to_do_shows_nothing_of_what_it_did():
    progress = Progress(True, stream=io.StringIO())
    for event in events():
        progress(event)
    for lane in [*progress._workers]:
        progress({"event": "idle", "lane": lane})
    out = io.StringIO()
    Console(file=out, width=80).print(progress._render())
    assert "idle" in out.getvalue()
    assert "train" not in out.getvalue()


@pytest.mark.parametrize(("timeout_s", "left"), [(160, True), (60, False)])
def test_no_time_is_said_to_be_left_where_none_is(timeout_s, left):
    """Twins, repeats and the front's last sitting come after it."""
    progress = Progress(True, stream=io.StringIO(), timeout_s=timeout_s)
    progress._started -= 100
    out = io.StringIO()
    Console(file=out, width=120).print(progress._render())
    assert ("left" in out.getvalue()) is left


def test_a_study_that_goes_on_shows_what_it_holds():
    before = [found for number, found in study(6)[1] if number != "baseline"]
    progress = Progress(True, stream=io.StringIO(), trials=20, before=before)
    out = io.StringIO()
    Console(file=out, width=120).print(progress._render())
    assert "trials 5/20: 4 complete, 1 failed" in out.getvalue()
    assert "latency 0.0279 ms" in out.getvalue()


def test_more_threads_than_a_worker_has_cores_are_refused_before_anything_is_run(tmp_path):
    with pytest.raises(SpecError, match=r"objectives\.latency\.threads: got 200, but 2 workers"):
        launch("digits", ("objectives.latency.threads=200",), home=tmp_path / "home", workers=2)


@pytest.mark.parametrize(
    ("latency", "cores", "gib", "workers"),
    [
        (LatencyBound(), 4, 64, 4),
        (LatencyBound(threads=2), 4, 64, 2),
        (LatencyBound(threads=4), 2, 64, 1),
        (LatencyBound(threads=4, device="mine:Board"), 4, 64, 4),
        (None, 4, 5, 2),
        (None, 4, 1, 1),
        (None, 64, 512, 8),
    ],
)
def test_there_is_a_worker_for_each_core_that_can_have_one(latency, cores, gib, workers):
    assert most_useful(Objectives(latency=latency), cores, gib * 2**30) == workers


class Gone(io.StringIO):
    """A terminal whose reader went away."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        raise BrokenPipeError


def counted(progress):
    """What the display says is done."""
    out = io.StringIO()
    Console(file=out, width=120).print(progress._render())
    return next(line for line in out.getvalue().splitlines() if "trials" in line).split("·")[0].strip()


@pytest.mark.parametrize("tty", [True, False])
def test_a_reader_that_went_away_does_not_stop_the_study(tty):
    seen = []
    for stream in (Gone(), io.StringIO()):
        with Progress(tty, stream=stream, trials=3) as progress:
            for event in events(3):
                progress(event)
        seen.append(counted(progress))
    assert seen[0] == seen[1]
    assert "2 complete" in seen[0]


def test_a_closed_stream_and_odd_events_do_not_stop_the_study():
    out = io.StringIO()
    progress = Progress(False, stream=out, trials=3)
    out.close()
    progress({"event": "something new"})
    progress({})
    progress.told(1, outcome(1))
    assert "1 complete" in counted(progress)


def test_a_reason_of_many_lines_stays_on_one():
    assert "\n" not in told_line(5, outcome(5, state="failed"))


def test_a_command_that_keeps_nothing_does_not_say_that_it_does(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.doctor.doctor", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "brisk: interrupted"


def test_what_ends_a_run_at_once_does_not_wait_for_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.launch.sink", lambda *_: lambda: time.sleep(60))  # a server that never answers
    with Study.start(tmp_path, "s", plan(tmp_path)) as kept:
        drive(kept, Limits(trials=4))
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), _shipping(kept, tmp_path):
            raise KeyboardInterrupt
    assert time.monotonic() - began < 10


def test_models_that_differ_have_names_that_do():
    plain = Genotype(Architecture("gru", 32, layers=2), Training(), Deployment())
    others = [
        replace(plain, architecture=replace(plain.architecture, **{key: value}))
        for key, value in {"rank": 8, "residual": True, "brick": 8, "embedding": 16, "dropout": 0.1}.items()
    ]
    others.append(replace(plain, training=Training(sparsity=0.8, block=4, distillation=0.5, hints=0.1)))
    said = [title(to_json(one)) for one in (plain, *others)]
    assert said == [
        "gru 32 x2",
        "gru 32 x2 r8",
        "gru 32 x2 residual",
        "gru 32 x2 brick8",
        "gru 32 x2 emb16",
        "gru 32 x2 do0.1",
        "gru 32 x2 sp80%x4 kd0.5 hint0.1",
    ]
