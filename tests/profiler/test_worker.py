"""The process that runs a provider: what it lets go of."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import pytest
import torch

from profiler.device import resolve_device
from profiler.measure.timing import Limits, NotCapturable
from profiler.protocol import Failed, Measure
from profiler.worker import Server, serve


class OneRequest:
    """A pipe that brings one request and ends."""

    def __init__(self, request: object) -> None:
        self.requests = deque([request])
        self.replies: list[object] = []

    def recv(self) -> object:
        if not self.requests:
            raise EOFError
        return self.requests.popleft()

    def send(self, reply: object) -> None:
        self.replies.append(reply)


def test_what_a_failure_came_from_holds_no_tensors_when_memory_is_cleared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error in a graph's capture is raised from that of the call, whose frames hold copies."""
    tensors: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def capture() -> None:
        tensor = torch.ones(8)
        tensors.append(weakref.ref(tensor))
        raise RuntimeError("CUDA out of memory")

    def answer(_: Server, __: object) -> None:
        try:
            capture()
        except RuntimeError as error:
            raise NotCapturable("CUDA out of memory") from error

    def release(_: Server, **__: object) -> None:
        alive.append(tensors[0]() is not None)

    monkeypatch.setattr(Server, "answer", answer)
    monkeypatch.setattr(Server, "release", release)
    pipe: Any = OneRequest(Measure(mode="graph", cache="cold", limits=Limits()))
    serve(pipe, resolve_device("cpu"))
    (reply,) = pipe.replies
    assert isinstance(reply, Failed) and "out of memory" in reply.reason
    assert alive == [False]
