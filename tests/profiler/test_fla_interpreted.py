"""fla's recurrent and chunked kernels, through our providers, interpreted by Triton in fp32.

The interpreter has to be on before Triton is imported, so each runs in a process of its own. Tuned
kernels ask a driver to time their configurations; a stand-in calls all of them equally fast, so
that the first is taken. The chunked ones call `.to` on a loop's index, which the compiler makes a
tensor and the interpreter leaves a plain int: theirs is an int that has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("fla")

SETUP = textwrap.dedent(
    """
    import importlib, sys, warnings
    warnings.simplefilter("ignore")
    import torch
    from dataclasses import replace
    from planner.mixers import MixerSpec
    from planner.workload import MixerOp, Workload
    from profiler import gate
    from profiler.providers import get_family

    import fla.ops.simple_gla  # before there is a driver: it asks what the device can do
    from triton.runtime import driver

    class AllEquallyFast:
        def get_benchmarker(self):
            return lambda call, quantiles: [0.0 for _ in quantiles]

    driver.set_active(AllEquallyFast())
    torch.set_grad_enabled(False)
    mixer = sys.argv[1]
    spec = MixerSpec(mixer=mixer, num_q_heads=2, num_k_heads=2,
                     num_v_heads=4 if mixer in ("gated_deltanet", "mamba2") else 2,
                     k_head_dim=32, v_head_dim=32)
    family = get_family(mixer)
    """
)

DECODE = textwrap.dedent(
    """
    work = Workload(op=MixerOp(spec), batch_size=2, new_tokens=1, cached_tokens=9, dtype="fp32")
    inputs = family.make_inputs(work, torch.device("cpu"), 0)
    worst = 0.0
    for step in range(3):
        output = family.provider("fla").prepare(inputs)(inputs)
        worst = max(worst, gate.compare(family, inputs, output).error)
        inputs = replace(family.make_inputs(work, torch.device("cpu"), step), state=output.state)
    print(worst)
    """
)

CHUNKED = textwrap.dedent(
    """
    class Index(int):
        def to(self, dtype):
            return self

    for name in ("chunk_h", "chunk_delta_h"):
        module = importlib.import_module("fla.ops.common." + name)
        module.range = lambda *ends: map(Index, range(*ends))

    worst = 0.0
    for cached in (0, 9):
        work = Workload(op=MixerOp(spec), batch_size=2, new_tokens=70, cached_tokens=cached,
                        dtype="fp32")
        inputs = family.make_inputs(work, torch.device("cpu"), 0)
        output = family.provider("fla").prepare(inputs)(inputs)
        worst = max(worst, gate.compare(family, inputs, output).error)
    print(worst)
    """
)

MIXERS = ("gated_deltanet", "kda", "linear_attention", "lightning", "mamba2")


def interpreted(script: str, mixer: str) -> float:
    """The largest error that the script prints at its end, run in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", SETUP + script, mixer],
        env=os.environ | {"TRITON_INTERPRET": "1", "FLA_DISABLE_BACKEND_DISPATCH": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return float(run.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_fused_recurrent_decode_agrees_with_the_reference(mixer: str) -> None:
    """Three decode steps, each from the state that the last one left; grouped values where the
    mixer has them."""
    assert interpreted(DECODE, mixer) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_chunked_prefill_agrees_with_the_reference(mixer: str) -> None:
    """A whole chunk of 64 tokens and a ragged one, from nothing and from a state."""
    assert interpreted(CHUNKED, mixer) <= 1e-4
