"""The child's main: calls are read from stdin as JSON lines; events, questions, results and errors go back on stdout.

Started by `search.isolate` as `python -P -m search.worker PARENT [core,core...]`. Whatever a library prints goes to the
log (stderr), never into the protocol. When the parent is gone, stdin closes, and the whole process group ends with it;
one that the parent made to stand still cannot notice, so the kernel is asked to end it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import inspect
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from spaces.errors import BriskError, CandidateError

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>

Send = Callable[[dict[str, Any]], None]


def main() -> None:
    """Answer one call after another until stdin closes."""
    _die_with(int(sys.argv[1]))
    if len(sys.argv) > 2:
        os.sched_setaffinity(0, {int(core) for core in sys.argv[2].split(",")})
    faulthandler.enable()
    calls, answers = _private_streams()
    send = _sender(answers)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(calls, waiting), daemon=True).start()
    while True:
        _answer(json.loads(waiting.get()), send, waiting)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with the thread that started it, which lives as long as the driver."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout for the protocol alone: others find /dev/null to read and the log to print to."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return calls, answers


def _listen(calls: BinaryIO, waiting: queue.SimpleQueue[bytes]) -> None:
    for line in calls:
        waiting.put(line)
    if os.getpgid(0) == os.getpid():  # our own group: what we started ends too
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _sender(answers: BinaryIO) -> Send:
    turn = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        line = json.dumps(message, default=_plain).encode() + b"\n"
        with turn:
            answers.write(line)
            answers.flush()

    return send


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as JSON values; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _answer(call: dict[str, Any], send: Send, waiting: queue.SimpleQueue[bytes]) -> None:
    def ask(question: dict[str, Any]) -> Any:
        send({"ask": question})
        return json.loads(waiting.get())["answer"]

    try:
        function = _found(call["call"])
        arguments = dict(call["arguments"])
        wanted = inspect.signature(function).parameters
        if "emit" in wanted:
            arguments["emit"] = lambda event: send({"event": event})
        if "ask" in wanted:
            arguments["ask"] = ask
        send({"result": function(**arguments)})
    except Exception as error:
        with contextlib.suppress(OSError):  # a log that cannot be written must not cost the answer
            traceback.print_exc()
            sys.stderr.flush()
        send({"error": _described(error)})


def _found(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _described(error: Exception) -> dict[str, str]:
    """What the parent needs to raise the same error: a brisk one by its class, another by its type and words."""
    described = {"type": type(error).__name__, "text": str(error)}
    if isinstance(error, CandidateError):
        described |= {"stage": error.stage, "reason": error.reason}
    kinds = [kind for kind in type(error).__mro__ if kind.__module__ == BriskError.__module__]
    return {**described, "brisk": kinds[0].__name__} if kinds else described


if __name__ == "__main__":
    main()
