"""Run a function in a replaceable child process: its crash, its endless loop, its hunger for memory stay its own.

The child (`search.worker`) lives on between calls, so that TensorFlow is imported once. A `ProcessPoolExecutor` would
not do: one death fails every queued call and ruins the pool.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import psutil

from spaces import errors

POLL_S = 0.2  # how often memory and time are looked at
LOOK_S = 2.0  # the most that counts between two looks: where more passed, we stood still, as after Ctrl-Z
SILENT_S = 30.0  # a child that waits says so every few seconds (`objectives.latency.devices.local`)
TAIL_BYTES = 4096

STAGE_ENDS = "the stage"
"""How the reason begins where a stage took longer than it may, and not the whole."""

_NURSERY = ThreadPoolExecutor(1, "brisk-nursery")
"""The thread that starts all children: the kernel ends each with the thread it came from, so that must live on."""

Event = dict[str, Any]


def waits(event: Event) -> bool:
    """Whether a child says that it waits for others, which is no work of its own."""
    return str(event.get("detail", "")).startswith("waiting")


class ChildDied(errors.BriskError):
    """The child ended in the middle of a call; `kind` is "crashed", "timeout" or "memory", or "abandoned"."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class CallFailed(errors.BriskError):
    """The function raised something that is none of brisk's errors; the child is well, its traceback is in the log."""


class Child:
    """A child process with its own session, cores and log (`<home>/logs/<name>.log`; without a home, none is kept).

    It starts with the first call. `memory_limit_bytes` is resident memory, that of its own children included. After a
    ChildDied the next call starts a fresh process. From another thread than the caller's it may be closed, which ends a
    running call, and made to stand still, which counts towards no limit of time.
    """

    def __init__(
        self,
        *,
        home: Path | None = None,
        name: str = "worker",
        cores: Sequence[int] | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self._log = Path(home, "logs", f"{name}.log") if home else None
        self._cores = cores
        self._memory_limit_bytes = memory_limit_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._starting = threading.Condition()
        self._closed = False
        self._log_from = 0  # where in the log the running call began
        self._standing = False
        self._quiet = False  # whether it is to stand still, were there a process

    @property
    def pid(self) -> int | None:
        """The child's process id, None before the first call."""
        return self._process.pid if self._process else None

    def call(
        self,
        function: str,
        arguments: dict[str, Any],
        *,
        timeout_s: float | None = None,
        stage_timeouts: Mapping[str, float] | None = None,
        stage_memory_bytes: Mapping[str, int] | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_ask: Callable[[Event], Any] | None = None,
    ) -> Any:
        """Run "module:function" with JSON arguments and return its JSON result.

        What it emits goes to `on_event`; what it asks goes to `on_ask`, and the answer, as JSON, back (without, None).
        The time for which its last event `waits`, said again and again, and that of the answering, count towards
        neither `timeout_s` nor `stage_timeouts`, which limit the stages that it tells of, by name (one that is told of
        again goes on, unless it is another form's); `stage_memory_bytes` do so beside the limit that holds for all.
        What `on_event` and `on_ask` raise ends the process. Raises ChildDied where the process ended, took longer or
        grew larger than allowed; a BriskError raised inside as itself; any other exception as CallFailed.
        """
        process = self._start()
        watch = _Watch(timeout_s, stage_timeouts or {})
        self._log_from = self._logged()
        try:
            self._send(process, {"call": function, "arguments": arguments})
            while True:
                message = self._heard(process)
                watch.tick(counts=not self._standing)
                self._watch_memory(process, watch.stage, stage_memory_bytes or {})
                if message is None:
                    continue
                if "event" in message:
                    watch.hear(message["event"])
                    if on_event:
                        on_event(message["event"])
                elif "ask" in message:
                    self._send(process, {"answer": on_ask(message["ask"]) if on_ask else None})
                    watch.tick(counts=False)
                else:
                    break
        except BaseException:
            self._end()
            raise
        return _result(message)

    def _heard(self, process: subprocess.Popen[bytes]) -> Event | None:
        """The next message, None where there is none for a while. Raises ChildDied where there will be none."""
        dead = (
            process.poll() is not None
        )  # what it started may hold its end of the pipe: of that nothing would be heard
        try:
            message = self._messages.get(timeout=POLL_S)
        except queue.Empty:
            if not dead:
                return None
            message = None
        if message is None:
            raise ChildDied("crashed", self._autopsy(process))
        return message

    def pause(self) -> None:
        """Have the process stand still until `resume`; where there is none, none begins till then."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with self._starting:
            self._quiet = number == signal.SIGSTOP
            self._standing = self._quiet and self._process is not None
            self._starting.notify_all()
            if self._process:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the child and all it started, at once; a call that runs in another thread ends with ChildDied."""
        with self._starting:
            self._closed = True
            self._starting.notify_all()
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._starting:
            self._starting.wait_for(lambda: self._process or self._closed or not self._quiet)
            if self._closed:
                raise ChildDied("crashed", "the child was closed")
            if self._process is None:
                cores = [",".join(map(str, self._cores))] if self._cores else []
                with self._open_log() as log:
                    begun = _NURSERY.submit(
                        subprocess.Popen,
                        [sys.executable, "-P", "-m", "search.worker", str(os.getpid()), *cores],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        start_new_session=True,
                    )
                    try:
                        self._process = begun.result()
                    except OSError as error:
                        raise errors.StudyError(
                            f"a worker process cannot be started ({error}); give it memory, or leave to start "
                            "processes, or take fewer --workers"
                        ) from None
                self._messages = queue.SimpleQueue()
                threading.Thread(target=_listen, args=(self._process, self._messages), daemon=True).start()
            return self._process

    def _open_log(self) -> IO[bytes]:
        if self._log is None:
            return open(os.devnull, "ab")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return open(self._log, "ab")

    def _send(self, process: subprocess.Popen[bytes], message: Event) -> None:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died while idle: the end of its messages says so
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()

    def _watch_memory(self, process: subprocess.Popen[bytes], stage: str, by_stage: Mapping[str, int]) -> None:
        limits = {"": self._memory_limit_bytes, f" in the stage {stage}": by_stage.get(stage)}
        known = {where: limit for where, limit in limits.items() if limit is not None}
        used = _resident_bytes(process.pid) if known else 0
        for where, limit in known.items():
            if used > limit:
                sizes = f"{used / 2**20:.0f} MiB of memory{where}, over its limit of {limit / 2**20:.0f} MiB"
                raise ChildDied("memory", f"used {sizes}")

    def _autopsy(self, process: subprocess.Popen[bytes]) -> str:
        code = process.wait()
        reason = f"ended with exit code {code}" if code >= 0 else f"died by signal {-code} ({_signal_name(-code)})"
        last = self._last_words()
        return f"{reason}: {last}" if last else reason

    def _logged(self) -> int:
        """How many bytes the log has, if it is there."""
        return self._log.stat().st_size if self._log and self._log.exists() else 0

    def _last_words(self) -> str:
        """The last line of the log that was written in this call and is not part of a stack's listing."""
        if self._log is None or not self._log.exists():
            return ""
        with open(self._log, "rb") as log:
            log.seek(max(self._log_from, self._logged() - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        chatter = re.compile(r"[IW]\d{4} ")  # what libraries tell of themselves
        listing = ("Fatal Python error", "Current thread", "Thread 0x", "  ", "Extension modules", "Stack (most recent")
        told = [line.strip() for line in lines if not line.startswith(listing) and not chatter.match(line)]
        said = [line for line in told if line]
        return said[-1][:300] if said else ""

    def _end(self) -> None:
        with self._starting:
            process, self._process, self._standing = self._process, None, False
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads its own session; its meter ends when its input does
        process.wait()
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


class _Watch:
    """How long a call and its present stage have taken, less the time that does not count."""

    def __init__(self, timeout_s: float | None, stage_timeouts: Mapping[str, float]) -> None:
        self._timeout_s, self._stage_timeouts = timeout_s, stage_timeouts
        self._looked = time.monotonic()
        self._spent_s = self._stage_s = 0.0
        self.stage, self._form, self._waiting = "", None, False
        self._said = 0.0  # when it last said that it waits

    def tick(self, *, counts: bool) -> None:
        """Put down the time since the last look. Raises ChildDied where a limit is reached."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LOOK_S), now
        if not counts:
            self._said = now
        if not counts or (self._waiting and now - self._said < SILENT_S):
            return
        self._spent_s += passed
        self._stage_s += passed
        if self._timeout_s and self._spent_s > self._timeout_s:
            raise ChildDied("timeout", f"did not end within {self._timeout_s:g} s")
        limit = self._stage_timeouts.get(self.stage)
        if limit and self._stage_s > limit:
            raise ChildDied("timeout", f"{STAGE_ENDS} {self.stage} did not end within {limit:g} s")

    def hear(self, event: Event) -> None:
        """Take note of what the child says it is at."""
        self._waiting, self._said = waits(event), time.monotonic()
        begun = event.get("stage", ""), event.get("form")
        if event.get("event") == "stage" and not self._waiting and begun != (self.stage, self._form):
            (self.stage, self._form), self._stage_s = begun, 0.0  # else it only tells how far it is


def _listen(process: subprocess.Popen[bytes], messages: queue.SimpleQueue[Event | None]) -> None:
    """Pass the child's messages on; None says that there will be no more."""
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            if line.endswith(b"\n"):  # else it died in the middle of it
                messages.put(json.loads(line))
    messages.put(None)


def _result(message: Event) -> Any:
    if "error" not in message:
        return message["result"]
    error = message["error"]
    if "stage" in error:
        raise errors.CandidateError(error["stage"], error["reason"])
    if "brisk" in error:
        raise getattr(errors, error["brisk"])(error["text"])
    raise CallFailed(f"{error['type']}: {error['text']}")


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process and all that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
