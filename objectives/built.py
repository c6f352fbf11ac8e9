"""A candidate that the user's code builds: its hyperparameters, its training, and the model that they give."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from objectives.bench import Bench, Emit
from objectives.cache import Cache
from objectives.data import Dataset, Split
from objectives.foreign import Foreign, check_input, check_output, padding_of
from objectives.model_file import ModelFile, code, fed
from objectives.sources import PARTS, importable
from objectives.task import TASKS
from objectives.training.accelerator import strategy_of
from objectives.training.own import Trainee, compile_plainly, compiled, fit, meet, reseed, resumable
from objectives.training.rungs import GoesOn, Rungs, epochs_of, learned_at, never_stopped
from spaces.backend import keras
from spaces.errors import CandidateError, InputError, ModelError
from spaces.genotype import Genotype
from spaces.hypermodel import build, found, fresh, genes_of, own_fit, told, with_values
from spaces.lowering.load import Loaded, in_memory
from spaces.lowering.rewrite import recurrent_layers
from spaces.record import digest, to_json
from spaces.signature import Signature

MAKERS = ("tensorflow", "tf-keras", "keras", "keras-tuner", "brisk-rnn")
ROWS = 256  # that a model is tried on before it is trained
INPUTS = "let build give the model inputs of the shape of the data"
OUTPUTS = "let build end the model in as many outputs"


class Built(Foreign):
    """The trained model of a group of candidates of a hypermodel (`objectives.origin`)."""

    trains = True
    remedy = "leave the lowering keras out"

    def __init__(self, bench: Bench, data: Dataset, genotype: Genotype) -> None:
        assert bench.hypermodel, "only a study of a hypermodel asks for it"
        super().__init__(data, bench.hypermodel)
        self._bench, self._genotype = bench, genotype
        self._hyper = hypermodel(bench)
        self._loaded: Loaded | None = None

    @property
    def loaded(self) -> Loaded:
        """The model, untrained after `start`."""
        assert self._loaded, "started, trained or recalled before"
        return self._loaded

    def start(self) -> None:
        """Take the model as it was built."""
        if self._loaded is None:
            self._make()

    def train(self, emit: Emit, goes_on: GoesOn = never_stopped) -> None:
        """Take trained weights, from the cache if it has them. `goes_on` is asked at each rung; what was stopped goes
        on there if it is asked for again, unless the user's code trains in a way of its own: nobody can put that back
        to where it was, so it begins anew. Raises Stopped.
        """
        spec, strategy = self._bench.training, strategy_of(self._bench.training.accelerator)
        with strategy.scope():
            hp, trainee = self._make()
        if self._take(hp, trainee):
            return
        data = fed_data(self._data, self._file)
        if trainee.plain:
            with strategy.scope():
                compile_plainly(trainee, data, self._genotype.training, spec)
        cache, key, task = Cache(self._bench.home), self._key(hp), TASKS[self._data.signature.kind]
        (x, y), seed = (self._data.validation.x, self._data.validation.y), self._bench.training_seed
        rungs = Rungs(self._asked_at, lambda told: task.error(task.score(y, self.answer(x))), goes_on, cache, key)
        lasting = not own_fit(self._hyper) and resumable(trainee)
        history = fit(self._hyper.fit, hp, trainee, data, spec, seed=seed, emit=emit, rungs=rungs, lasting=lasting)
        asked = {"learned": rungs.learned, "rungs": self._asked_at, "ran": history["epochs_run"]}
        self.history = {**history, **asked, "notes": _notes(hp, self._genotype)}
        weights = {f"{place:04d}": array for place, array in enumerate(trainee.model.get_weights())}
        cache.keep_arrays("built", key, weights)
        cache.keep_record("built", key, self.history)
        rungs.done()
        self.trained_as = key

    def recall(self) -> bool:
        """Take the trained weights that the cache has, if it has them."""
        return self._take(*self._make())

    @property
    def serving(self) -> Any:
        """The Keras model itself, taking whole numbers where those are its data; it gives what the user's code says."""
        loaded, x = self.loaded, self._data.train.x
        if "float" not in str(x.dtype) and "float" in str(loaded.model.inputs[0].dtype):
            tokens = loaded.keras.Input(x.shape[1:], dtype=x.dtype.name, name="x")
            return loaded.keras.Model(tokens, loaded.model(tokens))
        return loaded.model

    def _make(self) -> tuple[Any, Trainee]:
        """Build the model; gives the hyperparameters as they were met, and the model that is to be trained."""
        try:
            hp = with_values(self._hyper, dict(self._genotype.architecture.values))
            trainee, self._loaded = made(self._hyper, hp, self._data, self._bench.training_seed, self._file.path)
            _check(self._loaded, self._data, self._file)
        except InputError as error:
            raise CandidateError("build", str(error)) from error
        return hp, trainee

    def _take(self, hp: Any, trainee: Trainee) -> bool:
        cache, key = Cache(self._bench.home), self._key(hp)
        arrays, history = cache.arrays("built", key), cache.record("built", key)
        if arrays is None or history is None or "learned" not in history:  # an older brisk asked at no rungs
            return False
        trainee.model.set_weights(list(arrays.values()))
        self.history = history | {"learned": learned_at(history, self._asked_at)}
        self.trained_as = key
        return True

    @property
    def _asked_at(self) -> tuple[int, ...]:
        """The rungs; none where a layer has a memory, for to answer in between would change what it learns."""
        stateful = any(getattr(layer, "stateful", False) for layer in self.loaded.layers)
        return () if stateful else epochs_of(self._bench.training.rungs, self._bench.training.epochs)

    def _key(self, hp: Any) -> str:
        """Names trained weights by all they depend on: of the values those that were asked for, if that is known."""
        met = {one.name for one in hp.space}
        values = self._genotype.architecture.values
        used = [[name, value] for name, value in values if name in met or own_fit(self._hyper)]
        made_with = [version(name) for name in MAKERS]
        budget = asdict(replace(self._bench.training, distillation=(), accelerator=""))
        del budget["rungs"]
        parts = (self._file.path, self._file.sha256, used, self._genotype.training, budget)
        return digest(*parts, self._data.digest, self._bench.training_seed, made_with)


def look(bench: Bench, data: Dataset) -> dict[str, Any]:
    """Build the default model, hold it against the data, and find what the user's code leaves open.

    Gives its family, recurrent layers and padding, whether all models come compiled (or are trained by a `fit` of
    their own), and the genes. Raises SpecError and ModelError, naming the key.
    """
    assert bench.hypermodel, "only a study of a hypermodel asks for it"
    hyper, file, cache = hypermodel(bench), bench.hypermodel, Cache(bench.home)
    key = digest(file.path, file.sha256, data.digest, [version(name) for name in MAKERS])
    if kept := cache.record("hypermodel", key):
        return kept
    trainee, loaded = made(hyper, with_values(hyper, {}), data, bench.seed, file.path)
    padding = _check(loaded, data, file)
    fed_rows = fed_data(data, replace(file, padding=padding))
    left_to_us = [trainee.plain]

    def run(hp: Any) -> None:
        built, _ = made(hyper, hp, data, bench.seed, file.path)
        left_to_us.append(built.plain)
        if own_fit(hyper):
            meet(hyper.fit, hp, built, fed_rows)

    genes = genes_of(hyper, run)
    explored = {
        "family": loaded.family,
        "recurrent": len(recurrent_layers(loaded)[0]),
        "padding": padding,
        "compiled": not any(left_to_us),
        "genes": [to_json(gene) for gene in genes],
    }
    cache.keep_record("hypermodel", key, explored)
    return explored


def hypermodel(bench: Bench) -> Any:
    """The user's hypermodel. Raises SpecError where there is none, and ModelError where its code is not the study's any
    more when a process first reads it.
    """
    assert bench.hypermodel, "only a study of a hypermodel asks for it"
    importable(bench.root)
    return _found(bench.hypermodel.path, bench.root, bench.hypermodel.sha256)


@functools.cache
def _found(place: str, root: str, sha256: str) -> Any:
    hyper = found(place)
    if (now := code(place, root).sha256) != sha256:
        raise ModelError(
            f"space.hypermodel: the code of {place} has changed since the study read it (sha256 {sha256[:12]} then, "
            f"{now[:12]} now); put the old code back, or give a study of the new one a name of its own with --name"
        )
    return hyper


def made(hyper: Any, hp: Any, data: Dataset, seed: int, place: str) -> tuple[Trainee, Loaded]:
    """The model that the user's code builds of `hp`, the same for the same seed.

    Raises SpecError where it fails or gives something else, ModelError where brisk cannot deploy what it gives.
    """
    fresh()
    reseed(seed)
    model, module = build(hyper, hp, place)
    where = f"space.hypermodel: {place}"
    plain = not (compiled(model) or own_fit(hyper))
    whole = _with_inputs(model, module, data, where)
    whole = _in_raw_units(whole, module, data.signature) if plain else whole
    loaded = in_memory(whole, module, "Keras 2" if module is keras else "Keras 3", where)
    shape = whole.outputs[0].shape
    return Trainee(model, module, int(shape[-1]) if len(shape) > 1 else 1, plain), loaded


def fed_data(data: Dataset, file: ModelFile) -> Dataset:
    """The data as the models take them: short sequences end in their own way."""
    parts: dict[str, Any] = {part: Split(fed(getattr(data, part).x, file), getattr(data, part).y) for part in PARTS}
    return replace(data, **parts)


def _with_inputs(model: Any, module: Any, data: Dataset, where: str) -> Any:
    """A model that declares its inputs: a Sequential without one, or a subclass, is called on those of the data."""
    try:
        declared = bool(model.inputs)
    except (AttributeError, ValueError):
        declared = False
    if declared:
        return model
    x = module.Input(data.train.x.shape[1:], dtype=data.train.x.dtype.name, name="x")
    try:
        return module.Model(x, model(x))
    except Exception as error:
        raise ModelError(
            f"{where}: its model cannot be called on sequences of shape {list(data.train.x.shape[1:])}: {told(error)}; "
            f"{INPUTS}"
        ) from error


def _in_raw_units(model: Any, module: Any, signature: Signature) -> Any:
    """A model that brisk trains learns normalised values, as brisk's own do; its answers are scaled behind it."""
    if not signature.target_mean:
        return model
    scale = module.layers.Rescaling(list(signature.target_std), list(signature.target_mean), name="raw_units")
    return module.Model(model.inputs, scale(model.outputs[0]))


def _check(loaded: Loaded, data: Dataset, file: ModelFile) -> float | None:
    """Hold a model against the data; gives what it takes for padding. Raises ModelError where it does not fit."""
    where = f"space.hypermodel: {file.path}"
    check_input(loaded, data, where, INPUTS)
    padding = padding_of(loaded, data.signature, where)
    if file.padding not in (None, padding):
        raise ModelError(
            f"{where}: masks {padding:g} here and {file.padding:g} elsewhere; let all models mask the same"
        )
    try:
        (output,) = loaded.answers([fed(data.validation.x[:ROWS], replace(file, padding=padding))])
    except Exception as error:
        raise ModelError(f"{where}: cannot be run on sequences of the data: {told(error)}; {INPUTS}") from error
    check_output(output, data.signature, where, OUTPUTS)
    return padding


def _notes(hp: Any, genotype: Genotype) -> list[str]:
    """Hyperparameters that the search did not know of, for those who read the outcome."""
    known = {name for name, _ in genotype.architecture.values}
    return [
        f"{name} = {value}: not searched, for it was met only here"
        for name, value in hp.values.items()
        if name not in known
    ]
