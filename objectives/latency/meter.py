"""The meter: times .tflite models in a clean process of its own. It is started by its path and imports nothing of ours
for them, so that it can travel to a board; a SavedModel or a Keras file is opened through `spaces.backend`.

Python, numpy and LiteRT only; TensorFlow is loaded where a SavedModel or a Keras file is asked for, and not before.
It talks in JSON lines. In: a request, then the blocks to run; the end of the input is the end of the meter. Out:

    {"at": i, "doing": "open"}              before anything that model i could die of
    {"failed": i, "reason": "..."}          model i is out
    {"probed": i, "memory_bytes": n, "batch": n, "runtime": "..."}
    {"opened": i, "load_ns": n, "first_ns": n, and what "probed" told}
    {"ready": {i: ns a call}}               warmed up; the answer is {"blocks": [[i, calls], ...]}
    {"block": i, "wall_ns": [...], "cpu_ns": [...] or null}
    {"done": true}
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import mmap
import os
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from random import Random
from typing import Any

INPUTS = 8  # different inputs, fed in turn, so that no call sees what the one before saw
LONG_CALL_NS = 2e6  # a busy core cuts longer calls in two, which spoils even their median: CPU time is taken too
WARMUP_CAP_S = 0.5  # of one slow model


@dataclass(frozen=True)
class Model:
    """A model that is open: `feed(k)` puts input k in place, `call()` is what is timed, `reset()` forgets its state."""

    feed: Callable[[int], None]
    call: Callable[[], Any]
    reset: Callable[[], Any]
    batch: int
    load_ns: int


def open_litert(path: str, batch: int, threads: int, time_steps: int | None = None) -> Model:
    """A .tflite file in the LiteRT interpreter; a batch that the file leaves free is set to `batch`, a length to
    `time_steps`. Raises ValueError where a size stays free: the interpreter would take it for 1.
    """
    from ai_edge_litert.interpreter import Interpreter

    started = time.perf_counter_ns()
    interpreter = Interpreter(model_path=path, num_threads=threads)
    signatures = [[int(size) for size in each["shape_signature"]] for each in interpreter.get_input_details()]
    lengths = [shape[1] for shape in signatures if len(shape) > 2]
    if time_steps and lengths and not {-1, time_steps} & {*lengths}:
        raise ValueError(f"it takes sequences of {lengths[0]} steps and no others")
    for each, free in zip(interpreter.get_input_details(), signatures, strict=True):
        wanted = [batch, time_steps or -1, *free[2:]][: len(free)]
        shape = [size if size != -1 else asked for size, asked in zip(free, wanted, strict=True)]
        if -1 in shape:
            remedy = "save it with a fixed length" if -1 in shape[2:] else "give --time-steps"
            raise ValueError(f"its input {each['name']} has the free shape {free}: {remedy}")
        if -1 in free:
            interpreter.resize_tensor_input(each["index"], shape)
    interpreter.allocate_tensors()
    load_ns = time.perf_counter_ns() - started
    details = interpreter.get_input_details()

    @functools.cache
    def drawn(turn: int) -> list[tuple[int, Any]]:
        return [(each["index"], _draw(each["shape"], each["dtype"], turn)) for each in details]

    def feed(turn: int) -> None:
        for index, value in drawn(turn % INPUTS):
            interpreter.set_tensor(index, value)

    own = int(details[0]["shape"][0]) if details and len(details[0]["shape"]) else 1
    return Model(feed, interpreter.invoke, interpreter.reset_all_variables, own, load_ns)


def open_tensorflow(asked: dict[str, Any], batch: int) -> Model:
    """A SavedModel's signature or a Keras model, called with one static shape, outputs fetched.

    `asked["how"]` is "function" (a graph function, for a SavedModel its signature; so it is where nothing is said),
    "xla", "call" (layer by layer) or "predict".
    """
    import numpy as np

    import spaces.build  # noqa: F401  (registers brisk's own layers, so that brisk's own exports load)
    from spaces.backend import tf

    started = time.perf_counter_ns()
    if asked["kind"] == "savedmodel":
        function, specs = _signature(tf.saved_model.load(asked["path"]))
        still = {name: tf.TensorSpec(_static(list(each.shape), batch), each.dtype) for name, each in specs.items()}
        answer = tf.function(lambda **x: function(**x), jit_compile=True) if _how(asked) == "xla" else function
    else:
        answer, still = _keras(asked, batch)
    load_ns = time.perf_counter_ns() - started
    turns = [
        {name: tf.constant(_draw(each.shape, each.dtype.as_numpy_dtype, turn)) for name, each in still.items()}
        for turn in range(INPUTS)
    ]
    fed = dict(turns[0])
    own = next((int(each.shape[0]) for each in still.values() if each.shape.rank), batch)

    def call() -> None:
        for output in tf.nest.flatten(answer(**fed)):
            if not isinstance(output, float | np.ndarray):
                output.numpy()

    return Model(lambda turn: fed.update(turns[turn % INPUTS]), call, lambda: None, own, load_ns)


def _how(asked: dict[str, Any]) -> str:
    return str(asked.get("how", "function"))


def _keras(asked: dict[str, Any], batch: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function of a Keras model's inputs by name, and what they are."""
    from pathlib import Path

    from spaces.backend import tf
    from spaces.lowering.load import load

    if asked.get("custom"):
        sys.path.append(asked["root"])  # last: it shadows nothing
    loaded = load(Path(asked["path"]), custom=asked.get("custom", ()), unsafe=asked.get("unsafe", False))
    still = {}
    timed = [port for port in loaded.inputs if len(port.shape) > 2 or (len(port.shape) == 2 and "int" in port.dtype)]
    lengths = [port.shape[1] for port in timed]
    steps = asked.get("time_steps")
    if isinstance(steps, int) and lengths and steps not in lengths and None not in lengths:
        raise ValueError(f"it takes sequences of {lengths[0]} steps and no others")
    for port in loaded.inputs:
        shape = list(port.shape)
        if len(shape) > 1 and shape[1] is None:
            shape[1] = steps.get(port.name) if isinstance(steps, dict) else steps
            if shape[1] is None:
                raise ValueError(f"its input {port.name} takes sequences of any length: give --time-steps")
        still[port.name] = tf.TensorSpec(_static(shape, batch), port.dtype, name=port.name)

    def forward(*tensors: Any) -> Any:  # by place: by name a graph function would have them by the alphabet
        return loaded.call(tensors)

    answer = forward
    if _how(asked) == "predict":
        own = int(next(iter(still.values())).shape[0])

        def answer(*tensors: Any) -> Any:
            return loaded.predict(tensors, own)

    elif _how(asked) != "call":
        answer = tf.function(forward, jit_compile=_how(asked) == "xla").get_concrete_function(*still.values())
    return lambda **x: answer(*(x[name] for name in still)), still


def _signature(loaded: Any) -> tuple[Any, dict[str, Any]]:
    signatures = loaded.signatures
    if not signatures:
        raise ValueError("the SavedModel has no signature; save it with one named serving_default")
    function = signatures["serving_default"] if "serving_default" in signatures else next(iter(signatures.values()))
    return function, function.structured_input_signature[1]


def _static(shape: list[int | None], batch: int) -> list[int]:
    fixed = [batch if shape[0] is None else shape[0], *shape[1:]]
    if None in fixed:
        raise ValueError(f"its input has the shape {shape}: only the batch may be free; save it with a fixed length")
    return [int(size or 0) for size in fixed]


def _draw(shape: Any, kind: Any, turn: int) -> Any:
    import numpy as np

    random = np.random.default_rng(turn)
    if np.issubdtype(kind, np.floating):
        return random.standard_normal(shape).astype(kind)
    if np.issubdtype(kind, np.integer) or kind is np.bool_:
        return random.integers(0, 2, shape).astype(kind)  # tokens 0 and 1 are in every vocabulary
    raise ValueError(f"its input has the type {kind}, which cannot be generated")


def _twice(call: Callable[[], Any]) -> Callable[[], None]:
    def both() -> None:
        call()
        call()

    return both


def _after(first: Callable[[], Any], call: Callable[[], Any]) -> Callable[[], None]:
    def both() -> None:
        first()
        call()

    return both


def open_model(asked: dict[str, Any], threads: int) -> Model:
    """The model that a request names; raises whatever its runtime raises."""
    if asked["kind"] == "tflite":
        model = open_litert(asked["path"], asked["batch"], threads, asked.get("time_steps"))
    else:
        model = open_tensorflow(asked, asked["batch"])
    if asked.get("clean"):
        model = replace(model, call=_after(cleaner(), model.call))
    return replace(model, call=_twice(model.call)) if asked["twice"] else model


def cleaner() -> Callable[[], Any]:
    """A function that leaves the CPU's vector registers clean.

    Some int8 kernels end without `vzeroupper`; legacy SSE code that runs next, such as the fused LSTM's, is then 3-5
    times slower. What a model does to itself ships with it and must show; what it does to its neighbour in a sitting
    must not. Where machine code cannot be mapped, a numpy loop that ends in `vzeroupper` does the same.
    """
    import numpy as np

    if platform.machine() not in ("x86_64", "AMD64"):
        return lambda: None
    try:
        with open("/proc/cpuinfo") as info:
            if " avx " not in info.read():
                return lambda: None
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xc5\xf8\x77\xc3")  # vzeroupper; ret
        stub = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

        def clean(held: mmap.mmap = page) -> None:  # the page lives as long as what jumps into it
            stub()

        return clean
    except OSError:
        numbers = np.linspace(0, 1, 256, dtype=np.float32)
        return lambda: np.exp(numbers, out=numbers.copy())


def anonymous_bytes() -> int:
    """Anonymous memory of this process: heap and buffers, without the pages of files; 0 where the kernel hides it."""
    try:
        with open("/proc/self/smaps_rollup") as rollup:
            return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Anonymous:"))
    except (OSError, StopIteration):
        return 0


class Meter:
    """One sitting's process: opens, warms and times the models of one request."""

    def __init__(self, request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        self.request, self.say = request, say
        self.threads: int = request["threads"]
        self.models: dict[int, Model] = {}
        self.ballast: list[bytearray] = []
        self.clean = cleaner()
        self.long: set[int] = set()

    def probe(self, index: int, asked: dict[str, Any]) -> bool:
        """Open and run a model in a fork: what kills it kills the fork, and its memory is counted from a clean start.

        Whether it may be opened here.
        """
        self.say({"at": index, "doing": "probe"})
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            signal.alarm(max(1, round(self.request["probe_s"])))
            os.write(writer, json.dumps(_examined(index, asked, self.threads)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            found = {"failed": index, "reason": _death(os.WTERMSIG(status), self.request["probe_s"])}
        else:
            found = json.loads(answer)
        self.say(found)
        return "failed" not in found

    def open(self, index: int, asked: dict[str, Any]) -> None:
        """Open a model and call it a first time; both times are told."""
        self.say({"at": index, "doing": "open"})
        random = Random(f"{self.request['seed']} {index}")
        self.ballast.append(bytearray(64 * random.randrange(1024)))  # where a model lies in memory is worth 1-3 %
        before = anonymous_bytes()
        try:
            model = open_model(asked, self.threads)
            model.feed(0)
            self.clean()
            started = time.perf_counter_ns()
            model.call()
            first_ns = time.perf_counter_ns() - started
        except Exception as error:
            self.say({"failed": index, "reason": _words(error)})
            return
        self.models[index] = model
        facts = _facts(asked, model, before)
        for turn in range(INPUTS):  # all inputs are drawn now, none while the clock runs
            model.feed(turn)
        self.say({"opened": index, "load_ns": model.load_ns, "first_ns": first_ns, **facts})

    def warm(self, seconds: float, calls: int) -> None:
        """Call every model in turn for so long and so often, and tell what a call takes."""
        taken: dict[int, list[int]] = {index: [] for index in self.models}
        started = time.perf_counter()
        cold = set(self.models)
        while cold:
            for index in sorted(cold):
                self.say({"at": index, "doing": "warm-up"})
                taken[index] += self.run(index, 5 if len(taken[index]) else 2, None)[0]
                spent = sum(taken[index]) / 1e9
                if len(taken[index]) >= calls or spent > WARMUP_CAP_S:
                    cold.discard(index)
            if not cold and time.perf_counter() - started < seconds:
                cold = {index for index in self.models if sum(taken[index]) / 1e9 < WARMUP_CAP_S}
        ready = {index: sorted(times[len(times) // 2 :])[len(times) // 4] for index, times in taken.items()}
        self.long = {index for index, ns in ready.items() if ns > LONG_CALL_NS}
        self.say({"ready": ready})

    def run(self, index: int, calls: int, period: float | None) -> tuple[list[int], list[int]]:
        """Time `calls` calls one by one, each `period` seconds after the one before, or back to back."""
        model, walls, cpus = self.models[index], [], []
        feed, call, clock, cpu_clock = model.feed, model.call, time.perf_counter_ns, time.process_time_ns
        heavy = index in self.long
        tick = time.perf_counter()
        for turn in range(calls):
            if period:
                tick += period
                time.sleep(max(0.0, tick - time.perf_counter()))
            feed(turn)
            cpu = cpu_clock() if heavy else 0
            started = clock()
            call()
            walls.append(clock() - started)
            if heavy:
                cpus.append(cpu_clock() - cpu)
        return walls, cpus

    def block(self, index: int, calls: int) -> None:
        """A block of one model: clean registers, fresh state, a few calls discarded, then those that count."""
        if index not in self.models:
            return
        self.say({"at": index, "doing": "timing"})
        try:
            self.clean()
            self.models[index].reset()
            self.run(index, self.request["discarded"], None)
            walls, cpus = self.run(index, calls, self.request["period_s"])
        except Exception as error:
            del self.models[index]
            self.say({"failed": index, "reason": _words(error)})
            return
        self.say({"block": index, "wall_ns": walls, "cpu_ns": cpus or None})


def _examined(index: int, asked: dict[str, Any], threads: int) -> dict[str, Any]:
    before = anonymous_bytes()
    try:
        model = open_model(asked, threads)
        model.feed(0)
        for _ in range(3):
            model.call()
    except Exception as error:
        return {"failed": index, "reason": _words(error)}
    return {"probed": index, **_facts(asked, model, before)}


def _facts(asked: dict[str, Any], model: Model, before: int) -> dict[str, Any]:
    memory = max(0, anonymous_bytes() - before)
    return {"memory_bytes": memory, "batch": model.batch, "runtime": _runtime(asked["kind"])}


@functools.cache
def _runtime(kind: str) -> str:
    package = "ai-edge-litert" if kind == "tflite" else "tensorflow"
    return f"{package} {version(package)}"


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _death(number: int, seconds: float) -> str:
    if number == signal.SIGALRM:
        return f"did not open and run within {seconds:g} s"
    return f"died by {signal.Signals(number).name} when it was opened and run"


def _listen(lines: queue.SimpleQueue[str]) -> None:
    """Pass on the lines of standard input; when it ends, so does this process with all it started."""
    rest = b""
    while chunk := os.read(0, 65536):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            lines.put(line.decode())
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Serve one request."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the libraries print must not mix with the answers

    def say(message: dict[str, Any]) -> None:
        os.write(out, json.dumps(message).encode() + b"\n")

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    request = json.loads(lines.get())
    if request["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, request["cores"])
    asked = {each["index"]: each for each in request["models"]}
    if any(each["kind"] == "tflite" for each in asked.values()):
        import ai_edge_litert.interpreter  # noqa: F401
        import numpy.random  # noqa: F401

        _runtime("tflite")  # all this once, ahead of the forks: it would count as their memory, too
    meter = Meter(request, say)
    if request["probe_s"]:
        asked = {i: each for i, each in asked.items() if each["kind"] != "tflite" or meter.probe(i, each)}
    if any(each["kind"] != "tflite" for each in asked.values()):
        from spaces.backend import configure

        configure(request["threads"])
    for index, each in asked.items():
        meter.open(index, each)
    gc.collect()
    gc.freeze()
    gc.disable()
    meter.warm(request["warmup_s"], request["warmup_calls"])
    for index, calls in json.loads(lines.get())["blocks"]:
        meter.block(index, calls)
    say({"done": True})
    os._exit(0)  # a model that dies while it is torn down has been timed all the same


if __name__ == "__main__":
    main()
