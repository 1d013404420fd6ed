"""What full, windowed and latent attention share on silicon: inputs, reference, probe, SDPA.

Inputs hold the cached keys and values followed by the new ones, as a KV cache does. Queries sit
at the last T positions unless `positions` says otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from planner.units import bytes_text
from planner.workload import MixerOp, Workload, dtype_bytes
from profiler.device import Device
from profiler.providers.spec import (
    NEEDS_TRITON,
    TORCH_DTYPES,
    Inputs,
    Kernel,
    Output,
    Provider,
)

PROBE_ROWS = 64
"""Query rows checked at the timed length: the gate's own number."""


@dataclass(frozen=True, kw_only=True)
class AttentionInputs(Inputs):
    """q [B, T, Hq, K], k [B, S + T, Hkv, K], v [B, S + T, Hkv, V]; `window` counts the query.

    `positions` [T] are the queries' places among the keys; without it they are the last T.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    window: int | None = None
    positions: Tensor | None = None

    def copies(self, n: int) -> list[Self]:
        """Caches of a step that sees a part of one lie a window apart in one piece of memory: n of
        1M tokens have no room. Sequences follow each other there, so a window's keys are read by
        one copy alone as long as n windows fit into a sequence."""
        if (window := self._window_apart(n)) is None:
            return super().copies(n)
        B, S = self.k.shape[:2]
        more = (n - 1) * window
        k, v = (
            torch.cat([t.flatten(0, 1), t.flatten(0, 1)[-window:].repeat(n - 1, 1, 1)])
            for t in (self.k, self.v)
        )
        starts = range(0, more + 1, window)
        return [
            replace(
                self,
                q=self.q.clone(),
                k=k[at : at + B * S].view(self.k.shape),
                v=v[at : at + B * S].view(self.v.shape),
            )
            for at in starts
        ]

    def copies_bytes(self, n: int) -> int:
        if (window := self._window_apart(n)) is None:
            return super().copies_bytes(n)
        q_bytes = self.q.numel() * self.q.element_size()
        token_bytes = sum(t[:1, :1].numel() * t.element_size() for t in (self.k, self.v))
        return n * q_bytes + (self.k.shape[0] * self.num_keys + (n - 1) * window) * token_bytes

    def _window_apart(self, n: int) -> int | None:
        """The window, where n copies of a step can share one cache and none of what they read."""
        step = self.num_queries == 1 and self.positions is None
        window = self.window
        if not step or window is None or window >= self.num_keys:
            return None
        if not (self.k.is_contiguous() and self.v.is_contiguous()):
            return None
        alone = self.k.shape[0] == 1  # nothing follows, so the memory just grows
        return window if alone or n * window <= self.num_keys else None

    @property
    def num_queries(self) -> int:
        return self.q.shape[1]

    @property
    def num_keys(self) -> int:
        return self.k.shape[1]


def generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def make_inputs(workload: Workload, device: torch.device, seed: int) -> AttentionInputs:
    """Standard normal q, k and v: what a query-key norm and RoPE leave, up to rotation."""
    assert isinstance(workload.op, MixerOp)
    spec, B = workload.op.spec, workload.batch_size
    T, total = workload.new_tokens, workload.context
    random = partial(
        torch.randn,
        generator=generator(device, seed),
        device=device,
        dtype=TORCH_DTYPES[workload.dtype],
    )
    return AttentionInputs(
        q=random(B, T, spec.num_q_heads, spec.k_head_dim),
        k=random(B, total, spec.num_k_heads, spec.k_head_dim),
        v=random(B, total, spec.num_v_heads, spec.v_head_dim),
        scale=spec.k_head_dim**-0.5,
        window=spec.window,
    )


def visible(inputs: AttentionInputs) -> Tensor:
    """[T, S + T] bool: the key is not after the query and at most window - 1 before it."""
    device = inputs.q.device
    T, S = inputs.num_queries, inputs.num_keys
    at = (
        inputs.positions if inputs.positions is not None else torch.arange(S - T, S, device=device)
    )
    distance = at[:, None] - torch.arange(S, device=device)[None, :]
    seen = distance >= 0
    return seen if inputs.window is None else seen & (distance < inputs.window)


def reference(inputs: AttentionInputs) -> Output:
    """Softmax attention by its definition; quadratic memory, so short or probed inputs only."""
    B, T, Hq, K = inputs.q.shape
    Hkv = inputs.k.shape[2]
    q = inputs.q.view(B, T, Hkv, Hq // Hkv, K)
    scores = torch.einsum("bthgk,bshk->bhgts", q, inputs.k) * inputs.scale
    weights = scores.masked_fill(~visible(inputs), float("-inf")).softmax(-1)
    o = torch.einsum("bhgts,bshv->bthgv", weights, inputs.v)
    return Output(o=o.reshape(B, T, Hq, -1))


def probe(
    inputs: AttentionInputs, output: Output, random: torch.Generator
) -> tuple[AttentionInputs, Output]:
    """64 random query rows of one random sequence, against all keys they see."""
    B, T, S = inputs.q.shape[0], inputs.num_queries, inputs.num_keys
    b = int(torch.randint(B, (1,), generator=random))
    rows = torch.randperm(T, generator=random)[:PROBE_ROWS].sort().values.to(inputs.q.device)
    part = replace(
        inputs,
        q=inputs.q[b : b + 1, rows],
        k=inputs.k[b : b + 1],
        v=inputs.v[b : b + 1],
        positions=rows + (S - T),
    )
    return part, Output(o=output.o[b : b + 1, rows])


# torch's scaled_dot_product_attention, one backend at a time


def pin(backend: str) -> None:
    """Leaves SDPA exactly one backend, so that it fails rather than falls back.

    The flags are set before each call: `sdpa_kernel` as a context costs 50 µs of host time.
    """
    torch.backends.cuda.enable_flash_sdp(backend == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(backend == "efficient")
    torch.backends.cuda.enable_cudnn_sdp(backend == "cudnn")
    torch.backends.cuda.enable_math_sdp(backend == "math")


def prepare_sdpa(backend: str, inputs: AttentionInputs) -> Kernel:
    """Full attention by SDPA. A segment's mask is aligned at the lower right.

    On CUDA flash and efficient take that alignment without a mask; elsewhere it is materialised.
    """
    T, S = inputs.num_queries, inputs.num_keys
    mask: Tensor | None = None
    if 1 < T < S:
        mask = lower_right_mask(T, S, inputs.q.device, fused=backend in ("flash", "efficient"))
    attend = partial(
        scaled_dot_product_attention,
        attn_mask=mask,
        is_causal=T == S and T > 1,
        scale=inputs.scale,
        enable_gqa=inputs.q.shape[2] != inputs.k.shape[2],
    )

    def kernel(x: AttentionInputs) -> Output:
        pin(backend)
        o = attend(x.q.transpose(1, 2), x.k.transpose(1, 2), x.v.transpose(1, 2))
        return Output(o=o.transpose(1, 2))

    return kernel


def lower_right_mask(T: int, S: int, device: torch.device, *, fused: bool) -> Tensor:
    if fused and device.type == "cuda":
        from torch.nn.attention.bias import causal_lower_right

        bias: Tensor = causal_lower_right(T, S)
        return bias
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def sdpa_limits(backend: str, workload: Workload, device: Device) -> str | None:
    """What each backend is documented or known not to do; the rest it says itself when run."""
    assert isinstance(workload.op, MixerOp)
    spec = workload.op.spec
    segment = workload.new_tokens > 1 and workload.cached_tokens > 0
    if backend == "efficient" and spec.num_q_heads != spec.num_k_heads:
        return "the efficient backend has no grouped-query attention"
    if backend == "math" and device.kind == "cuda":
        held = math_bytes(workload)
        if held > MATH_SHARE * device.memory_bytes:
            return (
                f"the math backend holds all scores, {bytes_text(held)} here: not tried over "
                f"{bytes_text(MATH_SHARE * device.memory_bytes)}, a quarter of this GPU"
            )
    if backend == "cudnn" and segment:
        return "cuDNN through SDPA aligns its causal mask at the upper left: no segments"
    if backend in ("flash", "cudnn") and device.kind == "cuda" and device.capability < (8, 0):
        return f"the {backend} backend needs compute capability 8.0, this GPU has " + ".".join(
            map(str, device.capability)
        )
    return None


MATH_SHARE = 0.25
"""It is a reference that nobody serves: no GPU is cleared of all else for it."""


def math_bytes(workload: Workload) -> float:
    """What torch's math backend holds at once: scores and weights in fp32 and the weights again
    in the tensors' dtype; keys and values repeated for each query head, and those in fp32."""
    assert isinstance(workload.op, MixerOp)
    spec, B, T, S = workload.op.spec, workload.batch_size, workload.new_tokens, workload.context
    elem = dtype_bytes(workload.dtype)
    scores = B * spec.num_q_heads * T * S * (4.0 + 4.0 + elem)
    return scores + B * spec.num_q_heads * S * (spec.k_head_dim + spec.v_head_dim) * (4.0 + elem)


# torch's variable-length attention (FlashAttention-2 kernels with a window)


def prepare_varlen(inputs: AttentionInputs) -> Kernel:
    """`varlen_attn` on sequences of equal length, packed. Its left window excludes the query."""
    from torch.nn.attention.varlen import varlen_attn

    B, T = inputs.q.shape[:2]
    S = inputs.num_keys
    cu_q, cu_k = (
        torch.arange(0, (B + 1) * n, n, dtype=torch.int32, device=inputs.q.device) for n in (T, S)
    )
    left = -1 if inputs.window is None else inputs.window - 1
    named: dict[str, Any] = {"scale": inputs.scale, "window_size": (left, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # later torch demands to be told
        named["enable_gqa"] = inputs.q.shape[2] != inputs.k.shape[2]

    def kernel(x: AttentionInputs) -> Output:
        q, k, v = x.q.flatten(0, 1), x.k.flatten(0, 1), x.v.flatten(0, 1)
        o: Any = varlen_attn(q, k, v, cu_q, cu_k, T, S, **named)
        return Output(o=o.view(B, T, *o.shape[1:]))

    return kernel


# flex_attention, compiled for each length


@cache
def compiled_flex() -> tuple[Callable[..., Tensor], Callable[..., Any]]:
    """flex_attention compiled for each shape, and its mask's maker.

    Uncompiled, the maker holds the whole [T, S] mask and the attention all scores; past dynamo's
    limit of recompilations either would quietly run so, so the limit is lifted and made an error.
    """
    import torch._dynamo
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask)


INT32_ELEMENTS = 2**31
FLEX_QUERY_BLOCK = 128


def flex_limits(workload: Workload, device: Device) -> str | None:
    """Why flex cannot run this workload: it fails to compile (torch 2.11, decoding) once the keys
    of all sequences need 64-bit offsets."""
    if (why := equal_head_dims(workload, device)) is not None:
        return why
    assert isinstance(workload.op, MixerOp)
    spec = workload.op.spec
    elements = workload.batch_size * workload.context * spec.num_k_heads * spec.k_head_dim
    if elements >= INT32_ELEMENTS:
        return f"flex indexes keys by 32 bits, got {elements:.3g} elements of at most 2^31 - 1"
    return None


def prepare_flex(inputs: AttentionInputs) -> Kernel:
    """Compiled `flex_attention` with a compiled block mask; decode needs no mask.

    Up to 127 queries torch takes its decoding kernel, which takes the queries of a whole group as
    one block and finds no configuration once that is larger than the mask's (torch 2.11, a last
    segment of 100 tokens with four heads a KV head): those go to the kernel of prefills.
    """
    attention, make_mask = compiled_flex()
    T, S, window = inputs.num_queries, inputs.num_keys, inputs.window
    offset = S - T

    def in_sight(b: Tensor, h: Tensor, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        causal = q_idx + offset >= k_idx
        return causal if window is None else causal & (q_idx + offset - k_idx < window)

    block_mask = None
    if T > 1:
        block_mask = make_mask(in_sight, None, None, T, S, inputs.q.device)
    group = inputs.q.shape[2] // inputs.k.shape[2]
    few = inputs.q.is_cuda and T < FLEX_QUERY_BLOCK < T * group
    attend = partial(
        attention,
        block_mask=block_mask,
        scale=inputs.scale,
        enable_gqa=inputs.q.shape[2] != inputs.k.shape[2],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True} if few else None,
    )

    def kernel(x: AttentionInputs) -> Output:
        o = attend(x.q.transpose(1, 2), x.k.transpose(1, 2), x.v.transpose(1, 2))
        return Output(o=o.transpose(1, 2))

    return kernel


# Our own Triton kernels

MAX_TRITON_HEAD_DIM = 256


def prepare_triton(inputs: AttentionInputs) -> Kernel:
    """`profiler.kernels`: tiles that nothing sees are skipped; a single token splits the keys."""
    from profiler.kernels.flash_attention import flash_attention
    from profiler.kernels.flash_decode import flash_decode

    attend = flash_decode if inputs.num_queries == 1 else flash_attention

    def kernel(x: AttentionInputs) -> Output:
        return Output(o=attend(x.q, x.k, x.v, window=x.window, scale=x.scale))

    return kernel


def triton_limits(workload: Workload, device: Device) -> str | None:
    assert isinstance(workload.op, MixerOp)
    spec = workload.op.spec
    widest = max(spec.k_head_dim + spec.rope_head_dim, spec.v_head_dim)
    if widest > MAX_TRITON_HEAD_DIM:
        return f"our kernels take head dims up to {MAX_TRITON_HEAD_DIM}, got {widest}"
    return None


OWN_TRITON = Provider(
    name="triton",
    prepare=prepare_triton,
    devices=("cuda",),
    dtypes=("bf16", "fp16", "fp32"),
    requires=(NEEDS_TRITON,),
    limits=triton_limits,
    versions={"decode": "2"},  # 2: as few splits as load the multiprocessors alike
)


def equal_head_dims(workload: Workload, device: Device) -> str | None:
    assert isinstance(workload.op, MixerOp)
    spec = workload.op.spec
    if spec.k_head_dim != spec.v_head_dim:
        return f"keys and values must be equally wide, got {spec.k_head_dim} and {spec.v_head_dim}"
    return None


def last_window(inputs: AttentionInputs) -> AttentionInputs:
    """One query's last `window` keys: windowed decode is full decode over them."""
    W = inputs.num_keys if inputs.window is None else min(inputs.window, inputs.num_keys)
    return replace(inputs, k=inputs.k[:, -W:], v=inputs.v[:, -W:], window=None)


def decode_on_last_window(
    prepare: Callable[[AttentionInputs], Kernel],
) -> Callable[[AttentionInputs], Kernel]:
    """A full-attention decode provider, made to serve a windowed layer."""

    def prepared(inputs: AttentionInputs) -> Kernel:
        full = prepare(last_window(inputs))
        return lambda x: full(last_window(x))

    return prepared
