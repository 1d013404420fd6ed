"""The Triton kernels on a GPU: every case in bf16, fp16 and fp32, and offsets past 2**31."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def load_cases() -> ModuleType:
    """The references and cases that the CPU tests run under the interpreter."""
    path = Path(__file__).parents[1] / "profiler" / "kernels" / "kernel_cases.py"
    spec = importlib.util.spec_from_file_location("kernel_cases", path)
    assert spec and spec.loader
    module = sys.modules["kernel_cases"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    pytest.importorskip("triton")
    return load_cases()


CASES = (
    "attention_heads", "attention_head_dims", "attention_window", "attention_segment",
    "attention_long", "decode_heads", "decode_splits", "decode_window", "decode_few_tokens",
    "linear_decays", "linear_groups", "linear_ssd", "linear_strong_decay", "linear_segments",
    "linear_packed", "linear_long", "linear_step",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_kernel_equals_its_reference(cases: ModuleType, case: str, dtype: str) -> None:
    rows = cases.check(case, getattr(torch, dtype), "cuda", small=False)
    assert [row for row in rows if not row["error"] <= row["limit"]] == []


def test_attention_offsets_past_int32(cases: ModuleType) -> None:
    errors = cases.check_large_attention()
    assert max(errors.values()) <= cases.LIMITS[torch.bfloat16]


def test_linear_offsets_past_int32(cases: ModuleType) -> None:
    errors = cases.check_large_linear()
    assert max(errors.values()) <= cases.LIMITS[torch.bfloat16]
