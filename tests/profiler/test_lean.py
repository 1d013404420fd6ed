"""Measuring needs nothing beyond torch, the store and the command line's own packages."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ABSENT = (
    "altair", "streamlit", "jinja2", "scipy", "platformdirs", "psutil", "yaml", "pyarrow",
    "vl_convert", "matplotlib", "hypothesis", "pytest",
)  # fmt: skip

BLOCKER = textwrap.dedent(
    f"""
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {ABSENT!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Absent())
    """
)


@pytest.mark.slow
def test_a_run_works_without_the_planners_other_packages(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    run = subprocess.run(
        [
            sys.executable, "-m", "profiler.cli", "run", "--device", "cpu", "--shape", "tiny",
            "--mixers", "full_attention", "--lengths", "32", "--ratios", "0:1",
            "--time-cap", "0.02", "--store", str(tmp_path / "s.db"), "-q", "--json",
        ],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert '"ok"' in run.stdout
