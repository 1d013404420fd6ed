"""The Triton kernels on the CPU: right under the interpreter, and compiled ahead for two GPUs.

Both need a process of their own: the interpreter is switched on by an environment variable that
must be there before Triton is imported, and compiling needs it off. They start together.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the kernels need torch")
pytest.importorskip("triton", reason="the kernels need triton, which has wheels for Linux")

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
DTYPES = ("float32", "float16")
CASES = (
    "attention_heads", "attention_head_dims", "attention_window", "attention_segment",
    "attention_long", "decode_heads", "decode_splits", "decode_window", "decode_few_tokens",
    "linear_decays", "linear_groups", "linear_ssd", "linear_strong_decay", "linear_segments",
    "linear_packed", "linear_long", "linear_step",
)  # fmt: skip

MAIN_SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("attention", {"window": 1024}),
    ("decode", {}),
    ("linear", {}),
    ("step", {}),
]
# One for each branch of the configurations, and dims that leave tiles unfilled or unequal.
SHAPES: list[tuple[str, dict[str, Any]]] = [
    *(("attention", {"D": D, "window": w}) for D in (64, 128, 256) for w in (None, 1024)),
    *(("attention", {"D": D, "dtype": "float32"}) for D in (64, 128, 256)),
    ("attention", {"HKV": 1, "dtype": "float16"}),
    *(("decode", {"D": D, "B": 64}) for D in (64, 128, 256)),
    *(("decode", {"D": D, "window": 1024, "HKV": 1}) for D in (64, 256)),
    *(("decode", {"D": D, "dtype": "float32"}) for D in (64, 256)),
    *(("linear", {"K": K, "V": K}) for K in (64, 128, 256)),
    *(("linear", {"K": K, "V": K, "decay": "none"}) for K in (128, 256)),
    ("linear", {"HK": 8, "HV": 128, "V": 64, "T": 4096}),  # SSD
    ("linear", {"T": 1000}),
    ("linear", {"packed": 5}),
    ("linear", {"B": 8, "T": 4096, "decay": "constant"}),
    *(("linear", {"T": T, "dtype": "float32", "V": 64}) for T in (1000, 1024)),
]


def start(script: str, *arguments: str, interpret: bool) -> subprocess.Popen[str]:
    """A script of this folder in a new process, with the interpreter on or off."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", HERE / script, *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def output(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr[-4000:]
    return json.loads(stdout)


@pytest.fixture(scope="module")
def running() -> dict[str, subprocess.Popen[str]]:
    """The long ones, side by side: the cases in each dtype, and the main shapes compiled."""
    main_shapes = [[name, options, cap] for name, options in MAIN_SHAPES for cap in (80, 90)]
    return {
        "compile": start("compile_ahead.py", json.dumps(main_shapes), interpret=False),
        **{dtype: start("kernel_cases.py", dtype, interpret=True) for dtype in DTYPES},
    }


@pytest.fixture(scope="module")
def interpreted(running: dict[str, subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Errors of every case in both dtypes."""
    return [row for dtype in DTYPES for row in output(running[dtype])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_its_reference(
    interpreted: list[dict[str, Any]], case: str, dtype: str
) -> None:
    rows = [row for row in interpreted if row["case"] == case and row["dtype"] == dtype]
    assert rows
    assert [row for row in rows if not row["error"] <= row["limit"]] == []


def test_every_case_is_listed(interpreted: list[dict[str, Any]]) -> None:
    assert {row["case"] for row in interpreted} == set(CASES)


def assert_fits(launches: list[dict[str, Any]]) -> None:
    """No spills, shared memory within a multiprocessor's, 16-bit products on the matrix units."""
    shared_limit = {80: 166912, 90: 232448}  # CUDA C++ Programming Guide, compute capabilities
    assert launches
    assert [launch for launch in launches if launch["stack_bytes"]] == []
    assert [launch for launch in launches if launch["overwritten"]] == []
    for launch in launches:
        assert launch["shared_bytes"] <= shared_limit[launch["capability"]]
        counts = launch["instructions"]
        products = launch["kernel"] in {"flash_attention_kernel", "linear_attention_kernel"}
        if products and launch["options"].get("dtype") != "float32":
            unit = "HGMMA" if launch["capability"] >= 90 else "HMMA"
            assert counts[unit] > 0
        # The compiler waits after every matrix instruction when registers run short, and says
        # nothing where we can hear it. Then there are as many waits as instructions.
        assert counts["WARPGROUP.DEPBAR"] <= counts["HGMMA"] / 2


@pytest.fixture(scope="module")
def compiled(running: dict[str, subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """The launches of the main shapes for either GPU."""
    return output(running["compile"])


def test_main_shapes_compile_without_spills(compiled: list[dict[str, Any]]) -> None:
    assert {launch["capability"] for launch in compiled} == {80, 90}
    assert_fits(compiled)


def test_the_key_of_a_compiled_linear_kernel_holds_its_assembler(
    compiled: list[dict[str, Any]],
) -> None:
    from profiler.kernels.device import NEWEST_ASSEMBLER

    names = {
        (launch["capability"], launch["constants"].get("ASSEMBLER"))
        for launch in compiled
        if launch["kernel"] in {"linear_attention_kernel", "segment_state_kernel"}
    }
    assert names == {(80, ""), (90, NEWEST_ASSEMBLER.name)}


@pytest.fixture(scope="module")
def compiling() -> dict[int, subprocess.Popen[str]]:
    """Every shape for either GPU, the two side by side."""
    return {
        capability: start(
            "compile_ahead.py",
            json.dumps([[name, options, capability] for name, options in SHAPES]),
            interpret=False,
        )
        for capability in (80, 90)
    }


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_all_shapes_compile_without_spills(
    compiling: dict[int, subprocess.Popen[str]], capability: int
) -> None:
    launches = output(compiling[capability])
    assert {launch["wrapper"] for launch in launches} == {name for name, _ in SHAPES}
    assert_fits(launches)


def test_importable_and_clear_without_a_gpu() -> None:
    import torch

    from planner.errors import EnvironmentProblem, UsageError
    from profiler.kernels.device import INTERPRETED
    from profiler.kernels.flash_attention import flash_attention

    q = torch.zeros(1, 4, 3, 64)
    with pytest.raises(UsageError, match="a multiple of KV heads, got 3 and 2"):
        flash_attention(q, q[:, :, :2], q[:, :, :2])
    if not INTERPRETED:
        with pytest.raises(EnvironmentProblem, match="TRITON_INTERPRET=1"):
            flash_attention(q, q, q)


def test_wrong_shapes_are_named() -> None:
    import torch

    from planner.errors import UsageError
    from profiler.kernels.flash_attention import flash_attention
    from profiler.kernels.flash_decode import flash_decode
    from profiler.kernels.linear_attention import (
        chunked_linear_attention,
        linear_attention_step,
    )

    x = torch.zeros(1, 8, 2, 64)
    with pytest.raises(UsageError, match="window counts the query's own key"):
        flash_attention(x, x, x, window=0)
    with pytest.raises(UsageError, match="1 <= Tq <= Tk, got 8 and 4"):
        flash_attention(x, x[:, :4], x[:, :4])
    with pytest.raises(UsageError, match="use flash_attention"):
        flash_decode(x.repeat(1, 17, 1, 1), x.repeat(1, 17, 1, 1), x.repeat(1, 17, 1, 1))
    with pytest.raises(UsageError, match=r"log_decay must be \[Hv\] = \[2\]"):
        chunked_linear_attention(x, x, x, log_decay=torch.zeros(3))
    with pytest.raises(UsageError, match="need B = 1, got 2"):
        y = x.repeat(2, 1, 1, 1)
        chunked_linear_attention(y, y, y, cu_seqlens=torch.tensor([0, 8]))
    with pytest.raises(UsageError, match="a step takes one token, got 8"):
        linear_attention_step(x, x, x, state=torch.zeros(1, 2, 64, 64))


def test_linear_attention_on_hopper_takes_the_newest_assembler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from profiler.kernels.device import ASSEMBLER, NEWEST_ASSEMBLER, Device, newest_assembler

    hopper, ampere = (Device(capability=(major, 0), num_sms=100) for major in (9, 8))
    monkeypatch.delenv(ASSEMBLER, raising=False)
    with newest_assembler(hopper) as name:
        assert os.environ[ASSEMBLER] == str(NEWEST_ASSEMBLER)
        assert name == NEWEST_ASSEMBLER.name
    with newest_assembler(ampere) as name:
        assert ASSEMBLER not in os.environ
        assert name == ""
    monkeypatch.setenv(ASSEMBLER, "/their/ptxas")
    with newest_assembler(hopper) as name:
        assert os.environ[ASSEMBLER] == name == "/their/ptxas"
    assert os.environ[ASSEMBLER] == "/their/ptxas"


@pytest.fixture(scope="module")
def executed() -> list[dict[str, Any]]:
    """Errors of the kernels' machine code for Hopper, run on the CPU, by two assemblers."""
    return output(start("machine_code.py", interpret=False))


@pytest.mark.slow
def test_machine_code_for_hopper_is_right(executed: list[dict[str, Any]]) -> None:
    rows = [row for row in executed if row["chosen"]]
    assert len(rows) == len(executed) / 2
    assert [row for row in rows if not row["error"] <= 1e-2] == []  # bf16's in kernel_cases.py


@pytest.mark.slow
def test_the_other_assembler_is_still_wrong(executed: list[dict[str, Any]]) -> None:
    """Should this fail with a later Triton, `newest_assembler` has done its work and can go."""
    others = [row for row in executed if not row["chosen"] and row["case"].startswith("linear")]
    assert any(row["error"] > 0.1 for row in others)


def test_newest_assembler_is_past_the_one_that_is_wrong() -> None:
    from profiler.kernels.device import NEWEST_ASSEMBLER

    version = subprocess.run(
        [NEWEST_ASSEMBLER, "--version"], capture_output=True, text=True, check=True
    ).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    assert release, version
    assert (int(release[1]), int(release[2])) > (12, 8)


@pytest.mark.parametrize("programs", [1, 7, 64, 263, 264, 5000])
@pytest.mark.parametrize("tokens", [1, 63, 4096, 1 << 20])
def test_segments_cover_the_sequence_in_whole_chunks(programs: int, tokens: int) -> None:
    from profiler.kernels.device import Device
    from profiler.kernels.linear_attention import MAX_SEGMENTS, choose_segment_len

    hopper = Device(capability=(9, 0), num_sms=132)
    segment_len = choose_segment_len(hopper, programs, tokens, 64)
    segments = -(-tokens // segment_len)
    assert segment_len % 64 == 0
    assert 1 <= segments <= MAX_SEGMENTS
    assert (segments - 1) * segment_len < tokens <= segments * segment_len
    if programs >= 2 * hopper.num_sms:
        assert segments == 1


@given(
    sms=st.integers(1, 200),
    programs=st.integers(1, 10_000),
    keys=st.integers(1, 1 << 20),
    in_flight=st.integers(0, 1 << 18),
)
def test_splits_are_worth_starting(sms: int, programs: int, keys: int, in_flight: int) -> None:
    from profiler.kernels.device import Device
    from profiler.kernels.flash_decode import (
        MAX_ROUNDS,
        MAX_SPLITS,
        MIN_SPLIT_KEYS,
        choose_num_splits,
    )

    splits = choose_num_splits(Device(capability=(9, 0), num_sms=sms), programs, keys, in_flight)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or keys // splits >= MIN_SPLIT_KEYS
    assert splits == 1 or programs * splits <= MAX_ROUNDS * sms


@pytest.mark.parametrize(
    ("programs", "keys", "in_flight", "splits"),
    [
        (512, 1025, 96 * 1024, 1),  # 3.9 programs a multiprocessor, and no merge
        (64, 8192, 96 * 1024, 2),  # 128 of 132; three would leave some with one and some with two
        (8, 131072, 96 * 1024, 16),  # 128
        (8, 131072, 48 * 1024, 32),  # narrow heads: two programs a multiprocessor, 256 of 264
        (8, 1024, 96 * 1024, 4),  # as many as are long enough
        (100, 65536, 96 * 1024, 5),  # 500 of 528; up to four splits load them 76 %
        (5000, 65536, 96 * 1024, 1),
    ],
)
def test_splits_load_the_multiprocessors_alike(
    programs: int, keys: int, in_flight: int, splits: int
) -> None:
    from profiler.kernels.device import Device
    from profiler.kernels.flash_decode import choose_num_splits

    hopper = Device(capability=(9, 0), num_sms=132)
    assert choose_num_splits(hopper, programs, keys, in_flight) == splits


def test_script_helpers_load() -> None:
    """The scripts of this folder import on their own, as the GPU tests and benchmark do."""
    spec = importlib.util.spec_from_file_location("kernel_cases", HERE / "kernel_cases.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_cases"] = module
    spec.loader.exec_module(module)
    assert set(module.CASES) == set(CASES)
