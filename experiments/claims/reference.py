"""Builds the frozen reference model, objectives/latency/reference.tflite, that every latency is paired with.

It was run once; its bytes are what is frozen, not this recipe (another TensorFlow writes other bytes), and
`objectives.latency.devices.local.REFERENCE_SHA256` names them. A new reference makes old figures incomparable.

A GRU of 64 units over 50 steps of 16 features, batch 1, stock converter, dynamic range int8: a WHILE graph with int8
products and float gates, as most candidates are, of 40-70 us on a server core.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from spaces.backend import keras, tf

STEPS, FEATURES, UNITS, CLASSES = 50, 16, 64, 10


def build() -> bytes:
    """The reference model as .tflite bytes."""
    keras.utils.set_random_seed(7)
    x = keras.Input(batch_shape=(1, STEPS, FEATURES), name="x")
    model = keras.Model(x, keras.layers.Dense(CLASSES, activation="softmax")(keras.layers.GRU(UNITS)(x)))

    @tf.function(input_signature=[tf.TensorSpec([1, STEPS, FEATURES], tf.float32, name="x")])
    def serve(x: tf.Tensor) -> tf.Tensor:
        return model(x, training=False)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content: bytes = converter.convert()
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.write_bytes(build())
    print(out, len(out.read_bytes()), "bytes, sha256", hashlib.sha256(out.read_bytes()).hexdigest())
