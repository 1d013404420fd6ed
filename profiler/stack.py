"""A stack of blocks on silicon: norm, projections, convolution, mixer, projection, residual.

It answers one question: do layers add up? A stack one pattern period deep is timed as one and
compared with its layers, each timed as a stack of one; with an MLP behind each mixer, gated or
plain, or without. Rotary embedding and the prefill's write to the KV cache are left out; a segment
or decode step does write its keys and values, or latents, and uses its state.

A stack's provider is named by its mixers' providers in order of letter: "sdpa_cudnn+fla".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, split
from torch.nn.functional import linear, relu, rms_norm, silu, softplus

from planner.errors import UsageError
from planner.mixers import MixerSpec, get_mixer
from planner.mixers.mla import latent_elements
from planner.workload import ConvOp, MixerOp, StackOp, Workload
from profiler.device import Device
from profiler.providers import get_family
from profiler.providers.linear_attention import alibi_log_decay
from profiler.providers.recurrence import (
    RecurrentInputs,
    decay_rates,
    randn,
    step_bias,
    unit,
)
from profiler.providers.short_convolution import ConvInputs
from profiler.providers.softmax import AttentionInputs
from profiler.providers.spec import TORCH_DTYPES, Family, Inputs, Kernel, Output, Provider

EPS = 1e-6


@dataclass(frozen=True)
class Layer:
    """One block's tensors: `weights` by name, and in `cache` what earlier tokens left."""

    letter: str
    spec: MixerSpec
    weights: Mapping[str, Tensor]
    cache: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> Layer:
        return replace(
            self,
            weights={name: change(t) for name, t in self.weights.items()},
            cache={name: change(t) for name, t in self.cache.items()},
        )


@dataclass(frozen=True, kw_only=True)
class StackInputs(Inputs):
    """x [B, T, hidden] and the layers it passes through."""

    x: Tensor
    layers: tuple[Layer, ...]
    workload: Workload

    def tensors(self) -> dict[str, Tensor]:
        found = {"x": self.x}
        for i, layer in enumerate(self.layers):
            for group in (layer.weights, layer.cache):
                found |= {f"{i}.{name}": t for name, t in group.items()}
        return found

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self, x=change(self.x), layers=tuple(layer.map(change) for layer in self.layers)
        )


# Inputs


def make_inputs(workload: Workload, device: torch.device, seed: int) -> StackInputs:
    """Random weights of variance 1 over fan-in, so that activations keep their size."""
    op = workload.op
    assert isinstance(op, StackOp)
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    kinds = dict(op.kinds)
    return StackInputs(
        x=draw(workload.batch_size, workload.new_tokens, op.hidden_size),
        layers=tuple(
            Layer(
                letter=letter,
                spec=kinds[letter],
                weights=_weights(kinds[letter], op, draw, device),
                cache=_cache(kinds[letter], workload, draw),
            )
            for letter in op.pattern
        ),
        workload=workload,
    )


def _weights(spec: MixerSpec, op: StackOp, draw: Any, device: torch.device) -> dict[str, Tensor]:
    mixer, hidden_size = get_mixer(spec.mixer), op.hidden_size
    found: dict[str, Tensor] = {
        gemm.role: draw(gemm.out_features, gemm.in_features).mul_(gemm.in_features**-0.5)
        for gemm in mixer.projections(spec, hidden_size)
    }
    found["norm"] = torch.ones(hidden_size, device=device, dtype=found[next(iter(found))].dtype)
    if channels := mixer.conv_channels(spec):
        found["conv"] = draw(channels, spec.conv_size).mul_(spec.conv_size**-0.5)
    if m := op.mlp_size:
        found["mlp_norm"] = torch.ones_like(found["norm"])
        found["mlp_up"] = draw((2 if op.mlp_gated else 1) * m, hidden_size).mul_(hidden_size**-0.5)
        found["mlp_down"] = draw(hidden_size, m).mul_(m**-0.5)
    for name, rank in (("q_norm", spec.q_lora_rank), ("kv_norm", spec.kv_lora_rank)):
        if rank:
            found[name] = torch.ones(rank, device=device, dtype=found["norm"].dtype)
    H = spec.num_v_heads
    if spec.mixer in ("gated_deltanet", "mamba2", "kda"):
        found["A"] = decay_rates(draw, H)
        found["dt_bias"] = step_bias(draw, H)
    if spec.mixer == "lightning":
        found["A"] = alibi_log_decay(H, device)
    if mixer.kind == "recurrent":
        width = spec.v_head_dim
        found["out_norm"] = torch.ones(width, device=device, dtype=found["norm"].dtype)
    return found


def _cache(spec: MixerSpec, workload: Workload, draw: Any) -> dict[str, Tensor]:
    """Cached keys and values or latents with room for the new ones, or state and tail."""
    B, S, total = workload.batch_size, workload.cached_tokens, workload.context
    if S == 0:
        return {}
    if spec.mixer == "mla":
        return {"latent": draw(B, total, latent_elements(spec))}
    if get_mixer(spec.mixer).kind != "recurrent":
        return {
            "k": draw(B, total, spec.num_k_heads, spec.k_head_dim),
            "v": draw(B, total, spec.num_v_heads, spec.v_head_dim),
        }
    shape = (B, spec.num_v_heads, spec.k_head_dim, spec.v_head_dim)
    found = {"state": draw(*shape, dtype=torch.float32)}
    if channels := get_mixer(spec.mixer).conv_channels(spec):
        found["tail"] = draw(B, spec.conv_size, channels)
    return found


# Blocks: what stands before and after each mixer's kernel


@dataclass(frozen=True)
class Kernels:
    """The mixer's kernel and its convolution's, for one letter."""

    mixer: Kernel
    conv: Kernel | None


def forward(inputs: StackInputs, kernels: Mapping[str, Kernels]) -> Output:
    """All blocks, one after the other, each added to the residual stream."""
    x = inputs.x
    for layer in inputs.layers:
        y = rms_norm(x, (x.shape[-1],), layer.weights["norm"], EPS)
        x = x + BLOCKS[layer.spec.mixer](layer, y, kernels[layer.letter])
        if "mlp_norm" in layer.weights:
            x = x + mlp(layer.weights, x)
    return Output(o=x)


def mlp(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The channel mixer: gated, its gate and value in one product, or a plain squared ReLU."""
    up = linear(rms_norm(x, (x.shape[-1],), w["mlp_norm"], EPS), w["mlp_up"])
    if up.shape[-1] == w["mlp_down"].shape[-1]:
        return linear(relu(up).square(), w["mlp_down"])
    gate, value = up.chunk(2, -1)
    return linear(silu(gate) * value, w["mlp_down"])


def attention_block(layer: Layer, y: Tensor, kernels: Kernels) -> Tensor:
    spec, w = layer.spec, layer.weights
    q_size = spec.num_q_heads * spec.k_head_dim
    sizes = [
        q_size * (2 if spec.output_gate else 1),
        spec.num_k_heads * spec.k_head_dim,
        spec.num_v_heads * spec.v_head_dim,
    ]
    q, k, v = split(linear(y, w["qkv"]), sizes, dim=-1)
    gate = None
    if spec.output_gate:
        q, gate = split(q, q_size, dim=-1)
    k, v = heads(k, spec.num_k_heads), heads(v, spec.num_v_heads)
    if layer.cache:
        k, v = _appended(layer.cache["k"], k), _appended(layer.cache["v"], v)
    o = kernels.mixer(
        AttentionInputs(
            q=heads(q, spec.num_q_heads),
            k=k,
            v=v,
            scale=spec.k_head_dim**-0.5,
            window=spec.window,
        )
    ).o.flatten(2)
    return linear(o if gate is None else o * gate.sigmoid(), w["o"])


def _appended(cache: Tensor, new: Tensor) -> Tensor:
    """The cache with the new tokens written to its end, in place."""
    cache[:, -new.shape[1] :] = new
    return cache


def mla_block(layer: Layer, y: Tensor, kernels: Kernels) -> Tensor:
    """Expanded: the latents, cached ones too, become per-head keys and values. Absorbed, for a
    single new token: queries go to the latent space and outputs come back from it.

    The normed latent and the positional key are what the cache holds (DeepSeek-V2, sec. 2.1).
    """
    spec, w = layer.spec, layer.weights
    H, K, V, rank = spec.num_q_heads, spec.k_head_dim, spec.v_head_dim, spec.kv_lora_rank
    sizes = [K, spec.rope_head_dim]
    if "q" in w:
        q = linear(y, w["q"])
    else:
        q = linear(
            rms_norm(linear(y, w["q_down"]), (spec.q_lora_rank,), w["q_norm"], EPS), w["q_up"]
        )
    q = heads(q, H)
    latent, position = split(linear(y, w["kv_down"]), [rank, spec.rope_head_dim], dim=-1)
    latent = torch.cat([rms_norm(latent, (rank,), w["kv_norm"], EPS), position], -1)
    if layer.cache:
        latent = _appended(layer.cache["latent"], latent)
    scale = sum(sizes) ** -0.5
    if y.shape[1] == 1:
        key_up, value_up = split(w["kv_up"].view(H, K + V, rank), [K, V], dim=1)
        content, position = split(q, sizes, dim=-1)
        absorbed = torch.cat([torch.einsum("bthk,hkr->bthr", content, key_up), position], -1)
        shared = latent[:, :, None]
        given = AttentionInputs(q=absorbed, k=shared, v=shared[..., :rank], scale=scale)
        o = torch.einsum("bthr,hvr->bthv", kernels.mixer(given).o, value_up)
        return linear(o.flatten(2), w["o"])
    latent, position = split(latent, [rank, spec.rope_head_dim], dim=-1)
    content, v = split(heads(linear(latent, w["kv_up"]), H), [K, V], dim=-1)
    k = torch.cat([content, position[:, :, None].expand(-1, -1, H, -1)], -1)
    o = kernels.mixer(AttentionInputs(q=q, k=k, v=v, scale=scale)).o
    return linear(o.flatten(2), w["o"])


def linear_block(layer: Layer, y: Tensor, kernels: Kernels) -> Tensor:
    spec, w = layer.spec, layer.weights
    values = spec.num_v_heads * spec.v_head_dim
    keys = spec.num_k_heads * spec.k_head_dim
    sizes = [spec.num_q_heads * spec.k_head_dim, keys, values]
    parts = split(linear(y, w["qkv"]), [*sizes, values] if spec.output_gate else sizes, dim=-1)
    o = kernels.mixer(
        RecurrentInputs(
            q=heads(parts[0], spec.num_q_heads),
            k=heads(parts[1], spec.num_k_heads),
            v=heads(parts[2], spec.num_v_heads),
            scale=spec.k_head_dim**-0.5,
            log_decay=w.get("A"),
            state=layer.cache.get("state"),
        )
    ).o
    o = rms_norm(o, (spec.v_head_dim,), w["out_norm"], EPS).flatten(2)
    return linear(o * parts[3].sigmoid() if spec.output_gate else o, w["o"])


def gdn_block(layer: Layer, y: Tensor, kernels: Kernels) -> Tensor:
    spec, w = layer.spec, layer.weights
    values = spec.num_v_heads * spec.v_head_dim
    keys = (spec.num_q_heads + spec.num_k_heads) * spec.k_head_dim
    qkv, z = split(linear(y, w["qkvz"]), [keys + values, values], dim=-1)
    b, a = split(linear(y, w["ba"]), [spec.num_v_heads] * 2, dim=-1)
    q, k, v = _convolved(layer, qkv, kernels)
    o = kernels.mixer(
        RecurrentInputs(
            q=unit(q),
            k=unit(k),
            v=v,
            scale=spec.k_head_dim**-0.5,
            log_decay=w["A"] * softplus(a.to(w["A"].dtype) + w["dt_bias"]),
            beta=b.sigmoid(),
            state=layer.cache.get("state"),
        )
    ).o
    o = rms_norm(o, (spec.v_head_dim,), w["out_norm"], EPS).flatten(2)
    return linear(o * silu(z), w["o"])


def kda_block(layer: Layer, y: Tensor, kernels: Kernels) -> Tensor:
    spec, w = layer.spec, layer.weights
    rank, H = spec.v_head_dim, spec.num_v_heads
    decay, gate, b = split(linear(y, w["gates_down"]), [rank, rank, H], dim=-1)
    decay = heads(linear(decay, w["decay_up"]), spec.num_k_heads)
    q, k, v = _convolved(layer, linear(y, w["qkv"]), kernels)
    rates, bias = w["A"][:, None], w["dt_bias"][:, None]
    o = kernels.mixer(
        RecurrentInputs(
            q=unit(q),
            k=unit(k),
            v=v,
            scale=spec.k_head_dim**-0.5,
            log_decay=rates * softplus(decay.to(rates.dtype) + bias),
            beta=b.sigmoid(),
            state=layer.cache.get("state"),
        )
    ).o
    o = rms_norm(o, (spec.v_head_dim,), w["out_norm"], EPS).flatten(2)
    return linear(o * linear(gate, w["gate_up"]).sigmoid(), w["o"])


def mamba_block(layer: Layer, y: Tensor, kernels: Kernels) -> Tensor:
    spec, w = layer.spec, layer.weights
    inner = spec.num_v_heads * spec.v_head_dim
    state = spec.num_k_heads * spec.k_head_dim
    sizes = [inner, inner + 2 * state, spec.num_v_heads]
    z, xbc, dt = split(linear(y, w["in_proj"]), sizes, dim=-1)
    xbc = _convolution(layer, xbc, kernels)
    x, B, C = split(xbc, [inner, state, state], dim=-1)
    o = kernels.mixer(
        RecurrentInputs(
            q=heads(C, spec.num_q_heads),
            k=heads(B, spec.num_k_heads),
            v=heads(x, spec.num_v_heads),
            scale=1.0,
            dt=softplus(dt.to(w["A"].dtype) + w["dt_bias"]),
            A=w["A"],
            state=layer.cache.get("state"),
        )
    ).o
    o = heads(o.flatten(2) * silu(z), spec.num_v_heads)
    return linear(rms_norm(o, (spec.v_head_dim,), w["out_norm"], EPS).flatten(2), w["out_proj"])


def heads(t: Tensor, count: int) -> Tensor:
    """[B, T, count · D] to [B, T, count, D]."""
    return t.reshape(*t.shape[:2], count, t.shape[2] // count)


def _convolution(layer: Layer, x: Tensor, kernels: Kernels) -> Tensor:
    if kernels.conv is None:
        return x
    given = ConvInputs(x=x, w=layer.weights["conv"], tail=layer.cache.get("tail"))
    return kernels.conv(given).o


def _convolved(layer: Layer, qkv: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor, Tensor]:
    spec = layer.spec
    sizes = [
        spec.num_q_heads * spec.k_head_dim,
        spec.num_k_heads * spec.k_head_dim,
        spec.num_v_heads * spec.v_head_dim,
    ]
    q, k, v = split(_convolution(layer, qkv, kernels), sizes, dim=-1)
    return heads(q, spec.num_q_heads), heads(k, spec.num_k_heads), heads(v, spec.num_v_heads)


BLOCKS: dict[str, Callable[[Layer, Tensor, Kernels], Tensor]] = {
    "full_attention": attention_block,
    "sliding_window": attention_block,
    "mla": mla_block,
    "linear_attention": linear_block,
    "lightning": linear_block,
    "gated_deltanet": gdn_block,
    "kda": kda_block,
    "mamba2": mamba_block,
}


# The stack as a family of its own


def reference(inputs: StackInputs) -> Output:
    """Every block with its mixer's reference, computed in the inputs' dtype."""
    conv = get_family("short_convolution").reference
    kernels = {
        layer.letter: Kernels(
            get_family(layer.spec.mixer).reference, conv if "conv" in layer.weights else None
        )
        for layer in inputs.layers
    }
    return forward(inputs.clone(), kernels)  # its writes to the caches stay its own


def no_probe(inputs: StackInputs, output: Output, random: torch.Generator) -> None:
    """A stack has no cheap part: at length its mixers vouch for it."""


CONVOLUTION = {"cpu": "torch", "cuda": "fla"}


def provider_name(op: StackOp, by_mixer: Mapping[str, str]) -> str:
    """The stack's provider from its mixers' ones."""
    used = [spec.mixer for letter, spec in op.kinds if letter in op.pattern]
    return "+".join(by_mixer[mixer] for mixer in used)


def _named(op: StackOp, name: str) -> dict[str, tuple[MixerSpec, Provider]]:
    used = [(letter, spec) for letter, spec in op.kinds if letter in op.pattern]
    names = name.split("+")
    if len(names) != len(used):
        raise UsageError(
            f"provider of {op.short()} must name {len(used)} mixers' providers joined by +, "
            f"got {name!r}"
        )
    return {
        letter: (spec, get_family(spec.mixer).provider(part))
        for (letter, spec), part in zip(used, names, strict=True)
    }


def stack_provider(op: StackOp, name: str) -> Provider:
    """The provider that runs each letter of this stack with the one named for it."""
    named = _named(op, name)

    def limits(workload: Workload, device: Device) -> str | None:
        for spec, provider in named.values():
            part = replace(workload, op=MixerOp(spec))
            if (why := provider.unsupported(part, device)) is not None:
                return f"{spec.mixer}: {why}"
        return None

    providers = [provider for _, provider in named.values()]
    if any(get_mixer(spec.mixer).conv_channels(spec) for spec, _ in named.values()):
        kinds = [kind for kind in CONVOLUTION if all(kind in p.devices for p in providers)]
        conv = get_family("short_convolution")
        providers += [conv.provider(CONVOLUTION[kind]) for kind in kinds]
    return Provider(
        name=name,
        prepare=partial(prepare, named),
        devices=("cpu", "cuda"),
        dtypes=tuple(d for d in TORCH_DTYPES if all(d in p.dtypes for p in providers)),
        requires=tuple(dict.fromkeys(r for p in providers for r in p.requires)),
        limits=limits,
        lay_out=partial(lay_out, named),
        in_place=any(p.in_place for p in providers),
        versions={
            phase: "+".join(p.versions[phase] for p in providers if phase in p.versions)
            for phase in {phase for p in providers for phase in p.versions}
        },
    )


def lay_out(named: Mapping[str, tuple[MixerSpec, Provider]], inputs: StackInputs) -> StackInputs:
    """Every layer's state and tail in the memory order of the provider that uses it."""
    conv = _convolution_provider(inputs.x.device)
    layers = []
    for layer in inputs.layers:
        cache = dict(layer.cache)
        if (state := cache.get("state")) is not None:
            alone = RecurrentInputs(q=state, k=state, v=state, scale=1.0, state=state)
            cache["state"] = named[layer.letter][1].lay_out(alone).state
        if (tail := cache.get("tail")) is not None:
            cache["tail"] = conv.lay_out(ConvInputs(x=tail, w=tail, tail=tail)).tail
        layers.append(replace(layer, cache=cache))
    return replace(inputs, layers=tuple(layers))


def _convolution_provider(device: torch.device) -> Provider:
    return get_family("short_convolution").provider(CONVOLUTION[device.type])


def prepare(named: Mapping[str, tuple[MixerSpec, Provider]], inputs: StackInputs) -> Kernel:
    """Prepares each letter's kernels on inputs of the shapes they will see."""
    kernels = {
        letter: Kernels(
            _prepared(provider, spec, inputs),
            _prepared_convolution(spec, inputs),
        )
        for letter, (spec, provider) in named.items()
    }
    return lambda x: forward(x, kernels)


def _prepared(provider: Provider, spec: MixerSpec, inputs: StackInputs) -> Kernel:
    part = replace(inputs.workload, op=MixerOp(spec))
    return provider.prepare(get_family(spec.mixer).make_inputs(part, inputs.x.device, 0))


def _prepared_convolution(spec: MixerSpec, inputs: StackInputs) -> Kernel | None:
    channels = get_mixer(spec.mixer).conv_channels(spec)
    if not channels:
        return None
    family = get_family("short_convolution")
    part = replace(inputs.workload, op=ConvOp(channels, spec.conv_size))
    provider = _convolution_provider(inputs.x.device)
    return provider.prepare(family.make_inputs(part, inputs.x.device, 0))


STACK = Family(
    name="stack",
    make_inputs=make_inputs,
    reference=reference,
    probe=no_probe,
    providers=(),
)


def resolve(workload: Workload, provider: str) -> tuple[Family, Provider]:
    """Family and provider of any workload, stacks included.

    Raises: UnknownName for a family or provider that is not registered.
    """
    if isinstance(workload.op, StackOp):
        return STACK, stack_provider(workload.op, provider)
    family = get_family(workload.op.family)
    return family, family.provider(provider)
