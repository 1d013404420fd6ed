"""Kernels are interpreted or compiled in processes of their own: Triton decides when imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def python() -> Callable[..., str]:
    """What a Python process prints, with Triton's interpreter on or off."""

    def run(*arguments: str, interpret: bool) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run
