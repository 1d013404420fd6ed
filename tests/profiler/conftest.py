"""Fixtures for the profiler's tests: one thread, no gradients, the CPU as device."""

from __future__ import annotations

from collections.abc import Iterator

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
