"""Fixtures for the profiler's tests: one thread, no gradients, the CPU as device."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from profiler.device import Device, resolve_device


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and test machines are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cpu() -> Device:
    return resolve_device("cpu")


@pytest.fixture(scope="session")
def is_alone() -> Callable[[Path], bool]:
    """Whether a worker is alone in its turns' folder, as another one sees it."""

    def look(folder: Path) -> bool:
        with (folder / "room").open("r+") as room:
            try:
                fcntl.flock(room, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    return look
