"""Model graphs by seed, of shapes that `experiments.claims.graphs.draw` does not have: states that wander between
layers, wrappers in wrappers, shared layers, several inputs and outputs. Each function of `SHAPES` draws one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.claims.graphs import ACTIVATIONS, MERGES, Drawn
from spaces.backend import keras, keras3

STATES = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}
TOKENS = 7


@dataclass
class Draw:
    """What the shapes are drawn with: a Keras, and choices by seed."""

    k: Any
    random: np.random.Generator
    batch: int
    time: int

    def pick(self, *options: Any) -> Any:
        return options[self.random.integers(len(options))]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def flags(self, kind: str, **fixed: Any) -> dict[str, Any]:
        """Flags of a layer or a cell that change what it computes."""
        found: dict[str, Any] = {"use_bias": self.chance(0.8), "activation": self.pick("tanh", *ACTIVATIONS)}
        if kind.startswith("GRU"):
            found["reset_after"] = self.chance(0.6)
        if not kind.startswith("SimpleRNN") and self.chance(0.3):
            found["recurrent_activation"] = self.pick("hard_sigmoid", "sigmoid")
        if self.chance(0.3):
            found |= {"dropout": 0.3, "recurrent_dropout": 0.2}
        if not kind.endswith("Cell"):
            found["zero_output_for_mask"] = self.chance(0.2)
            found["unroll"] = self.chance(0.2) and not found["zero_output_for_mask"]
        return found | fixed

    def layer(self, kind: str | None = None, units: int | None = None, **fixed: Any) -> Any:
        """A recurrent layer that gives its sequence, unless told otherwise."""
        kind, units = kind or self.pick(*STATES), units or self.pick(3, 4, 5)
        return getattr(self.k.layers, kind)(units, **{"return_sequences": True, **self.flags(kind, **fixed)})

    def cell(self, kind: str | None = None) -> Any:
        kind = kind or self.pick("LSTMCell", "GRUCell", "SimpleRNNCell")
        return getattr(self.k.layers, kind)(self.pick(3, 4), **self.flags(kind))

    def frames(self, features: int = 3) -> tuple[Any, np.ndarray]:
        """An input of floats whose steps may be all zero: at the start, in the middle and at the end."""
        x = self.random.normal(size=(self.batch, self.time, features)).astype(np.float32)
        x[self.random.random((self.batch, self.time)) < 0.3] = 0.0
        return self.k.Input((self.time, features)), x

    def numbers(self, width: int) -> tuple[Any, np.ndarray]:
        return self.k.Input((width,)), self.random.normal(size=(self.batch, width)).astype(np.float32)

    def tokens(self, *shape: int) -> tuple[Any, np.ndarray]:
        x = self.random.integers(0, TOKENS, (self.batch, *shape)).astype(np.int32)
        return self.k.Input(shape, dtype="int32"), x

    def masked(self, x: Any) -> Any:
        return self.k.layers.Masking(0.0)(x) if self.chance(0.5) else x


Shape = Callable[[Draw], tuple[Any, list[np.ndarray]]]


def encoder_decoder(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """The states of one layer start another, which has inputs, and perhaps a mask, of its own."""
    kind, units = d.pick(*STATES), d.pick(3, 5)
    (source, x), (target, y) = d.frames(3), d.frames(2)
    _, *states = d.layer(kind, units, return_sequences=False, return_state=True)(d.masked(source))
    states = states[0] if kind != "LSTM" and d.chance(0.5) else list(states)
    decoder, given = d.layer(kind, units, return_state=True), d.masked(target)
    h, *after = decoder(given, states) if d.chance(0.3) else decoder(given, initial_state=states)
    return d.k.Model([source, target], [d.k.layers.Dense(3)(h), *after]), [x, y]


def stacked_cells(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Cells upon cells in one RNN, with their states as outputs, and as a start for the like."""
    kinds = [d.pick("LSTMCell", "GRUCell", "SimpleRNNCell") for _ in range(d.pick(1, 2, 3))]
    x, data = d.frames()
    cells = [getattr(d.k.layers, kind)(4, **d.flags(kind)) for kind in kinds]
    h, *states = d.k.layers.RNN(cells, return_sequences=True, return_state=True)(d.masked(x))
    again = [getattr(d.k.layers, kind)(4, **d.flags(kind)) for kind in kinds]
    more = d.k.layers.RNN(again, return_sequences=d.chance(0.5), go_backwards=d.chance(0.3))(h, initial_state=states)
    flat = [one for each in states for one in (each if isinstance(each, list | tuple) else [each])]
    return d.k.Model(x, [more, *flat]), [data]


def two_ways(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Bidirectional with states out, states in, or a backward layer of its own, upon each other."""
    kind, units = d.pick(*STATES), d.pick(3, 4)
    x, data = d.frames()
    first = d.layer(kind, units, return_state=True)
    found = d.k.layers.Bidirectional(first, merge_mode=d.pick(*MERGES[:-1]))(d.masked(x))
    h, states = found[0], list(found[1:])
    back = {"backward_layer": d.layer(kind, units, go_backwards=True)} if d.chance(0.4) else {}
    started = d.k.layers.Bidirectional(d.layer(kind, units), **back, merge_mode=d.pick(*MERGES[:-1]))
    h = started(h, initial_state=states) if d.chance(0.5) else started(h)
    apart = d.k.layers.Bidirectional(d.layer(return_sequences=False), merge_mode=None)(h)
    return d.k.Model(x, [*apart, *states]), [data]


def shared(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """One layer used on two inputs, one of them masked, and their difference."""
    (one, x), (other, y) = d.frames(), d.frames()
    layer, after = d.layer(), d.layer(return_sequences=False)
    h = d.k.layers.Subtract()([layer(d.k.layers.Masking(0.0)(one)), layer(other)])
    return d.k.Model([one, other], d.k.layers.Dense(2)(d.k.layers.Concatenate()([after(h), after(h)]))), [x, y]


def nested(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Models as layers, two deep, in a Sequential, with layers of the same name."""
    k, (x, data) = d.k, d.frames()
    inner_x = k.Input((d.time, 3))
    h = k.layers.Dropout(0.4)(d.layer(name="same", units=3)(d.masked(inner_x)))
    inner = k.Model(inner_x, h, name="inner")
    middle = k.Sequential([k.Input((d.time, 3)), inner, k.layers.Dense(3, activation="tanh"), d.layer(name="same")])
    h = d.layer(name="same", go_backwards=d.chance(0.4))(middle(x))
    return k.Model(x, [h, middle(h)]) if h.shape[-1] == 3 else k.Model(x, h), [data]


def sentences(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """A model of words for each sentence, and one over the sentences: wrapper, model, embedding and masks inside."""
    k, (x, data) = d.k, d.tokens(d.time, 4)
    words = k.Input((4,), dtype="int32")
    h = k.layers.Embedding(TOKENS, 3, mask_zero=d.chance(0.6))(words)
    h = (
        k.layers.Bidirectional(d.layer(return_sequences=False))(h)
        if d.chance(0.5)
        else d.layer(return_sequences=False)(h)
    )
    sentence = k.Model(words, k.layers.Dense(4, activation="tanh")(h))
    return k.Model(x, d.layer()(k.layers.TimeDistributed(sentence)(x))), [data]


def distributed(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Recurrent layers, convolutions and norms inside TimeDistributed."""
    k = d.k
    x, data = k.Input((d.time, 4, 3)), d.random.normal(size=(d.batch, d.time, 4, 3)).astype(np.float32)
    inside = d.pick("recurrent", "convolution", "norm")
    if inside == "recurrent":
        h = k.layers.TimeDistributed(d.layer(return_sequences=False))(x)
    else:
        layer = k.layers.Conv1D(3, 2, activation="relu") if inside == "convolution" else k.layers.BatchNormalization()
        h = k.layers.TimeDistributed(k.layers.Flatten())(k.layers.TimeDistributed(layer)(x))
    return k.Model(x, d.layer(return_sequences=d.chance(0.5))(h)), [data]


def pictures(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """ConvLSTM, which is left as it is, before a layer that is not."""
    k = d.k
    x, data = k.Input((d.time, 4, 2)), d.random.normal(size=(d.batch, d.time, 4, 2)).astype(np.float32)
    h = k.layers.ConvLSTM1D(3, 2, return_sequences=True, go_backwards=d.chance(0.3))(x)
    h = d.layer()(k.layers.TimeDistributed(k.layers.Flatten())(h))
    return k.Model(x, k.layers.GlobalAveragePooling1D()(h)), [data]


def attention(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Attention over a masked sequence, a residue round a recurrent layer, pooling that knows the mask."""
    k, (x, data) = d.k, d.tokens(d.time)
    data[:, 0] = 1  # with nothing to attend to, Keras answers NaN
    e = k.layers.Embedding(TOKENS, 4, mask_zero=True)(x)
    h = k.layers.Add()([e, d.layer(units=4)(e)])
    h = k.layers.Attention()([h, h]) if d.chance(0.5) else k.layers.LayerNormalization()(h)
    return k.Model(x, k.layers.GlobalAveragePooling1D()(h)), [data]


def convolved(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Convolutions, pooling, repeats and reshapes before and between recurrent layers."""
    k, (x, data) = d.k, d.frames()
    h = k.layers.Conv1D(4, 2, padding=d.pick("same", "causal"), activation="relu")(x)
    h = k.layers.MaxPooling1D(2, padding="same")(k.layers.SpatialDropout1D(0.2)(h))
    h = d.layer(return_sequences=False)(k.layers.UpSampling1D(2)(h))
    h = k.layers.RepeatVector(3)(k.layers.BatchNormalization()(h))
    h = k.layers.Bidirectional(d.layer(units=4))(h)
    return k.Model(x, d.layer()(k.layers.Reshape((6, 4))(h))), [data]


def by_name(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Inputs in a dict whose keys are not in order, and several outputs."""
    k, (_, x), (_, h) = d.k, d.frames(), d.numbers(4)
    entries = {"zeta": k.Input((d.time, 3), name="zeta"), "alpha": k.Input((4,), name="alpha")}
    kind = d.pick("GRU", "SimpleRNN")
    found, after = d.layer(kind, 4, return_state=True, name="found")(
        d.masked(entries["zeta"]), initial_state=[entries["alpha"]]
    )
    outputs = [k.layers.Dense(2, name="second")(found), k.layers.Dense(3, name="first")(after)]
    return k.Model(entries, outputs), [h, x]


def remembering(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Stateful layers with a fixed batch; a stateful Bidirectional."""
    k = d.k
    x = k.Input((d.time, 3), batch_size=d.batch)
    _, data = d.frames()
    h = k.layers.Bidirectional(d.layer(stateful=True))(d.masked(x))
    h = d.layer(stateful=True, go_backwards=d.chance(0.3))(h)
    return k.Model(x, k.layers.RNN(d.cell(), stateful=True)(h)), [data]


def tall(d: Draw) -> tuple[Any, list[np.ndarray]]:
    """Recurrent layers upon each other with dropout between, some of which give their states, and a branch off."""
    k, (x, data) = d.k, d.frames()
    h, outputs = d.masked(x), []
    for _ in range(3):
        h, *states = d.layer(return_state=True, zero_output_for_mask=False)(h)
        outputs += states[: d.pick(0, 1)]
        h = k.layers.Dropout(0.2)(h) if d.chance(0.5) else h
        if d.chance(0.3):
            outputs.append(k.layers.Dense(2)(h))
    return k.Model(x, [d.layer(return_sequences=False)(h), *outputs]), [data]


SHAPES: tuple[Shape, ...] = (
    encoder_decoder,
    stacked_cells,
    two_ways,
    shared,
    nested,
    sentences,
    distributed,
    pictures,
    attention,
    convolved,
    by_name,
    remembering,
    tall,
)


def shaped(seed: int) -> Drawn:
    """The graph of this seed: the shapes in turn, each of Keras 3, then each of Keras 2, then anew with other flags."""
    shape = SHAPES[seed % len(SHAPES)]
    k = keras if seed // len(SHAPES) % 2 else keras3()
    random = np.random.default_rng(seed)
    k.utils.set_random_seed(seed)
    d = Draw(k, random, int(random.choice([1, 2, 3])), int(random.choice([1, 2, 5, 7, 9])))
    model, arrays = shape(d)
    drawn = [random.normal(0, 0.6, np.shape(each)) for each in model.get_weights()]
    variances = ["variance" in each.name for each in model.weights]
    model.set_weights([np.abs(w) + 0.5 if positive else w for w, positive in zip(drawn, variances, strict=True)])
    family = "Keras 2" if k is keras else "Keras 3"
    return Drawn(model, arrays, f"seed {seed}, {shape.__name__} of {family}, batch {d.batch}, time {d.time}")


def ending(seed: int) -> str:
    """What kind of file the graph of this seed is kept in: Keras 3 cannot read its own .h5 back where masks are."""
    repeats_names = SHAPES[seed % len(SHAPES)] is nested  # which Keras 2 cannot keep in .h5
    return ".h5" if seed // len(SHAPES) % 4 == 3 and not repeats_names else ".keras"
