"""The parent's side of the workers: start, ask, notice death, end.

A `Handle` is one worker. `Pool` keeps one per (operation family, provider) and starts a fresh one
where the last has died. Workers are started from the main thread only: the parent-death signal
follows the thread that started them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO

from planner.store.records import Outcome
from profiler.device import Device
from profiler.measure.environment import worker_environment
from profiler.protocol import Failed, Hello, Reply, Request, Start

START_LIMIT_S = 180.0
GRACE_S = 2.0


@dataclass
class Handle:
    """One worker process and the pipe to it."""

    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]
    import_s: float | None = None
    asked_at: float | None = None
    limit_s: float = START_LIMIT_S
    used_at: float = field(default_factory=time.monotonic)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: Request, limit_s: float) -> None:
        """Sends a request; `collect` gets its reply."""
        self.asked_at = self.used_at = time.monotonic()
        self.limit_s = limit_s
        with suppress(OSError):  # it has died: collecting the reply says how
            self.connection.send(request)

    @property
    def overdue(self) -> bool:
        return self.asked_at is not None and time.monotonic() - self.asked_at > self.limit_s

    def collect(self) -> Reply:
        """The reply to the last request, waiting for it no longer than its limit.

        A worker that dies or stays silent is ended and answers with Failed.
        """
        assert self.asked_at is not None
        left = max(0.0, self.asked_at + self.limit_s - time.monotonic())
        try:
            if not self.connection.poll(left):
                self.end()
                reason = f"no answer within {self.limit_s:.0f} s"
                return Failed(outcome=Outcome.TIMEOUT, reason=reason, fatal=True)
            reply: Reply = self.connection.recv()
        except (EOFError, OSError):
            return self._obituary()
        self.asked_at = None
        self.used_at = time.monotonic()
        if isinstance(reply, Failed) and reply.fatal:
            self.end()
        return reply

    def _obituary(self) -> Failed:
        try:
            code = self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.end()
            code = self.process.returncode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {-code} ({signal.Signals(-code).name})"
        said = self.last_words()
        self.end()
        return Failed(
            outcome=Outcome.ERROR,
            reason=f"the worker died: {how}" + (f"; {said}" if said else ""),
            fatal=True,
        )

    def last_words(self) -> str:
        """The last line the worker wrote to stderr."""
        self.log.flush()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""

    def end(self) -> None:
        if self.alive:
            self.process.kill()
        self.process.wait()
        self.connection.close()
        if not self.log.closed:
            self.log.close()


def start(device: Device, turns: Path | None) -> Handle:
    """Starts a worker; its Hello is collected later, so that several can import at once."""
    ours, theirs = socket.socketpair()
    log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "profiler.spawned",
            str(theirs.fileno()),
            str(os.getpid()),
            repr(time.time()),
        ],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=worker_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    theirs.close()
    handle = Handle(process, Connection(ours.detach()), log)
    handle.ask(Start(device=device, turns=turns), START_LIMIT_S)
    return handle


WorkerKey = tuple[str, str]


class Pool:
    """Workers by key, at most `size`; the one longest unused makes room."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.size = size
        self.handles: dict[WorkerKey, Handle] = {}
        self._folder = (
            tempfile.TemporaryDirectory(prefix="attn-turns-") if device.kind == "cuda" else None
        )

    @property
    def turns(self) -> Path | None:
        """Where workers that share a GPU keep their turns."""
        return Path(self._folder.name) if self._folder else None

    @property
    def has_room(self) -> bool:
        return len(self.handles) < self.size

    def start(self, key: WorkerKey) -> Handle:
        """A live worker, perhaps still importing."""
        handle = self.handles.get(key)
        if handle is not None and handle.alive:
            return handle
        idle = [k for k, h in self.handles.items() if h.asked_at is None or not h.alive]
        if idle and not self.has_room:
            self.end(min(idle, key=lambda k: self.handles[k].used_at))
        self.handles[key] = start(self.device, self.turns)
        return self.handles[key]

    def get(self, key: WorkerKey) -> Handle | Failed:
        """A worker that has said hello, or why there is none."""
        handle = self.start(key)
        return handle if handle.import_s is not None else self.greet(key)

    def greet(self, key: WorkerKey) -> Handle | Failed:
        handle = self.handles[key]
        reply = handle.collect()
        if isinstance(reply, Hello):
            handle.import_s = reply.import_s
            return handle
        assert isinstance(reply, Failed)
        self.end(key)
        return reply

    def replying(self, keys: list[WorkerKey], timeout_s: float) -> list[WorkerKey]:
        """Those of the workers that have answered, died or run out of time."""
        by_connection = {self.handles[k].connection: k for k in keys}
        ready = wait(list(by_connection), timeout_s)
        found = [by_connection[c] for c in ready]  # type: ignore[index]
        return found + [k for k in keys if k not in found and self.handles[k].overdue]

    def end(self, key: WorkerKey) -> None:
        handle = self.handles.pop(key, None)
        if handle is not None:
            handle.end()

    def close(self) -> None:
        for key in list(self.handles):
            self.end(key)
        if self._folder:
            self._folder.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
