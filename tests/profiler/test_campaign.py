"""The campaign holds all that is wanted of a GPU, and goes on from what its folder carries."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planner.store import Store
from planner.workload import MixerOp, StackOp
from profiler.campaign import jobs, parts
from profiler.device import Device
from profiler.plan import Cell, PlannedJob


@pytest.fixture(scope="module")
def on_h200(cpu: Device) -> list[PlannedJob]:
    h200 = replace(
        cpu,
        kind="cuda",
        name="NVIDIA H200",
        capability=(9, 0),
        memory_bytes=141 << 30,
        cache_bytes=60 << 20,
    )
    return jobs(h200)


def test_every_part_adds_points(on_h200: list[PlannedJob], cpu: Device) -> None:
    numbers = set(range(len(parts("bf16"))))
    assert {p.part for p in on_h200} == numbers
    assert {p.part for p in jobs(cpu)} == numbers


def test_it_holds_all_mixers_lengths_batches_ratios_and_phases(on_h200: list[PlannedJob]) -> None:
    work = [p.job.workload for p in on_h200]
    alone = [w for w in work if isinstance(w.op, MixerOp)]
    assert {w.op.family for w in work} >= {
        "full_attention", "sliding_window", "linear_attention", "lightning", "gated_deltanet",
        "kda", "mamba2", "mla", "dense", "experts", "short_convolution", "stack",
    }  # fmt: skip
    for family in ("full_attention", "mla", "gated_deltanet", "kda", "mamba2"):
        assert max(w.context for w in alone if w.op.family == family) >= 1 << 17
    assert max(w.new_tokens for w in alone) == 1 << 20
    assert {w.batch_size for w in alone if w.phase == "decode"} == {1, 8, 64, 256}
    assert {w.phase for w in alone} == {"prefill", "decode", "training"}
    assert {w.op.spec.window for w in alone if w.op.family == "sliding_window"} >= {128, 8192}
    patterns = {w.op.pattern for w in work if isinstance(w.op, StackOp)}
    assert {"F", "G", "GF", "GGGF", "GGGGGGGGGGGF", "FFGGGGGG", "GGGFFGGG"} <= patterns
    assert {"A", "K", "KKKA", "M", "MMMMMMF"} <= patterns
    assert {p.job.variant for p in on_h200} == {"", "segments=8192"}
    assert {w.op.mlp_size for w in work if isinstance(w.op, StackOp)} == {0, 14336, 21504}


def test_energy_is_measured_of_every_kernel_of_a_hybrid(on_h200: list[PlannedJob]) -> None:
    """Of graphs and warm, as its time has to be; one kernel without leaves tokens without."""
    for_energy = [p for p in on_h200 if p.energy and not p.reason]
    assert all(p.cells == (Cell("graph", "warm"),) for p in for_energy)
    uses = {(p.job.workload.op.family, p.job.workload.phase) for p in for_energy}
    assert uses == {
        ("full_attention", "prefill"), ("full_attention", "decode"),
        ("gated_deltanet", "prefill"), ("gated_deltanet", "decode"),
        ("short_convolution", "prefill"), ("short_convolution", "decode"),
        ("dense", "prefill"),
    }  # fmt: skip
    assert len(for_energy) < 60  # at 2.5 s each


def run(folder: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [
            sys.executable, "-m", "profiler.cli", "campaign", "--folder", str(folder),
            "--device", "cpu", "--time-cap", "0.001", "-q", "--json", *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_it_goes_on_from_its_folder_alone(tmp_path: Path) -> None:
    """Without budget for a point, then in full, then on a bare machine that has only the files."""
    nothing = run(tmp_path, "--part", "4", "--budget", "0")
    assert nothing["recorded"] == {} and nothing["left"]
    whole = run(tmp_path, "--part", "4")
    assert whole["recorded"] == {"ok": nothing["left"]} and whole["left"] == 0
    (tmp_path / "store.db").unlink()
    again = run(tmp_path, "--part", "4")
    assert again["recorded"] == {} and again["already_finished"] == nothing["left"]
    opened = Store.open(str(tmp_path / "store.db"), shipped=False)
    assert len(opened.points()) == nothing["left"]
    opened.forget(list(opened.points()["key"])[1:])  # as a store older than the folder's points
    opened.close()
    again = run(tmp_path, "--part", "4")
    assert again["recorded"] == {} and again["already_finished"] == nothing["left"]


def test_a_part_that_is_none(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["campaign", "--folder", str(tmp_path / "c"), "--device", "cpu", "--part", "99"]
    done = subprocess.run([sys.executable, "-m", "profiler.cli", *command], check=False)
    assert done.returncode == 2
    assert "--part must be one of" in capfd.readouterr().err
    assert not (tmp_path / "c").exists()
