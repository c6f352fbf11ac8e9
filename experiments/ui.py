"""`brisk ui`: MLflow's server on the study's store, for as long as somebody looks, opened on the study's front."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.publish import store
from search.history import read
from search.tracking import MLFLOW_SETTINGS, pages_of
from spaces.errors import StudyError

START_S = 120.0  # a loaded machine takes half a minute
STOP_S = 10.0


def serve(
    home: Path,
    study: str,
    port: int | None = None,
    open_browser: bool = True,
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C.

    A study that is kept on a tracking server has its page there: it is named, and nothing is started. Raises StudyError
    where the study is a rehearsal, MLflow has nothing of it or cannot be read, the port is taken, or the server does
    not start.
    """
    history = read(home, study)
    if history.plan.rehearsal:
        raise StudyError(f"{study}: its figures are invented, and MLflow holds none; see `brisk show {study}`")
    tracking = history.plan.tracking
    uri, artifacts = store(home, tracking)

    def tell(address: str, pages: tuple[str, str]) -> None:
        say(f"the front of {study}: {address}{pages[0]}")
        say(f"the same, drawn: {address}{pages[1]}")
        if open_browser and _has_screen():
            webbrowser.open(address + pages[0])

    if tracking.startswith(("http://", "https://")):
        tell(tracking.rstrip("/"), _pages(uri, study, history.id, artifacts))
        return
    if not tracking and not (home / "mlflow.db").is_file():
        raise StudyError(f"{home} holds no MLflow store yet; `brisk sync {study}` makes it from the study")
    port = free_port(port)
    log = home / "mlflow-server.log"
    address = f"http://127.0.0.1:{port}"
    with _interruptible(), _server(home, uri, artifacts, port, log) as server:
        say("starting MLflow ...")
        pages = _pages(uri, study, history.id, artifacts)
        _await(server, address, log)
        tell(address, pages)
        say("Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()


def _pages(uri: str, study: str, identity: str, artifacts: str) -> tuple[str, str]:
    try:
        pages = pages_of(uri, study, identity, artifacts)
    except Exception as error:  # whatever MLflow raises
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise StudyError(f"MLflow at {uri} cannot be read: {why}; mend that and try again") from None
    if pages is None:
        raise StudyError(f"MLflow at {uri} has nothing of a study {study!r}; `brisk sync {study}` sends it")
    return pages


def free_port(wanted: int | None = None) -> int:
    """`wanted` if nothing listens there, else any free port of the loopback; raises StudyError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            why = f"port {wanted} cannot be used: {error.strerror}"
            raise StudyError(f"{why}; leave --port out for a free one") from None
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _server(home: Path, uri: str, artifacts: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server in a process group of its own, ended with all its children on the way out."""
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--default-artifact-root", artifacts] if artifacts else []
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, env={**MLFLOW_SETTINGS, **os.environ}, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            start_new_session=True, cwd=home,
        )  # fmt: skip
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):  # whatever of its children stayed
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _await(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.2)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    why = "".join(last) or "it said nothing"
    raise StudyError(f"MLflow's server did not start: {why}; the whole story is in {log}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A polite request to end (SIGTERM) ends like Ctrl-C, with the server."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_screen() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
