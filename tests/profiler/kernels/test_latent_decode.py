"""The absorbed latent decode kernel against its definition, and compiled ahead without a GPU."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")

INTERPRETED = textwrap.dedent(
    """
    import torch
    from profiler.kernels.latent_decode import latent_decode

    torch.manual_seed(0)
    for B, S, H, lora, rope, splits in [
        (2, 63, 5, 32, 8, 1), (1, 200, 32, 64, 16, 3), (1, 1000, 17, 48, 24, 4),
        (2, 1, 4, 32, 8, 2), (1, 70, 3, 512, 64, 2),
    ]:
        q = torch.randn(B, 1, H, lora + rope)
        cache = torch.randn(B, S, 1, lora + rope)
        found = latent_decode(q, cache, lora=lora, scale=0.1, num_splits=splits)
        scores = torch.einsum("bhd,bsd->bhs", q[:, 0].double(), cache[:, :, 0].double()) * 0.1
        wanted = scores.softmax(-1) @ cache[:, :, 0, :lora].double()
        error = (found[:, 0].double() - wanted).norm() / wanted.norm()
        assert error < 1e-5, (B, S, H, lora, rope, splits, float(error))
    """
)

COMPILED = [
    *(["latent", {"H": heads, "B": 64}, 90] for heads in (32, 64, 128)),
    ["latent", {"H": 32}, 80],
    *(["attention", {"D": 192, "DV": 128, "HKV": 32}, capability] for capability in (80, 90)),
]


@pytest.mark.slow
def test_it_is_exact(python: Callable[..., str]) -> None:
    python("-c", INTERPRETED, interpret=True)


@pytest.mark.slow
def test_it_and_the_expanded_prefill_compile_without_spills(python: Callable[..., str]) -> None:
    script = Path(__file__).parent / "compile_ahead.py"
    launches = json.loads(python(str(script), json.dumps(COMPILED), interpret=False))
    assert [launch for launch in launches if launch["stack_bytes"]] == []
    for launch in launches:
        shared_limit = {80: 166912, 90: 232448}[launch["capability"]]
        assert launch["shared_bytes"] <= shared_limit
        if launch["kernel"] == "latent_decode_kernel":
            counts = launch["instructions"]
            assert counts["HMMA"] + counts["HGMMA"] > 0
