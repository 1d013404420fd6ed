"""Stacks: every mixer's block against the reference, decode after prefill, provider names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planner.errors import UsageError
from planner.mixers import MixerSpec, get_mixer
from planner.workload import StackOp, Workload
from profiler import gate
from profiler.device import Device
from profiler.stack import BLOCKS, STACK, provider_name, resolve

FULL = MixerSpec(
    mixer="full_attention",
    num_q_heads=4,
    num_k_heads=2,
    num_v_heads=2,
    k_head_dim=16,
    v_head_dim=16,
)
HIDDEN = 64


def stack(mixer: str, pattern: str = "xF") -> StackOp:
    letter = get_mixer(mixer).letter
    spec = get_mixer(mixer).matched(FULL, HIDDEN)
    kinds = {"F": FULL, letter: spec}
    used = pattern.replace("x", letter)
    return StackOp(used, tuple((k, kinds[k]) for k in sorted(set(used))), HIDDEN)


def providers_of(mixer: str, decode: bool) -> dict[str, str]:
    linear = "step" if decode else "chunked"
    other = "sdpa_cpu" if decode and mixer == "sliding_window" else linear
    return {mixer: other} | {"full_attention": "sdpa_cpu"}


@pytest.mark.parametrize("mixer", sorted(BLOCKS))
@pytest.mark.parametrize(("new", "cached"), [(130, 0), (40, 90), (1, 90)])
def test_every_block_agrees_with_its_reference(
    mixer: str, new: int, cached: int, cpu: Device
) -> None:
    op = stack(mixer)
    w = Workload(op=op, batch_size=2, new_tokens=new, cached_tokens=cached, dtype="fp32")
    name = provider_name(op, providers_of(mixer, new == 1))
    family, provider = resolve(w, name)
    assert provider.unsupported(w, cpu) is None
    inputs = family.make_inputs(w, cpu.torch, 0)
    output = gate.bind(provider, inputs, training=False)()
    assert gate.compare(family, inputs, output).error <= gate.EXACT_TOLERANCE


def test_an_mlp_follows_each_mixer(cpu: Device) -> None:
    """As a layer of its own: x + down(silu(gate) · up) of the normed stream."""
    plain = stack("gated_deltanet")
    w = Workload(op=replace(plain, mlp_size=48), batch_size=2, new_tokens=70, dtype="fp32")
    inputs = STACK.make_inputs(w, cpu.torch, 0)
    first, second = inputs.layers
    assert first.weights["mlp_up"].shape == (96, HIDDEN)
    x = inputs.x
    for layer in (first, second):
        bare = replace(
            layer, weights={k: t for k, t in layer.weights.items() if not k.startswith("mlp")}
        )
        x = STACK.reference(replace(inputs, x=x, layers=(bare,))).o
        normed = x / x.square().mean(-1, keepdim=True).sqrt()
        opened, up = (normed @ layer.weights["mlp_up"].T).split(48, -1)
        x = x + (opened * opened.sigmoid() * up) @ layer.weights["mlp_down"].T
    family, provider = resolve(w, provider_name(plain, providers_of("gated_deltanet", False)))
    output = gate.bind(provider, inputs, training=False)()
    assert gate.compare(family, inputs, output).error <= gate.EXACT_TOLERANCE
    assert torch.allclose(output.o, x, atol=1e-4)
    assert w.model_flops - replace(w, op=plain).model_flops == 2 * 2 * 140 * 3 * HIDDEN * 48


def test_the_gate_checks_stacks(cpu: Device) -> None:
    w = Workload(op=stack("gated_deltanet", "xxxF"), batch_size=1, new_tokens=4096, dtype="fp32")
    _, provider = resolve(w, "sdpa_cpu+chunked")
    assert gate.check_ragged(STACK, provider, w, cpu.torch).error < gate.EXACT_TOLERANCE


def test_a_stack_is_its_layers_one_after_the_other(cpu: Device) -> None:
    """Running "GF" equals running "G" and then "F" on its output, with the same weights."""
    w = Workload(op=stack("gated_deltanet"), batch_size=1, new_tokens=50, dtype="fp32")
    inputs = STACK.make_inputs(w, cpu.torch, 0)
    whole = STACK.reference(inputs).o
    x = inputs.x
    for layer in inputs.layers:
        single = STACK.make_inputs(w, cpu.torch, 0)
        x = STACK.reference(type(single)(x=x, layers=(layer,), workload=w)).o
    assert torch.allclose(whole, x, atol=1e-5)


def test_a_decode_step_writes_its_keys_to_the_cache(cpu: Device) -> None:
    w = Workload(op=stack("sliding_window", "F"), batch_size=1, new_tokens=1, cached_tokens=9,
                 dtype="fp32")  # fmt: skip
    family, provider = resolve(w, "sdpa_cpu")
    inputs = family.make_inputs(w, cpu.torch, 0)
    before = inputs.layers[0].cache["k"].clone()
    gate.bind(provider, inputs, training=False)()
    changed = (inputs.layers[0].cache["k"] != before).flatten(2).any(-1)[0]
    assert changed.tolist() == [False] * 9 + [True]


def test_a_provider_name_must_fit_the_stack() -> None:
    w = Workload(op=stack("gated_deltanet"), batch_size=1, new_tokens=8, dtype="fp32")
    with pytest.raises(UsageError, match="must name 2 mixers' providers"):
        resolve(w, "sdpa_cpu")
