"""Stacks: every mixer's block against the reference, decode after prefill, provider names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from planner.errors import UsageError
from planner.mixers import MixerSpec, get_mixer
from planner.workload import StackOp, Workload
from profiler import gate
from profiler.device import Device
from profiler.providers import get_family
from profiler.providers.spec import Provider
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


LATENT = MixerSpec(
    mixer="mla",
    num_q_heads=4,
    num_k_heads=4,
    num_v_heads=4,
    k_head_dim=16,
    v_head_dim=24,
    kv_lora_rank=32,
    rope_head_dim=8,
)


def stack(mixer: str, pattern: str = "xF") -> StackOp:
    letter = get_mixer(mixer).letter
    spec = get_mixer(mixer).matched(FULL, HIDDEN)
    kinds = {"F": FULL, letter: spec}
    used = pattern.replace("x", letter)
    return StackOp(used, tuple((k, kinds[k]) for k in sorted(set(used))), HIDDEN)


def providers_of(mixer: str, decode: bool) -> dict[str, str]:
    linear = "step" if decode else "chunked"
    other = "sdpa_cpu" if decode and mixer == "sliding_window" else linear
    return {mixer: other} | {"full_attention": "sdpa_cpu", "mla": "sdpa_math_cpu"}


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


def latent_stack(pattern: str = "KA", q_lora_rank: int = 0) -> StackOp:
    kda = get_mixer("kda").matched(FULL, HIDDEN)
    mla = replace(LATENT, q_lora_rank=q_lora_rank)
    return StackOp(pattern, tuple(k for k in (("A", mla), ("K", kda)) if k[0] in pattern), HIDDEN)


@pytest.mark.parametrize("q_lora_rank", [0, 12])
@pytest.mark.parametrize(("new", "cached"), [(130, 0), (1, 0), (40, 90), (1, 90)])
def test_a_latent_block_agrees_with_its_reference(
    q_lora_rank: int, new: int, cached: int, cpu: Device
) -> None:
    """Values narrower than keys, as Kimi Linear's blocks: KDA below, MLA above."""
    op = latent_stack("KKKA", q_lora_rank)
    w = Workload(op=op, batch_size=2, new_tokens=new, cached_tokens=cached, dtype="fp32")
    name = provider_name(op, providers_of("kda", new == 1 and cached > 0))
    family, provider = resolve(w, name)
    assert provider.unsupported(w, cpu) is None
    inputs = family.make_inputs(w, cpu.torch, 0)
    output = gate.bind(provider, inputs, training=False)()
    assert gate.compare(family, inputs, output).error <= gate.EXACT_TOLERANCE


def latent_layer(w: Mapping[str, Tensor], spec: MixerSpec, x: Tensor) -> tuple[Tensor, Tensor]:
    """The layer by DeepSeek-V2's equations, head by head in fp64: what it adds, what it caches."""
    w = {name: t.double() for name, t in w.items()}
    y = normed(x.double())
    K, V, rope, rank = spec.k_head_dim, spec.v_head_dim, spec.rope_head_dim, spec.kv_lora_rank
    q = normed(y @ w["q_down"].T) @ w["q_up"].T if spec.q_lora_rank else y @ w["q"].T
    down = y @ w["kv_down"].T
    latent, shared = normed(down[..., :rank]), down[..., rank:]
    later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    out = []
    for h in range(spec.num_q_heads):
        query = q[..., h * (K + rope) : (h + 1) * (K + rope)]
        rows = w["kv_up"][h * (K + V) : (h + 1) * (K + V)]
        keys, values = latent @ rows[:K].T, latent @ rows[K:].T
        content = query[..., :K] @ keys.mT
        scores = (content + query[..., K:] @ shared.mT) * (K + rope) ** -0.5
        out.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ values)
    return torch.cat(out, -1) @ w["o"].T, torch.cat([latent, shared], -1)


def normed(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("q_lora_rank", [0, 12])
@pytest.mark.parametrize("new", [37, 5, 1])
def test_a_latent_layer_is_its_equations_expanded_and_absorbed(
    q_lora_rank: int, new: int, cpu: Device
) -> None:
    """All 37 tokens at once, the last 5 as a segment, the last one as a decode step."""
    w = Workload(op=latent_stack("A", q_lora_rank), batch_size=2, new_tokens=37, dtype="fp64")
    inputs = STACK.make_inputs(w, cpu.torch, 0)
    (layer,) = inputs.layers
    added, cache = latent_layer(layer.weights, layer.spec, inputs.x)
    last = replace(w, new_tokens=new, cached_tokens=37 - new)
    written = cache.clone()
    written[:, 37 - new :] = 0
    layer = replace(layer, cache={"latent": written} if new < 37 else {})
    x = inputs.x[:, 37 - new :]
    given = replace(inputs, x=x, layers=(layer,), workload=last)
    _, provider = resolve(last, "sdpa_math_cpu")
    output = gate.bind(provider, given, training=False)()
    assert torch.allclose(output.o, x + added[:, 37 - new :], atol=1e-5)
    assert new == 37 or torch.allclose(written, cache, atol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_a_plain_mlp_is_a_squared_relu(gated: bool, cpu: Device) -> None:
    """Nemotron-H's: x + down(relu(up)^2) of the normed stream; two products of three."""
    bare = stack("mamba2")
    op = replace(bare, mlp_size=48, mlp_gated=gated)
    w = Workload(op=op, batch_size=2, new_tokens=70, dtype="fp32")
    inputs = STACK.make_inputs(w, cpu.torch, 0)
    rows = inputs.layers[0].weights["mlp_up"].shape[0]
    products = 3 if gated else 2
    assert rows == (products - 1) * 48
    added = w.model_flops - replace(w, op=bare).model_flops
    assert added == 2 * 2 * 140 * products * HIDDEN * 48
    family, provider = resolve(w, provider_name(op, providers_of("mamba2", False)))
    output = gate.bind(provider, inputs, training=False)()
    assert gate.compare(family, inputs, output).error <= gate.EXACT_TOLERANCE
    if gated:
        return
    x = inputs.x
    for layer in inputs.layers:
        kept = {k: t for k, t in layer.weights.items() if not k.startswith("mlp")}
        x = STACK.reference(replace(inputs, x=x, layers=(replace(layer, weights=kept),))).o
        up = normed(x) @ layer.weights["mlp_up"].T
        x = x + (up * up.clamp(min=0)) @ layer.weights["mlp_down"].T
    assert torch.allclose(output.o, x, atol=1e-4)


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


def test_a_stack_has_the_versions_and_needs_of_its_convolution_too() -> None:
    """So it is measured again when that changes: a step of Gated DeltaNet has no version."""

    def provider_of(mixer: str, name: str, pattern: str = "xF") -> Provider:
        w = Workload(op=stack(mixer, pattern), batch_size=1, new_tokens=1, cached_tokens=9,
                     dtype="bf16")  # fmt: skip
        return resolve(w, name)[1]

    conv = get_family("short_convolution").provider("fla")
    assert "decode" not in get_family("gated_deltanet").provider("fla").versions
    hybrid = provider_of("gated_deltanet", "sdpa_cudnn+fla")
    assert hybrid.versions["decode"] == conv.versions["decode"]
    by_mamba = provider_of("mamba2", "mamba_ssm", "x")
    assert set(conv.requires) < set(by_mamba.requires)
    assert not provider_of("gated_deltanet", "step", "x").requires  # a CPU's needs nothing
    windowed = provider_of("sliding_window", "sdpa_cudnn", "F")
    assert "decode" not in windowed.versions and not windowed.in_place
