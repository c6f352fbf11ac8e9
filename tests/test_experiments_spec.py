from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.launch import limits_of
from experiments.spec import Spec, presets, read
from experiments.table import Place, duration_s
from objectives.outcome import Conditions
from search.budget import STAGES, Limits
from search.history import Plan
from spaces.errors import SpecError
from spaces.genotype import Architecture, Deployment, Training
from spaces.record import from_json, to_json
from spaces.space import Space

TWO = "[objectives]\nquality = {}\nlatency = {}\n"


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Reads a spec of the text given."""

    def read_text(text: str, *sets: str) -> Spec:
        (tmp_path / "mine.toml").write_text(text)
        return read(str(tmp_path / "mine.toml"), sets)

    return read_text


@pytest.mark.parametrize("name", ["digits", "digits-rows", "adding", "parity"])
def test_presets_are_specs_and_come_back_from_json(name: str) -> None:
    spec = read(name)
    assert spec.study.name == name
    assert spec.baseline is not None
    assert from_json(Spec, json.loads(json.dumps(to_json(spec)))) == spec
    assert from_json(Plan, to_json(spec.plan("home"))).differences(spec.plan("elsewhere")) == []


def test_the_presets_are_those_shipped() -> None:
    assert {"digits", "digits-rows", "adding", "parity"} <= set(presets())


def test_the_baseline_of_digits_is_what_people_export_today() -> None:
    genotype = read("digits").plan("home").baseline
    assert genotype is not None
    assert (genotype.architecture.cell, genotype.architecture.units) == ("lstm", 128)
    assert genotype.deployment == Deployment("keras", 1, "8", 1)


@pytest.mark.parametrize(
    ("file", "name"), [("my study", "my-study"), ("Größe", "Gr-e"), ("_x.1", "x.1"), ("-", "study")]
)
def test_a_study_is_named_after_its_file_whatever_that_is_called(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / f"{file}.toml").write_text(TWO)
    assert read(str(tmp_path / f"{file}.toml")).study.name == name


def test_everything_has_a_default_but_the_objectives(written: Any, tmp_path: Path) -> None:
    spec = written(TWO)
    assert spec.study.name == "mine"
    assert spec.space == Space()
    assert spec.objectives.names == ("quality", "latency")
    assert spec.objectives.bounds == {}
    assert spec.baseline is None
    assert spec.root == str(tmp_path)


def test_a_bench_is_what_the_spec_says(written: Any) -> None:
    spec = written(
        """
        [study]
        seed = 7
        [task]
        data = "digits-rows"
        [baseline]
        architecture = { cell = "gru", units = 64 }
        training = { learning_rate = 0.01 }
        deployment = { lowering = "loop", steps = 4 }
        teacher = true
        [objectives]
        quality = { max_error = 0.1 }
        latency = { device = "fake", scenario = "paced:10ms", threads = 2, max_ms = 0.5, timeout = "1m" }
        size = { max_kb = 50 }
        [training]
        distillation = [0, 0.5]
        """
    )
    bench = spec.bench("/home/me")
    assert bench.bounds == {"quality": 0.1, "latency": 0.5, "size": 50.0}
    assert (bench.device, bench.seed, bench.home) == ("fake", 7, "/home/me")
    assert bench.conditions == Conditions(scenario="paced:10ms", threads=2, timeout_s=60.0)
    assert bench.teacher is not None
    assert bench.teacher.architecture == Architecture("gru", 64)
    assert bench.teacher.training == Training(0.01)
    assert bench.teacher.deployment == Deployment("loop", 4)
    assert bench.training.distillation == (0.0, 0.5)


def test_a_cell_that_keras_lacks_is_served_by_its_own_lowering(written: Any) -> None:
    spec = written(TWO + '[baseline]\narchitecture = { cell = "mingru", units = 64 }')
    assert spec.baseline.genotype.deployment == Deployment("scan")


def test_lists_of_one_and_bits_may_be_written_plainly(written: Any) -> None:
    spec = written(TWO + '[space]\ncell = "gru"\nunits = 32\nbits = [32, 8, "rec8"]\nlearning_rate = 1\n')
    assert spec.space.cell == ("gru",)
    assert spec.space.units == (32,)
    assert spec.space.bits == ("32", "8", "rec8")
    assert spec.space.learning_rate == (1.0,)
    baseline = '[baseline]\narchitecture = { cell = "lstm", units = 8 }\ndeployment = { lowering = "loop", bits = 8 }\n'
    assert written(TWO + baseline).baseline.deployment == Deployment("loop", bits="8")


def test_the_head_is_narrowed_where_the_spec_says_so(written: Any) -> None:
    assert not written(TWO).bench("home").quantize_head
    assert written(TWO + "[space]\nquantize_head = true\n").bench("home").quantize_head


def test_set_overrides_and_adds(written: Any) -> None:
    spec = written(
        TWO + "[study]\ntrials = 5\n",
        "study.trials=9",
        "study.timeout=1h30m",
        "space.cell=gru",
        "space.bits=[32, 'rec8']",
        "objectives.size={ max_kb = 9 }",
        "objectives.latency.max_ms=0.25",
        "study.name = from-here",
    )
    assert (spec.study.trials, spec.study.timeout_s, spec.study.name) == (9, 5400.0, "from-here")
    assert (spec.space.cell, spec.space.bits) == (("gru",), ("32", "rec8"))
    assert spec.objectives.bounds == {"latency": 0.25, "size": 9.0}


def test_what_a_study_may_change_when_it_goes_on(written: Any) -> None:
    plan = written(TWO).plan("home")
    places = ("study.trials=9", "study.timeout=9s", "study.workers=2", "search.trial_timeout=9s")
    for item in (*places, "training.accelerator=cpu"):
        assert written(TWO, item).plan("other").key == plan.key
    for item in ("study.seed=1", "space.layers=2", "training.epochs=9", "objectives.size={}", "task.data=adding"):
        changed = written(TWO, item).plan("home")
        assert changed.key != plan.key
        assert len(plan.differences(changed)) >= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 99), st.sampled_from("smh"))
def test_durations(count: int, unit: str) -> None:
    seconds = count * {"s": 1, "m": 60, "h": 3600}[unit]
    assert duration_s(f"{count}{unit}", Place("f")) == seconds
    assert duration_s(f"1h{count}s", Place("f")) == 3600 + count


@pytest.mark.parametrize("wrong", ["", "20", 20, "20 m", "m", "1d", "0s", "-5s", True, "5s later"])
def test_what_is_no_duration(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r'f: study.timeout: got .*; give a duration such as "90s", "20m" or "1h30m"'):
        duration_s(wrong, Place("f", "study.timeout"))


BASELINE = '[baseline]\narchitecture = { cell = "lstm", units = 8 }\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # The search
        ("[training]\nrungs = [0.5, 0.2]\n" + TWO, r"training\.rungs: got \[0\.5, 0\.2\]; give rising shares"),
        ("[search]\nwithout = ['loook']\n" + TWO, r"search\.without: got 'loook'; did you mean 'look'"),
        ("[study]\nstop_when = 'settld'\n" + TWO, r"study\.stop_when: got 'settld'; give bounds as in"),
        (
            "[study]\nstop_when = 'drop<=0.1'\n" + TWO,
            r"study\.stop_when: .*a drop is against the baseline; give \[baseline\]",
        ),
        ("[study]\nstop_when = 'speedup >= 3'\n" + TWO, r"study\.stop_when: .*a speedup is against the baseline; give"),
        ("[study]\nstop_when = 'test>=0.9'\n" + TWO, r"study\.stop_when: .*read at the end, and once; bound accuracy"),
        ("[study]\nstop_when = 'rmse<=0.1'\n" + TWO, r"study\.stop_when: .*this study is judged by accuracy, not rmse"),
        (
            "[storage]\nmlflow = 'sqlite:///mlflow.db'\n" + TWO,
            r"storage\.mlflow: .*give the whole path, as in sqlite:////",
        ),
        ("[search]\nwarm_start = ['no.toml']\n" + TWO, r"search\.warm_start: .*no\.toml cannot be used"),
        ("[search]\nconfirm_seeds = 0\n" + TWO, r"search\.confirm_seeds: got 0; it must lie from 1"),
        # Names and types
        ("[study]\ntrails = 5\n" + TWO, r"study\.trails: there is no such key; did you mean 'trials'\?"),
        ("[studdy]\n" + TWO, r"studdy: there is no such key; did you mean 'study'\?"),
        ("[objectives]\nquality = {}\nlatncy = {}", r"objectives\.latncy: .* did you mean 'latency'\?"),
        ("[objectives]\nquality = {}\nlatency = { max_mss = 1 }", r"objectives\.latency\.max_mss: .* 'max_ms'\?"),
        ("[study]\ntrials = 'many'\n" + TWO, r"study\.trials: got 'many'; give a whole number"),
        ("[study]\ntrials = 1.5\n" + TWO, r"study\.trials: got 1\.5; give a whole number"),
        ("[study]\ntrials = true\n" + TWO, r"study\.trials: got True; give a whole number"),
        ("[study]\nname = 5\n" + TWO, r"study\.name: got 5; give text in quotes"),
        ("[space]\nlayers = [1, 'two']\n" + TWO, r"space\.layers: got \[1, 'two'\]; give a whole number"),
        ("[space]\nbidirectional = 'yes'\n" + TWO, r"space\.bidirectional: got 'yes'; give true or false"),
        ("[task]\nsplits = [0.5, 0.5]\n" + TWO, r"task\.splits: got \[0\.5, 0\.5\]; give more values"),
        ("study = 5\n" + TWO, r"study: got 5; it must be a table of keys"),
        ("[baseline]\nteacher = true\n" + TWO, r"baseline: names no model; give model = \"my_rnn\.keras\""),
        ("[baseline]\narchitecture = { cell = 'gru' }\n" + TWO, r"baseline\.architecture\.units: is missing"),
        ("[study]\ntrials = = 5", r"mine\.toml: is not TOML: .*line 2"),
        # Not yet
        ("[space]\nhypermodel = 'm'\n" + TWO, r"space\.hypermodel: got 'm'; give .module:build."),
        ("[space]\nhypermodel = 'm:f'\nunits = 8\n" + TWO, r"space\.units: got 8, but space\.hypermodel says what"),
        ("[space]\nhypermodel = 'm:f'\nlowering = 'scan'\n" + TWO, r"space\.lowering: got .* is served by loop or"),
        (
            BASELINE + "teacher = true\n[space]\nhypermodel = 'm:f'\n[training]\ndistillation = 0.5\n" + TWO,
            r"training\.distillation: got \[0\.5\], but m:f trains its models by itself; leave the key out",
        ),
        ("[objectives]\nquality = {}\nlatency = { batch = 8 }", r"latency\.batch: got 8; .* set space\.batch instead"),
        ("[space]\ncell = ['my.cells:Cell']\n" + TWO, r"space\.cell: got 'my\.cells:Cell'; cells of your own are not"),
        # Single values
        ("[study]\ntrials = 0\n" + TWO, r"study\.trials: got 0; it must lie from 1 to 100000"),
        ("[study]\nname = 'a b'\n" + TWO, r"study\.name: got 'a b'; use letters, digits"),
        ("[study]\ntimeout = 20\n" + TWO, r"study\.timeout: got 20; give a duration"),
        (
            "[search]\nstage_timeout = { trian = '2m' }\n" + TWO,
            r"search\.stage_timeout\.trian: there is no such stage; did you mean 'train'\?",
        ),
        (
            "[search]\nstage_timeout = '30s'\n" + TWO,
            r"search\.stage_timeout: got 30 s, but a measurement may take twice .*, 20 s; give it 40 s or more",
        ),
        (
            "[search]\nstage_timeout = { measure = '30s' }\n" + TWO,
            r"search\.stage_timeout\.measure: got 30 s, but a measurement may take twice",
        ),
        (
            "[search]\nstage_timeout = { lower = '2m' }\n"
            + TWO.replace("latency = {}", "latency = { timeout = '6m' }"),
            r"search\.stage_timeout\.untrained: got 600 s, but .*, 360 s; give it 720 s or more",
        ),
        (
            "[search]\nstage_timeout = { train = 120 }\n" + TWO,
            r"search\.stage_timeout\.train: got 120; give a duration",
        ),
        (
            "[search]\nmemory_limit_mb = { lower = 1 }\n" + TWO,
            r"search\.memory_limit_mb\.lower: got 1; it must lie",
        ),
        ("[search]\nmemory_limit_mb = 'much'\n" + TWO, r"search\.memory_limit_mb: got 'much'; give a whole number$"),
        (
            "[search]\nmemory_limit_mb = { train = '4000' }\n" + TWO,
            r"search\.memory_limit_mb\.train: got '4000'; give a whole number$",
        ),
        ("[task]\nkind = 'clasification'\n" + TWO, r"task\.kind: got 'clasification'; did you mean 'classification'\?"),
        ("[task]\nmetric = 'f1'\n" + TWO, r"task\.metric: got 'f1'; classification is judged by 'accuracy'"),
        ("[task]\nsplits = [0.6, 0.2, 0.3]\n" + TWO, r"task\.splits: got \[0\.6, 0\.2, 0\.3\]; give three shares"),
        ("[task]\ntargets = 'y.npy'\n" + TWO, r"task\.targets: got 'y\.npy', but data = 'digits-rows' holds its own"),
        (
            "[task]\nsamples = 50\n" + TWO,
            r"task\.samples: got 50; only adding, .* are generated",
        ),
        ("[training]\nclipnorm = nan\n" + TWO, r"training\.clipnorm: got nan; it must lie from"),
        ("[storage]\noptuna = 'postgresql://h/d'\n" + TWO, r"storage\.optuna: .* home's own SQLite file for now"),
        ("[storage]\nmlflow = 'study.db'\n" + TWO, r"storage\.mlflow: got 'study\.db'; give a URL"),
        ("[space]\nbits = [32, 'rec9']\n" + TWO, r"space\.bits: got 'rec9'; did you mean 'rec"),
        ("[space]\nunits = [64, 8]\n" + TWO, r"space\.units: got \[64, 8\], where low exceeds high"),
        (
            "[space]\nunits = [32, 64, 128]\n" + TWO,
            r"space\.units: got \[32, 64, 128\], whose third number is the step, and leaves 32 alone; .* a range, not",
        ),
        ("[space]\nquantize_head = [true]\n" + TWO, r"space\.quantize_head: got \[True\]; give true or false"),
        # What does not fit together
        (
            "[space]\ncell = 'lstm'\nlowering = 'keras'\nquantize_head = true\n" + TWO,
            r"space\.quantize_head: got true, but the stock converter",
        ),
        ("", r"objectives: got none; name two or more of quality, latency, size, memory"),
        ("[objectives]\nquality = {}", r"objectives: got quality; name two or more of"),
        (
            "[objectives]\nquality = {}\nlatency = { device = 'locl' }",
            r"latency\.device: got 'locl'; did you mean 'local'",
        ),
        (
            "[objectives]\nquality = {}\nlatency = { scenario = 'paced:fast' }",
            r"latency\.scenario: .*'paced:fast'.*10ms",
        ),
        ("[objectives]\nquality = {}\nlatency = { max_ms = 0 }", r"latency\.max_ms: got 0\.0; it must lie from 1e-06"),
        (
            "[objectives]\nquality = {}\nlatency = { min_processes = 9 }",
            r"min_processes: got 9, more than max_processes",
        ),
        (
            "[task]\nkind = 'tagging'\n[space]\nframe_stack = 4\n" + TWO,
            r"space\.frame_stack: got \[4\]; tagging answers",
        ),
        (BASELINE + "deployment = { bits = 'rec9' }\n" + TWO, r"baseline\.deployment\.bits: got 'rec9'; did you mean"),
        (
            BASELINE + "deployment = { lowering = 'scan' }\n" + TWO,
            r"baseline\.deployment\.lowering: .* loop or keras only",
        ),
        (
            BASELINE + "training = { distillation = 0.5 }\n" + TWO,
            r"baseline\.training\.distillation: .* has no teacher",
        ),
        (BASELINE + "training = { hints = 0.5 }\n" + TWO, r"baseline\.training\.hints: the baseline has no teacher"),
        (
            "[baseline]\narchitecture = { cell = 'lsm', units = 8 }\n" + TWO,
            r"architecture\.cell: got 'lsm'; did you .* 'lstm'",
        ),
        ("[training]\ndistillation = [0, 1.5]\n" + TWO, r"training\.distillation: got \[0\.0, 1\.5\]; name shares of"),
        (
            "[training]\ndistillation = 0.5\n" + TWO,
            r"training\.distillation: .* nothing teaches; set baseline\.teacher = true",
        ),
        (BASELINE + "[training]\ndistillation = 0.5\n" + TWO, r"training\.distillation: .* nothing teaches"),
        ("[training]\nhints = [0, -1]\n" + TWO, r"training\.hints: got \[0\.0, -1\.0\]; name weights of the hint"),
        ("[training]\nhints = 0.1\n" + TWO, r"training\.hints: got \[0\.1\], but hints come from a teacher; set"),
        ("[training]\nteacher = 'ensembel'\n" + TWO, r"training\.teacher: got 'ensembel'; did you mean 'ensemble'\?"),
        ("[training]\nteacher = 'ensemble'\n" + TWO, r"training\.teacher: .* nothing is distilled; set training\.dist"),
        (
            "[training]\nteacher = 'ensemble'\ndistillation = 0.5\n" + TWO,
            r"training\.distillation: got \[0\.5\], but an ensemble is chosen among .* add 0 to the list",
        ),
        ("[training]\naccelerator = 'gpus'\n" + TWO, r"training\.accelerator: got 'gpus'; did you mean 'gpu'\?"),
        ("[training]\nensemble = 0\n" + TWO, r"training\.ensemble: got 0; it must lie from 1 to 32"),
        (
            "[task]\nunlabelled = 'more.npz'\n" + TWO,
            r"task\.unlabelled: got 'more\.npz', but unlabelled data teach nothing without a teacher; set training",
        ),
    ],
)
def test_every_error_says_file_key_value_and_remedy(written: Any, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        written(text)
    assert "mine.toml: " in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("model = 'none.keras'", r"mine\.toml: baseline\.model: got 'none\.keras'; there is no such file in .*\.h5"),
        (
            "model = 'data.npz'",
            r"baseline\.model: got 'data\.npz'; a model is a \.keras, \.h5, \.hdf5 file or a SavedM",
        ),
        ("model = 'folder'", r"baseline\.model: got 'folder', a folder without saved_model\.pb"),
        (
            "model = 'm.h5'\narchitecture = { cell = 'gru', units = 8 }",
            r"architecture: .* trained already; give only one",
        ),
        ("model = 'm.h5'\ntraining = { learning_rate = 0.1 }", r"baseline\.training: stands beside model = 'm\.h5'"),
        ("model = 'm.h5'\ndeployment = { bits = 8 }", r"baseline\.deployment: stands beside model = 'm\.h5'"),
        ("teacher = true", r"baseline: names no model; give model = "),
        (
            "architecture = { cell = 'gru', units = 8 }\nunsafe = true",
            r"baseline\.unsafe: got True, but it is for opening",
        ),
        (
            "architecture = { cell = 'gru', units = 8 }\ncustom = 'a:B'",
            r"baseline\.custom: got \['a:B'\], but it is for",
        ),
    ],
)
def test_a_model_file_that_cannot_be_the_baseline(tmp_path: Path, written: Any, table: str, words: str) -> None:
    (tmp_path / "m.h5").write_bytes(b"")
    (tmp_path / "data.npz").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match=words):
        written(f"[baseline]\n{table}\n" + TWO)


def test_a_baseline_that_teaches_teaches_unless_it_is_told_how(written: Any) -> None:
    taught = BASELINE + "teacher = true\n" + TWO
    assert written(taught).training.distillation == (0.0, 0.5)
    assert written(taught + "[training]\ndistillation = [0.0]\n").training.distillation == (0.0,)
    assert written(taught, "training.distillation=[0.3]").training.distillation == (0.3,)
    assert written(BASELINE + TWO).training.distillation == (0.0,)


def test_what_is_no_spec_at_all_is_told_what_there_is_for_it(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for name in ("m.keras", "m.h5", "saved"):
        with pytest.raises(SpecError, match=rf"{name}: is no spec, .*`brisk rewrite .*{name} --out DIR`"):
            read(str(tmp_path / name))


def test_a_model_file_becomes_the_baseline_by_its_contents(tmp_path: Path, written: Any) -> None:
    (tmp_path / "m.h5").write_bytes(b"1")
    text = "[baseline]\nmodel = 'm.h5'\nteacher = true\n" + TWO
    plan = written(text).plan("home")
    assert plan.baseline.architecture.model == "m.h5"
    assert plan.bench.teacher == plan.baseline
    (tmp_path / "m.h5").write_bytes(b"2")
    (difference,) = plan.differences(written(text).plan("home"))
    assert difference.startswith("bench.model.sha256 was")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "m.h5").rename(tmp_path / "elsewhere" / "m.h5")
    moved = written(text.replace("'m.h5'", "'elsewhere/m.h5'")).plan("home")
    assert plan.differences(moved) == [difference]  # where it lies does not count


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("study.trials", "--set: got 'study.trials'; write table.key=value, for instance study.trials=20"),
        ("trials=5", "--set: got 'trials=5'; write table.key=value"),
        ("study..trials=5", "--set: got 'study..trials=5'; write"),
        ("study.trials.more=5", "but trials is a value and no table; set it as a whole"),
        ("study.trials=many", "--set: study.trials: got 'many'; give a whole number"),
        ("study.trals=5", r"--set: study.trals: there is no such key; did you mean 'trials'\?"),
        ("space.bits=rec9", "--set: space.bits: got 'rec9'"),
    ],
)
def test_an_override_that_is_wrong_is_told_as_such(written: Any, item: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        written("[study]\ntrials = 5\n" + TWO, item)


def test_limits_hold_for_all_stages_or_for_those_named(tmp_path: Path) -> None:
    """Training has a trial's time, unless it is named."""

    def limits(search: str) -> Limits:
        path = tmp_path / "s.toml"
        path.write_text(f"[search]\n{search}\n{TWO}")
        return limits_of(read(str(path)), trials=None, timeout=None, workers=None)

    plain, named = limits('stage_timeout = "2m"\nmemory_limit_mb = 3000'), limits('stage_timeout = { train = "90s" }')
    assert set(plain.stage_timeouts) == set(STAGES) - {"train"}
    assert set(plain.stage_timeouts.values()) == {120.0}
    assert (plain.memory_limit_bytes, plain.stage_memory_bytes) == (3000 * 2**20, {})
    assert named.stage_timeouts == {**dict.fromkeys(STAGES, 600.0), "train": 90.0}
    assert named.memory_limit_bytes is None
    one = limits("memory_limit_mb = { train = 4000 }")
    assert (one.memory_limit_bytes, one.stage_memory_bytes) == (None, {"train": 4000 * 2**20})


def test_a_duration_of_the_command_line_is_told_by_its_option() -> None:
    with pytest.raises(SpecError, match=r"^--timeout: got 'soon'; give a duration"):
        duration_s("soon", Place("--timeout"))


def test_a_spec_that_is_nowhere() -> None:
    with pytest.raises(SpecError, match=r"digit: there is no such file and no such preset; did you mean 'digits'\?"):
        read("digit")
