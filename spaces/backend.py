"""The one door to TensorFlow, tf_keras (Keras 2: what is trained) and Keras 3 (the stock exporter).

Importing this module loads TensorFlow: seconds and some 600 MB, so only what runs in a worker may import it.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from types import ModuleType
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # C++ chatter, read once at import
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TensorFlow would import Keras 3, 4 s, which few need
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # read by Keras 3 at import
os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else the first worker would take all of a GPU's memory

with warnings.catch_warnings():  # third-party deprecations at import are not ours to mend
    warnings.simplefilter("ignore")
    import tensorflow as tf
    import tf_keras as keras
    from tensorflow.compiler.tf2xla.python import xla as _xla
    from tf_keras.src import backend as _keras

for _chatty in ("tensorflow", "absl", "tf_keras"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)

__all__ = ["configure", "dynamic_update_slice", "keras", "keras3", "seed_initializers", "tf"]


def keras3() -> ModuleType:
    """Keras 3, imported at the first call; it lives beside tf_keras in one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras as modern
    module: ModuleType = modern
    return module


def dynamic_update_slice(buffer: Any, update: Any, start: Any) -> Any:
    """`buffer` with `update` written at `start` (one int32 an axis): TFLite's DYNAMIC_UPDATE_SLICE."""
    return _xla.dynamic_update_slice(buffer, update, start)


def seed_initializers(seed: int) -> None:
    """Have tf_keras's initializers draw from this seed on, and NumPy and Python.

    `keras.utils.set_random_seed` seeds TensorFlow's own operations too, which then forgets all that it has compiled:
    the graphs of other models would be compiled again.
    """
    random.seed(seed)
    np.random.seed(seed)
    _keras._SEED_GENERATOR.generator = random.Random(seed)


def configure(threads: int) -> None:
    """Let TensorFlow use so many threads. Raises RuntimeError once TensorFlow has run anything."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
