"""Our convolution against the provider's reference under the interpreter, and compiled ahead."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from planner.errors import UsageError

pytest.importorskip("triton")

INTERPRETED = textwrap.dedent(
    """
    import itertools
    import torch
    from profiler.providers.short_convolution import ConvInputs, SHORT_CONVOLUTION, reference

    kernel = SHORT_CONVOLUTION.provider("triton").prepare
    torch.manual_seed(0)
    limits = {torch.float32: 1e-5, torch.float16: 2e-3}
    shapes = [(2, 1, 40), (1, 3, 300), (2, 31, 128), (1, 65, 130), (3, 200, 72)]
    cases = itertools.product(shapes, (2, 4), (False, True), (False, True), limits)
    for (B, T, C), W, tailed, apart, dtype in cases:
        x, w = torch.randn(B, T, C, dtype=dtype), torch.randn(C, W, dtype=dtype)
        w = w.T.contiguous().T if apart else w
        tail = torch.randn(B, W, C, dtype=dtype) if tailed else None
        inputs = ConvInputs(x=x, w=w, tail=tail)
        wanted = reference(inputs.to(torch.float64)).o
        shifted = None if tail is None else torch.cat([tail, x], 1)[:, -W:].clone()
        found = kernel(inputs)(inputs).o.double()
        error = float((found - wanted).norm() / wanted.norm())
        assert error <= limits[dtype], (B, T, C, W, tailed, dtype, error)
        if T == 1 and tailed:
            assert torch.equal(tail, shifted), (B, C, W)
    """
)


@pytest.mark.slow
def test_it_equals_its_reference_and_moves_the_tail(python: Callable[..., str]) -> None:
    python("-c", INTERPRETED, interpret=True)


@pytest.mark.slow
def test_it_compiles_without_spills_and_reads_wide(python: Callable[..., str]) -> None:
    """bf16 channels lie side by side: 16 bytes a thread in prefills, 8 in a step's tile."""
    script = Path(__file__).parent / "compile_ahead.py"
    cases = [
        ["convolution", {"C": C, "tailed": tailed}, capability]
        for capability in (80, 90)
        for C in (8192, 10240)
        for tailed in (False, True)
    ] + [["convolution_step", {"C": 10240}, capability] for capability in (80, 90)]
    launches = json.loads(python(str(script), json.dumps(cases), interpret=False))
    assert len(launches) == len(cases)
    assert [launch for launch in launches if launch["stack_bytes"]] == []
    for launch in launches:
        wide, count = ("LDG.E.64", 8) if "step" in launch["kernel"] else ("LDG.E.128", 8)
        assert launch["instructions"][wide] >= count, launch  # a row and a weight for each tap


@pytest.mark.parametrize(
    ("x", "w", "tail", "said"),
    [
        ((2, 3, 8), (7, 4), None, "w [C, W]"),
        ((2, 3), (3, 4), None, "x must be [B, T, C]"),
        ((2, 3, 8), (8, 4), (2, 3, 8), "tail must be [2, 4, 8]"),
    ],
)
def test_what_does_not_fit_is_named(
    x: tuple[int, ...], w: tuple[int, ...], tail: tuple[int, ...] | None, said: str
) -> None:
    import torch

    from profiler.kernels.short_convolution import short_convolution

    with pytest.raises(UsageError, match=re.escape(said)):
        short_convolution(
            torch.zeros(x), torch.zeros(w), tail=None if tail is None else torch.zeros(tail)
        )
