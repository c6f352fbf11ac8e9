"""What a model trains on, by TensorFlow's distribution strategies, and whether XLA compiles its step.

Several devices are proved on TensorFlow's logical CPU devices. Nothing here was ever tried on a real GPU or TPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from spaces.backend import tf
from spaces.errors import SpecError

BREAK_EVEN_STEPS = 5_000
"""The training steps from which XLA pays on a CPU: compiling takes 2-4 s, and a step of a scanned cell is then 1.3-1.9
times faster, so that it pays from 600 to 1,000 steps on two cores and from 3,400 on one, or more on slower machines
(`experiments/claims/training.py`)."""

SLOW = ("While", "StatelessWhile")
"""Operations that XLA makes a hundred times slower on a CPU: loops over time."""

UNREPEATABLE = ("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "Multinomial")
"""Operations, those of dropout for instance, that draw other numbers each time under XLA, whatever the seed."""


REMEDY = 'give "auto" or "cpu", or install what makes `tf.config.list_physical_devices()` show it'


@functools.cache
def strategy_of(accelerator: str) -> Any:
    """The strategy for all devices of a kind, one of `bench.ACCELERATORS`; "auto" is the fastest that there is.

    A model and its optimizer are made in its scope. On one device it is the default strategy, unless TensorFlow by
    itself would choose another. Raises SpecError where TensorFlow sees no such device.
    """
    kinds = {kind: _devices(kind) for kind in ("tpu", "gpu", "cpu")}
    kind = next(kind for kind, found in kinds.items() if found) if accelerator == "auto" else accelerator
    if kind == "tpu":
        return _tpu()
    devices = kinds[kind]
    if not devices:
        raise SpecError(f'training.accelerator: got "{kind}", but TensorFlow sees none; {REMEDY}')
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices)
    if kind == "cpu" and kinds["gpu"]:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.get_strategy()


def _devices(kind: str) -> list[str]:
    return [device.name for device in tf.config.list_logical_devices(kind.upper())]


def _tpu() -> Any:
    """The strategy for this machine's TPU, which is initialised, once in the life of a process."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0].partition(". ")[0][:200]
        raise SpecError(f'training.accelerator: got "tpu", but TensorFlow reaches none ({why}); {REMEDY}') from error


def mean_over_replicas(x: Any) -> Any:
    """The mean of `x` over the replicas that share a batch; on one device, and outside of training, `x` itself."""
    here = tf.distribute.get_replica_context()
    if here is None or here.num_replicas_in_sync == 1:
        return x
    return here.all_reduce(tf.distribute.ReduceOp.MEAN, x)


def compiled(step: Any, batch: Sequence[Any], steps: int) -> Any:
    """`step`, a `tf.function` of tensors as `batch` specifies, as XLA runs it; None where that does not pay.

    It pays where a training has steps enough, and no loop over time; and it may not cost the repeatability. What is
    decided depends on nothing else, so that the same training is always run in the same way.
    """
    if steps < BREAK_EVEN_STEPS:
        return None
    traced = step.get_concrete_function(*batch)
    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    if any(node.op in (*SLOW, *UNREPEATABLE) for node in nodes):
        return None
    return tf.function(traced, jit_compile=True)
