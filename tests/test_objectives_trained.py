from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rehearsed import BASELINE, bench

from objectives import evaluate, trained
from objectives.bench import TaskSpec, TrainingSpec
from objectives.cache import Cache
from objectives.data import load
from objectives.latency.devices.fake import Fake
from objectives.outcome import Measurement
from objectives.rehearsal import invented
from objectives.training.rungs import Stopped
from spaces.genotype import Architecture, Deployment, Genotype, Training
from spaces.record import to_json
from spaces.signature import Signature


def test_another_version_of_what_trains_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data: Any = SimpleNamespace(digest="d")
    before = trained.training_key(bench(tmp_path), data, BASELINE, ())
    assert trained.training_key(replace(bench(tmp_path), device="fake"), data, BASELINE, ()) == before
    monkeypatch.setattr(trained, "version", lambda name: "99" if name == "tf-keras" else "1")
    assert trained.training_key(bench(tmp_path), data, BASELINE, ()) != before


def test_a_kept_figure_of_another_form_counts_as_absent(tmp_path: Path) -> None:
    group: Any = SimpleNamespace(cache=Cache(tmp_path))
    figure = invented(bench(tmp_path), BASELINE).measurement
    assert figure
    group.cache.keep_record("measured", "good", to_json(figure))
    group.cache.keep_record("measured", "old", {**to_json(figure), "median_ms": {"of": "an older brisk"}})
    assert evaluate._kept(group, "good") == figure
    assert evaluate._kept(group, "old") is None
    assert evaluate._kept(group, "none") is None


class Telling(Fake):
    def measure(self, models: Any, conditions: Any, *, cores: Any = None, emit: Any = None) -> Any:
        emit({"event": "stage", "stage": "measure", "form": None, "detail": "waiting"})
        return super().measure(models, conditions)


def test_a_sitting_tells_of_itself_under_its_own_stage(tmp_path: Path) -> None:
    sha256 = Cache(tmp_path).keep_artifact(b"x" * 100)
    heard: list[dict[str, Any]] = []
    group: Any = SimpleNamespace(
        bench=bench(tmp_path, device=f"{__name__}:Telling"),
        cache=Cache(tmp_path),
        looks={},
        known={0: {"artifact": SimpleNamespace(sha256=sha256)}},
        emit=heard.append,
    )
    conditions = group.bench.conditions
    assert isinstance(evaluate._sitting(group, [0], "untrained", conditions)[0], Measurement)
    assert {event["stage"] for event in heard} == {"untrained"}
    assert [event["detail"] for event in heard] == ["waiting", "measured"]
    assert not any(event.get("quiet") for event in heard)
    for threads, look_ms in ((2, 0.1), (1, 5.0)):  # others stand still for several threads, and for what is long
        heard.clear()
        group.looks = {1: SimpleNamespace(median_ms=look_ms)}
        evaluate._sitting(group, [0], "measure", replace(conditions, threads=threads, timeout_s=look_ms))
        assert [event.get("quiet") for event in heard] == [True, None]
    assert group.cache.record("reference", Fake().fingerprint(conditions))


def test_the_first_record_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.first_record("reference", "k", {"reference_ms": 1.0}) == {"reference_ms": 1.0}
    assert Cache(tmp_path).first_record("reference", "k", {"reference_ms": 2.0}) == {"reference_ms": 1.0}


def test_a_student_of_two_learns_from_their_mean_and_their_states_on_rows_without_labels_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(30, 3, 2)).astype(np.float32), y=np.arange(30) % 3)
    np.savez(tmp_path / "more.npz", x=rng.normal(size=(9, 3, 2)).astype(np.float32))
    task = TaskSpec(data="d.npz", unlabelled="more.npz")
    data = load(task, seed=0, root=str(tmp_path))
    teachers = tuple(Genotype(Architecture("simple_rnn", units), Training(0.01), Deployment()) for units in (3, 4))
    training = TrainingSpec(epochs=1, distillation=(0.0, 0.5), hints=(0.0, 1.0), teacher="ensemble", ensemble=2)
    where = bench(tmp_path, task=task, training=training, ensemble=teachers)
    lesson = trained._lesson(where, data, where.teachers, lambda event: None)
    probabilities = []
    for teacher in teachers:
        one = trained.Trained(where, data, teacher)
        assert one.recall()  # trained once, for the lesson
        probabilities.append(one.answer(np.concatenate([data.train.x, np.load(tmp_path / "more.npz")["x"]])))
    np.testing.assert_allclose(np.exp(lesson.logits), np.mean(probabilities, axis=0), rtol=1e-4)
    assert lesson.hidden is not None
    assert lesson.hidden.shape == (len(data.train.x) + 9, 7)
    shapes = {"layer1": [(2, 2), (2, 2), (2,)], "head": [(2, 3), (3,)]}
    losses = set()
    for hints in (0.0, 1.0):
        student = Genotype(Architecture("simple_rnn", 2), Training(0.01, 0.5, hints=hints), Deployment())
        weights, history = trained.trained(where, data, student, lambda event: None)
        assert {name: [each.shape for each in arrays] for name, arrays in weights.items()} == shapes
        losses.add(history["loss"])
        assert history["notes"] == ["learnt from the mean of simple_rnn 3, simple_rnn 4"]
    assert len(losses) == 2


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_stages_of_training_go_on_from_each_other_and_are_shared(tmp_path: Path) -> None:
    spec = TrainingSpec(epochs=2, batch_size=64)
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=spec)
    data, kept = load(where.task, seed=where.seed, root=""), Cache(tmp_path).folder / "trained"
    plain = Genotype(Architecture("simple_rnn", 8), Training(1e-2), Deployment("loop"))
    cut = replace(plain, training=replace(plain.training, pruned_units=0.5))
    narrow = replace(cut, training=replace(cut.training, qat="rec4"))
    model = trained.Trained(where, data, narrow)
    model.start()
    assert model.weights["layer1"][1].shape == (4, 4)  # as it will be, for latency depends on it
    model.train(lambda event: None)
    assert len(list(kept.glob("*.npz"))) == 3
    assert model.weights["layer1"][1].shape == (4, 4)
    assert model.answer(data.test.x[:3]).shape == (3, 10)
    assert trained.Trained(where, data, plain).recall()
    assert trained.Trained(where, data, cut).recall()
    headed = replace(where, quantize_head=True)
    assert not trained.Trained(headed, data, narrow).recall()  # its head must be trained for narrow weights too
    assert trained.Trained(headed, data, cut).recall()


def test_what_is_stopped_is_taken_up_from_the_cache_and_what_follows_knows_its_rungs(tmp_path: Path) -> None:
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=TrainingSpec(epochs=10, batch_size=64))
    data, begun = load(where.task, seed=where.seed, root=""), Cache(tmp_path).folder / "begun"
    plain = Genotype(Architecture("simple_rnn", 8), Training(1e-2), Deployment("loop"))
    narrow = replace(plain, training=replace(plain.training, qat="8"))
    epochs: list[int] = []

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            epochs.append(event["epoch"])

    with pytest.raises(Stopped, match="behind") as stopped:
        trained.trained(where, data, narrow, emit, lambda rung, *_: "behind others" if rung == 1 else "")
    assert epochs == [1, 2, 3, 4, 5]
    assert len(list(begun.glob("*.npz"))) == 1
    asked: list[int] = []
    _, history = trained.trained(where, data, narrow, emit, lambda rung, *_: asked.append(rung) or "")
    assert epochs[5:] == [6, 7, 8, 9, 10, 1, 2, 3]  # then those on rounded weights, of which nobody asks
    assert asked == [1]
    assert tuple(history["learned"]) == stopped.value.learned
    assert not list(begun.glob("*.npz"))


def test_two_studies_of_a_home_share_every_stage(tmp_path: Path) -> None:
    data_of = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=TrainingSpec(epochs=2), device="fake")
    first = replace(data_of, training=replace(data_of.training, rungs=(0.5,)))
    forms = [Genotype(Architecture("mingru", 8), Training(1e-2), Deployment("loop", 4, bits)) for bits in ("32", "8")]
    found = []
    for where in (first, replace(data_of, bounds={"latency": 1e3}), replace(data_of, quantize_head=True)):
        heard: list[dict[str, Any]] = []
        evaluate.evaluate(to_json(where), [to_json(form) for form in forms], heard.append, lambda question: "")
        stages = {(event["stage"], event.get("detail", "")) for event in heard if event["event"] == "stage"}
        epochs = sum(event["event"] == "epoch" for event in heard)
        outcomes = [event["outcome"] for event in heard if event["event"] == "outcome"]
        assert [outcome["state"] for outcome in outcomes] == ["complete", "complete"]
        figures = [(one["artifact"], one["quality"], one["learned"]) for one in outcomes]
        found.append((epochs, ("lower", "trained") in stages, ("quality", "") in stages, figures))
    (*whole, known), (*again, same), (*headed, _) = found
    assert whole == [2, True, True]
    assert again == [0, False, False]
    assert same == known
    assert headed == [0, True, True]  # its files are others
    for artifact in (tmp_path / "cache" / "artifacts").glob("*"):
        artifact.write_bytes(b"torn")
    heard = []
    evaluate.evaluate(to_json(data_of), [to_json(form) for form in forms], heard.append, lambda question: "")
    assert [event["outcome"]["artifact"] for event in heard if event["event"] == "outcome"] == [
        one for one, *_ in known
    ]


def test_another_seed_is_another_training_of_the_same_data(tmp_path: Path) -> None:
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=TrainingSpec(epochs=1))
    one = Genotype(Architecture("simple_rnn", 4), Training(1e-2), Deployment("loop"))
    found = {}
    for repeat in (0, 1, 0):
        again = replace(where, repeat=repeat)
        data = load(again.task, seed=again.seed, root="")
        weights, _ = trained.trained(again, data, one, lambda event: None)
        found.setdefault(repeat, []).append((data.digest, weights["layer1"][0]))
    (first, mine), (_, kept), (second, other) = *found[0], *found[1]
    assert first == second
    np.testing.assert_array_equal(mine, kept)
    assert (mine != other).any()


def test_what_is_exported_has_the_loops_that_everybody_has(tmp_path: Path) -> None:
    """It was trained without one, which is faster here; on a GPU, or in a file to be rewritten, the loop counts."""
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=TrainingSpec(epochs=1))
    data = load(where.task, seed=where.seed, root="")
    made = trained.Trained(where, data, Genotype(Architecture("gru", 4), Training(1e-2), Deployment("loop")))
    made.train(lambda event: None)
    assert made.model.get_layer("layer1").unroll
    assert not made.serving.get_layer("layer1").unroll
    x = data.validation.x[:8]
    np.testing.assert_allclose(made.serving(x), made.answer(x), atol=1e-6)


def weights_by_rate(at: Path, *rates: float, alpha: float = 0.0) -> dict[float, list[np.ndarray[Any, Any]]]:
    """What trainings of one architecture come to, one after the other; with `alpha` taught by their like."""
    spec = TrainingSpec(epochs=3, batch_size=64, distillation=(0.0, alpha) if alpha else (0.0,))
    plain = Genotype(Architecture("mingru", 8, frame_stack=2), Training(rates[0]), Deployment("loop"))
    where = bench(at, task=TaskSpec(data="digits-rows"), training=spec, teacher=plain if alpha else None)
    data = load(where.task, seed=where.seed, root="")
    found = {}
    for rate in rates:
        pupil = replace(plain, training=Training(rate, alpha))
        weights, _ = trained.trained(
            where, data, pupil, lambda event: None, untrained=trained.Trained(where, data, pupil)
        )
        found[rate] = [array for arrays in weights.values() for array in arrays]
    return found


def test_a_model_trained_again_at_another_rate_owes_nothing_to_the_training_before(tmp_path: Path) -> None:
    after = weights_by_rate(tmp_path / "a", 2e-2, 5e-3)
    trained._KEPT.clear()
    alone = weights_by_rate(tmp_path / "b", 5e-3)
    for one, other in zip(after[5e-3], alone[5e-3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((one != other).any() for one, other in zip(after[5e-3], after[2e-2], strict=True))


def test_a_model_taught_by_its_own_like_begins_at_the_beginning(tmp_path: Path) -> None:
    """The teacher, trained for the lesson, is of the same architecture: its weights must not become the pupil's."""
    trained._KEPT.clear()
    first = weights_by_rate(tmp_path / "a", 1e-2, alpha=0.5)
    trained._KEPT.clear()
    plain = Genotype(Architecture("mingru", 8, frame_stack=2), Training(1e-2), Deployment("loop"))
    spec = TrainingSpec(epochs=3, batch_size=64, distillation=(0.0, 0.5))
    where = bench(tmp_path / "b", task=TaskSpec(data="digits-rows"), training=spec, teacher=plain)
    data = load(where.task, seed=where.seed, root="")
    trained._lesson(where, data, where.teachers, lambda event: None)
    trained._KEPT.clear()  # the pupil's model has never been a teacher's
    pupil = replace(plain, training=Training(1e-2, 0.5))
    weights, _ = trained.trained(where, data, pupil, lambda event: None)
    for one, other in zip(first[1e-2], [array for arrays in weights.values() for array in arrays], strict=True):
        np.testing.assert_array_equal(one, other)


def test_models_are_kept_up_to_a_number_and_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    trained._KEPT.clear()
    signature = Signature("classification", 4, 2, 2)
    small = [trained._kept(Architecture("simple_rnn", units), signature, 0, "cpu") for units in (2, 3)]
    assert trained._kept(Architecture("simple_rnn", 2), signature, 0, "cpu") is small[0]
    monkeypatch.setattr(trained, "MODELS", 2)
    trained._kept(Architecture("simple_rnn", 3), signature, 1, "cpu")
    assert len(trained._KEPT) == 2
    assert small[0] in trained._KEPT.values()  # the older one went
    monkeypatch.setattr(trained, "KEPT_BYTES", small[0].size_bytes)
    trained._kept(Architecture("simple_rnn", 2), signature, 0, "cpu")
    assert list(trained._KEPT.values()) == [small[0]]
    assert trained._kept(Architecture("simple_rnn", 64), signature, 0, "cpu").size_bytes > trained.KEPT_BYTES


def test_a_form_with_random_weights_is_made_once_for_all_trainings_of_an_architecture(tmp_path: Path) -> None:
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"))
    data = load(where.task, seed=where.seed, root="")
    made = []

    class Counting(trained.Trained):
        def lower(self, asked: Deployment) -> bytes:
            made.append(asked)
            return super().lower(asked)

    artifacts = []
    for rate in (1e-2, 2e-2):
        genotype = Genotype(Architecture("mingru", 8), Training(rate), Deployment("loop", 4, "8"))
        group: Any = SimpleNamespace(
            bench=where, forms=[genotype], emit=lambda event: None, cache=Cache(tmp_path), lowered={},
            origin=Counting(where, data, genotype),
        )  # fmt: skip
        artifacts.append(evaluate._artifact(group, 0, "untrained"))
    assert artifacts[0] == artifacts[1]
    assert made == [Deployment("loop", 4, "32")]
    Cache(tmp_path).artifact(artifacts[0].sha256).write_bytes(b"rubbish")
    assert evaluate._artifact(group, 0, "untrained") == artifacts[0]
    assert made == [Deployment("loop", 4, "32")]  # the float file is there


def test_the_sequences_are_held_once_however_many_models_are_kept(tmp_path: Path) -> None:
    trained._KEPT.clear()
    weights_by_rate(tmp_path, 1e-2)
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=TrainingSpec(epochs=1))
    data = load(where.task, seed=where.seed, root="")
    for units in (4, 5):
        one = Genotype(Architecture("mingru", units, frame_stack=2), Training(1e-2), Deployment())
        trained.trained(where, data, one, lambda event: None)
    first, second = (built.graphs.traced.epoch._data[0] for built in list(trained._KEPT.values())[-2:])
    assert first is second


def test_a_model_is_built_anew_where_that_economy_is_switched_off_or_it_draws_random_numbers(tmp_path: Path) -> None:
    trained._KEPT.clear()
    where = bench(tmp_path, task=TaskSpec(data="digits-rows"), training=TrainingSpec(epochs=1))
    data = load(where.task, seed=where.seed, root="")
    plain = Genotype(Architecture("simple_rnn", 3), Training(1e-2), Deployment())
    drawing = replace(plain, architecture=Architecture("simple_rnn", 3, dropout=0.2))
    kept = [trained.Trained(where, data, plain) for _ in range(2)]
    assert kept[0].model is kept[1].model
    for one, asked in ((plain, replace(where, without=("graphs",))), (drawing, where)):
        anew = [trained.Trained(asked, data, one) for _ in range(2)]
        assert anew[0].model is not anew[1].model
        assert anew[0].graphs is None
