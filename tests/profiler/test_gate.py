"""The gate lets right outputs through and stops wrong ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planner.mixers import MixerSpec, get_mixer
from planner.workload import MixerOp, StackOp, Workload
from profiler import gate
from profiler.device import Device
from profiler.providers import get_family
from profiler.providers.recurrence import RecurrentInputs
from profiler.providers.softmax import AttentionInputs
from profiler.providers.spec import Kernel, Output, Provider

SPEC = MixerSpec(
    mixer="full_attention",
    num_q_heads=4,
    num_k_heads=2,
    num_v_heads=2,
    k_head_dim=16,
    v_head_dim=16,
)
FULL = get_family("full_attention")


def provider(kernel: Kernel) -> Provider:
    return Provider(
        name="tested", prepare=lambda inputs: kernel, devices=("cpu",), dtypes=("fp32", "bf16")
    )


def off_by_one(x: AttentionInputs) -> Output:
    """A window one key too wide."""
    assert x.window is not None
    return FULL.reference(replace(x, window=x.window + 1))


def test_a_window_off_by_one_is_a_mismatch(cpu: Device) -> None:
    family = get_family("sliding_window")
    spec = replace(get_mixer("sliding_window").matched(SPEC, 64), window=128)
    w = Workload(op=MixerOp(spec), batch_size=1, new_tokens=4096, dtype="fp32")
    with pytest.raises(gate.Mismatch, match="relative RMS error") as stopped:
        gate.check_ragged(family, provider(off_by_one), w, cpu.torch)
    assert stopped.value.whole
    assert gate.check_ragged(family, provider(FULL.reference), w, cpu.torch).error < 1e-5


def test_nan_is_a_mismatch(cpu: Device) -> None:
    w = Workload(op=MixerOp(SPEC), batch_size=1, new_tokens=64, dtype="fp32")
    broken = provider(lambda x: Output(o=torch.full_like(x.q, float("nan"))))
    with pytest.raises(gate.Mismatch):
        gate.check_ragged(FULL, broken, w, cpu.torch)


@pytest.mark.parametrize("mixer", ["lightning", "linear_attention", "mamba2"])
def test_a_wrong_last_chunk_is_seen_in_bf16(cpu: Device, mixer: str) -> None:
    """A slow decay adds up a thousand tokens: the yardstick must not be as wrong as the kernel."""
    family = get_family(mixer)
    w = Workload(
        op=MixerOp(get_mixer(mixer).matched(SPEC, 64)), batch_size=1, new_tokens=1000, dtype="bf16"
    )

    def last_chunk_is_stale(inputs: RecurrentInputs) -> Output:
        right = family.reference(inputs)
        o = right.o.clone()
        o[:, 960:] = right.o[:, 896:936]
        return replace(right, o=o)

    with pytest.raises(gate.Mismatch):
        gate.check_ragged(family, provider(last_chunk_is_stale), w, cpu.torch)
    verdict = gate.check_ragged(family, provider(family.reference), w, cpu.torch)
    assert verdict.allowed < 0.01


@pytest.mark.parametrize("mixer", ["lightning", "linear_attention", "gated_deltanet", "mamba2"])
def test_a_state_that_is_one_percent_off_is_seen_in_bf16(cpu: Device, mixer: str) -> None:
    family = get_family(mixer)
    w = Workload(
        op=MixerOp(get_mixer(mixer).matched(SPEC, 64)), batch_size=1, new_tokens=1000, dtype="bf16"
    )

    def right_output_wrong_state(inputs: RecurrentInputs) -> Output:
        right = family.reference(inputs)
        assert right.state is not None
        return replace(right, state=right.state * 1.01)

    with pytest.raises(gate.Mismatch, match="state"):
        gate.check_ragged(family, provider(right_output_wrong_state), w, cpu.torch)


def test_low_precision_is_held_to_twice_the_references_own_error(cpu: Device) -> None:
    w = Workload(op=MixerOp(SPEC), batch_size=1, new_tokens=300, dtype="bf16")
    inputs = FULL.make_inputs(w, cpu.torch, 0)
    exact = FULL.reference(inputs.to(torch.float64)).o
    own = gate.relative_rms(FULL.reference(inputs).o, exact)
    good = gate.compare(FULL, inputs, Output(o=exact.to(torch.bfloat16)))
    assert good.passed and good.allowed == pytest.approx(2 * own)
    noise = torch.randn_like(exact) * exact.square().mean().sqrt()
    bad = gate.compare(FULL, inputs, Output(o=(exact + 3 * own * noise).to(torch.bfloat16)))
    assert not bad.passed


def test_a_late_error_is_found_in_the_part_that_is_checked(cpu: Device) -> None:
    """A recurrent kernel that forgets its state at a chunk far from the end."""
    family = get_family("linear_attention")
    spec = get_mixer("linear_attention").matched(SPEC, 64)
    w = Workload(op=MixerOp(spec), batch_size=1, new_tokens=2048, dtype="fp32")
    inputs = family.make_inputs(w, cpu.torch, 0)
    everything = slice(None)
    forgetful = family.reference(inputs.part(everything, 1024, 2048, None))
    whole = family.reference(inputs)
    wrong = Output(o=torch.cat([whole.o[:, :1024], forgetful.o], dim=1), state=forgetful.state)
    with pytest.raises(gate.Mismatch) as stopped:
        gate.check_part(family, inputs, wrong)
    assert not stopped.value.whole
    verdict = gate.check_part(family, inputs, whole)
    assert verdict is not None and verdict.error < 1e-5


@pytest.mark.parametrize(
    ("new", "cached", "batch", "expected"),
    [
        (131072, 0, 1, (1000, 0, 1)),
        (300, 0, 8, (300, 0, 2)),
        (2048, 6144, 1, (300, 700, 1)),
        (1, 131072, 64, (1, 999, 2)),
        (1, 50, 1, (1, 50, 1)),
    ],
)
def test_the_ragged_workload(
    new: int, cached: int, batch: int, expected: tuple[int, int, int]
) -> None:
    w = Workload(
        op=MixerOp(SPEC), batch_size=batch, new_tokens=new, cached_tokens=cached, dtype="fp32"
    )
    short = gate.ragged(w)
    assert (short.new_tokens, short.cached_tokens, short.batch_size) == expected
    assert short.phase == w.phase


def test_a_deep_stack_is_compared_by_a_block_of_each_kind() -> None:
    window = replace(SPEC, mixer="sliding_window", window=128)
    kinds = (("F", SPEC), ("S", window))
    deep = Workload(
        op=StackOp("SSSSSF", kinds, 64, 128), batch_size=1, new_tokens=4096, dtype="fp32"
    )
    op = gate.ragged(deep).op
    assert isinstance(op, StackOp)
    assert (op.pattern, op.kinds, op.mlp_size) == ("FS", kinds, 128)
    assert gate.compared(replace(op, pattern="FSS")) == op
    assert gate.compared(deep.op) != gate.compared(replace(op, pattern="SSS"))
    assert gate.compared(MixerOp(SPEC)) == MixerOp(SPEC)
