"""What the recurrent mixers share on silicon: inputs, the token loop, the chunked form, a step.

All of them are one recurrence on a [K, V] state per value head, with terms present or absent:

    S ← exp(g_t) S                       decay: none, per head, per head and token, or per channel
    u = β_t (v_t - k_t S)                delta rule, where the mixer has one; else u = v_t
    S ← S + k_tᵀ u,   o_t = scale q_t S

Mamba-2 feeds v_t = Δ_t x_t and g_t = Δ_t A, which its own kernels compute; see its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad, softplus

from profiler.providers.spec import NEEDS_TRITON, Inputs, Kernel, Output, Provider

PROBE_TOKENS = 128
"""Length of the last segment that is checked, token by token, at the timed length."""

CARRY_TOKENS = 4096
"""How many tokens the carry to that segment converts to float64 at a time."""


@dataclass(frozen=True, kw_only=True)
class RecurrentInputs(Inputs):
    """q [B, T, Hq, K], k [B, T, Hk, K], v [B, T, Hv, V]; heads of q and k repeat over Hv.

    `log_decay` is [Hv], [B, T, Hv] or [B, T, Hv, K] in fp32, or None; `beta` [B, T, Hv] or None
    (no delta rule). `dt` [B, T, Hv] and `A` [Hv] stand for v and decay scaling in Mamba-2.
    `state` [B, Hv, K, V] in fp32 is what came before, None at the start.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    log_decay: Tensor | None = None
    beta: Tensor | None = None
    dt: Tensor | None = None
    A: Tensor | None = None
    state: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.q.shape[1]

    def part(self, rows: slice, start: int, stop: int, state: Tensor | None) -> RecurrentInputs:
        """Tokens [start, stop) of the sequences `rows`, continuing from `state`."""

        def cut(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dim() == 1 else t[rows, start:stop]

        return RecurrentInputs(
            q=self.q[rows, start:stop],
            k=self.k[rows, start:stop],
            v=self.v[rows, start:stop],
            scale=self.scale,
            log_decay=cut(self.log_decay),
            beta=cut(self.beta),
            dt=cut(self.dt),
            A=self.A,
            state=state,
        )


@dataclass(frozen=True)
class Terms:
    """The recurrence's terms for every value head: [B, T, Hv, ·], g [B, T, Hv, K or 1]."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    beta: Tensor | None
    state: Tensor


def terms(inputs: RecurrentInputs) -> Terms:
    """Heads repeated, Mamba-2's Δ folded in, an absent state as zeros; in the inputs' dtype."""
    B, T, Hv, V = inputs.v.shape
    v, g = additive_terms(inputs)
    if g is not None:
        g = g.expand(B, T, Hv) if g.dim() == 1 else g
        g = g[..., None] if g.dim() == 3 else g
    state = inputs.state
    if state is None:
        state = v.new_zeros(B, Hv, inputs.q.shape[-1], V)
    return Terms(
        q=repeat_heads(inputs.q, Hv) * inputs.scale,
        k=repeat_heads(inputs.k, Hv),
        v=v,
        g=g,
        beta=inputs.beta,
        state=state,
    )


def repeat_heads(t: Tensor, heads: int) -> Tensor:
    return t if t.shape[2] == heads else t.repeat_interleave(heads // t.shape[2], dim=2)


def reference(inputs: RecurrentInputs) -> Output:
    """The recurrence by its definition, one token after the other.

    The state is carried in fp32 at least, as every implementation stores it, and rounded to the
    inputs' dtype where it enters a product. A state carried in bf16 would be off by 0.15 after
    1,000 tokens of a slow decay and, as the gate's yardstick, would let twice that pass.
    """
    t = terms(inputs)
    dtype = t.q.dtype
    carried = torch.promote_types(dtype, torch.float32)
    state, outputs = t.state.to(carried), []
    for i in range(inputs.num_tokens):
        q, k, u = t.q[:, i], t.k[:, i], t.v[:, i]
        if t.g is not None:
            state = state * t.g[:, i].to(carried).exp()[..., None]
        if t.beta is not None:
            recalled = torch.einsum("bhk,bhkv->bhv", k, state.to(dtype))
            u = t.beta[:, i, :, None].to(dtype) * (u - recalled)
        state = state + k.to(carried)[..., None] * u.to(carried)[..., None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q, state.to(dtype)))
    return Output(o=torch.stack(outputs, dim=1), state=state)


# The chunked form


def chunked(inputs: RecurrentInputs, chunk: int) -> Output:
    """The recurrence in chunks: matrix products inside a chunk, the state carried between chunks.

    Inside a chunk, with G the running sum of g and D_ij = exp(G_i - G_j) for i ≥ j (decay per
    head; per channel it joins the product q_i k_j before the sum), the delta rule's u solves a
    unit lower-triangular system. Yang et al. 2024, arXiv:2412.06464, sec. 3.3.
    """
    t = terms(inputs)
    T = inputs.num_tokens
    padding = -T % chunk
    q, k, v = (split(x, chunk, padding) for x in (t.q, t.k, t.v))
    G = None if t.g is None else split(t.g.to(v.dtype), chunk, padding).cumsum(-2)
    beta = None if t.beta is None else split(t.beta[..., None].to(v.dtype), chunk, padding)
    scores = within_chunk(q, k, G, diagonal=0)
    q_in, k_out, total = to_chunk_edges(q, k, G)
    state = t.state.to(v.dtype)
    if beta is None:
        o, state = scan_additive(q_in, k_out, v, scores, total, state)
    else:
        inverse_rhs = solve_delta(k, v, G, beta)
        o, state = scan_delta(q_in, k_out, *inverse_rhs, scores, total, state)
    o = o.flatten(2, 3).transpose(1, 2)
    return Output(o=o[:, :T], state=state)


def split(x: Tensor, chunk: int, padding: int) -> Tensor:
    """[B, T, H, D] to [B, H, N, C, D]; padded tokens are zeros and change nothing."""
    padded = pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
    B, T, H, D = padded.shape
    return padded.transpose(1, 2).reshape(B, H, T // chunk, chunk, D)


def within_chunk(q: Tensor, k: Tensor, G: Tensor | None, diagonal: int) -> Tensor:
    """q_i k_j exp(G_i - G_j) for j ≤ i (diagonal 0) or j < i (-1): [B, H, N, C, C]."""
    C = q.shape[-2]
    past = torch.ones(C, C, dtype=torch.bool, device=q.device).tril(diagonal)
    if G is None:
        return (q @ k.mT).masked_fill(~past, 0)
    if G.shape[-1] == 1:
        decay = (G - G.mT).masked_fill(~past, float("-inf")).exp()
        return (q @ k.mT) * decay
    difference = G[..., :, None, :] - G[..., None, :, :]
    decay = difference.masked_fill(~past[..., None], float("-inf")).exp()
    return torch.einsum("...ik,...jk,...ijk->...ij", q, k, decay)


def to_chunk_edges(q: Tensor, k: Tensor, G: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """q decayed from the chunk's start, k decayed to its end, and the chunk's whole decay."""
    if G is None:
        return q, k, None
    last = G[..., -1:, :]
    return q * G.exp(), k * (last - G).exp(), last.exp().mT


def solve_delta(k: Tensor, v: Tensor, G: Tensor | None, beta: Tensor) -> tuple[Tensor, Tensor]:
    """(w, u) with new values u - w S: solves (I + strict lower(β k k D)) [w u] = β [k e^G, v]."""
    system = beta * within_chunk(k, k, G, diagonal=-1)
    k_in = k if G is None else k * G.exp()
    rhs = torch.cat([beta * k_in, beta * v], dim=-1)
    solved = torch.linalg.solve_triangular(
        system + torch.eye(k.shape[-2], dtype=k.dtype, device=k.device),
        rhs,
        upper=False,
        unitriangular=True,
    )
    w, u = solved.split([k.shape[-1], v.shape[-1]], dim=-1)
    return w, u


def scan_additive(
    q_in: Tensor, k_out: Tensor, v: Tensor, scores: Tensor, total: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Without a delta rule a chunk's contribution does not depend on the state before it."""
    added = k_out.mT @ v
    before = torch.empty_like(added)
    for n in range(added.shape[2]):
        before[:, :, n] = state
        state = (state if total is None else state * total[:, :, n]) + added[:, :, n]
    return scores @ v + q_in @ before, state


def scan_delta(
    q_in: Tensor,
    k_out: Tensor,
    w: Tensor,
    u: Tensor,
    scores: Tensor,
    total: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """With it, a chunk's new values first subtract what the state already holds."""
    outputs = []
    for n in range(w.shape[2]):
        new = u[:, :, n] - w[:, :, n] @ state
        outputs.append(q_in[:, :, n] @ state + scores[:, :, n] @ new)
        state = state if total is None else state * total[:, :, n]
        state = state + k_out[:, :, n].mT @ new
    return torch.stack(outputs, dim=2), state


CHUNK = 64
VECTOR_CHUNK = 16  # a per-channel decay needs a [C, C, K] product, so the chunk is shorter


def prepare_chunked(inputs: RecurrentInputs) -> Kernel:
    g = inputs.log_decay
    chunk = VECTOR_CHUNK if g is not None and g.dim() == 4 else CHUNK
    return partial(chunked, chunk=chunk)


def prepare_step(inputs: RecurrentInputs) -> Kernel:
    """Token by token: what a decode step does, and exact for a few tokens."""
    return reference


# Our own Triton kernels, for the mixers whose state only adds up and decays


def prepare_triton(inputs: RecurrentInputs) -> Kernel:
    """`profiler.kernels`: a chunked kernel for several tokens, a step that updates the state."""
    from profiler.kernels.linear_attention import chunked_linear_attention, linear_attention_step

    def whole(x: RecurrentInputs) -> Output:
        v, g = additive_terms(x)
        o, state = chunked_linear_attention(
            x.q,
            x.k,
            v,
            log_decay=g,
            scale=x.scale,
            initial_state=x.state,
            output_final_state=True,
        )
        return Output(o=o, state=state)

    def step(x: RecurrentInputs) -> Output:
        v, g = additive_terms(x)
        assert x.state is not None
        o = linear_attention_step(x.q, x.k, v, state=x.state, log_decay=g, scale=x.scale)
        return Output(o=o, state=x.state)

    return step if inputs.num_tokens == 1 and inputs.state is not None else whole


def additive_terms(inputs: RecurrentInputs) -> tuple[Tensor, Tensor | None]:
    """Values and log decay; Mamba-2's Δ is multiplied in, as part of the call."""
    if inputs.dt is None or inputs.A is None:
        return inputs.v, inputs.log_decay
    return inputs.v * inputs.dt[..., None].to(inputs.v.dtype), inputs.dt * inputs.A


OWN_TRITON = Provider(
    name="triton",
    prepare=prepare_triton,
    devices=("cuda",),
    dtypes=("bf16", "fp16", "fp32"),
    requires=(NEEDS_TRITON,),
    in_place=True,
    # 2: assembled by the newest ptxas on Hopper
    versions={"prefill": "2", "decode": "2"},
)


# Checking long calls


def probe(
    inputs: RecurrentInputs, output: Output, random: torch.Generator
) -> tuple[RecurrentInputs, Output] | None:
    """The last 128 tokens of one random sequence, from a state carried there in float64.

    The carry is the chunked form above, itself checked against the token loop in the tests.
    """
    B, T = inputs.q.shape[:2]
    b = int(torch.randint(B, (1,), generator=random))
    rows = slice(b, b + 1)
    start = max(0, T - PROBE_TOKENS)
    state = None if inputs.state is None else inputs.state[rows].double()
    for first in range(0, start, CARRY_TOKENS):
        piece = inputs.part(rows, first, min(first + CARRY_TOKENS, start), state)
        state = prepare_chunked(piece)(piece.to(torch.float64)).state
    tail = inputs.part(rows, start, T, state)
    left = output.state
    return tail, Output(o=output.o[rows, start:], state=None if left is None else left[rows])


# Realistic data


def unit(t: Tensor) -> Tensor:
    """Rows of length 1 over the last dim, in the tensor's dtype: the l2 norm of query and key."""
    return normalize(t, dim=-1)


class Random(Protocol):
    def __call__(self, *shape: int, dtype: torch.dtype = ...) -> Tensor: ...


def randn(device: torch.device, seed: int, dtype: torch.dtype) -> Random:
    """Standard normal tensors from one seeded stream."""
    source = torch.Generator(device=device).manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        drawn: Tensor = torch.randn(*shape, generator=source, device=device, dtype=dtype)
        return drawn

    return draw


DT_MIN, DT_MAX = 1e-3, 1e-1  # Mamba's initialisation of Δ, log-uniform; Gated DeltaNet keeps it
A_MIN, A_MAX = 1.0, 16.0


def step_bias(draw: Random, H: int) -> Tensor:
    """Bias [H] in fp32 with softplus(bias) log-uniform in Mamba's range.

    Source: state-spaces/mamba, mamba_ssm/modules/mamba2.py.
    """
    spread = torch.special.ndtr(draw(H, dtype=torch.float32))
    dt = DT_MIN * (DT_MAX / DT_MIN) ** spread
    bias: Tensor = dt + torch.log(-torch.expm1(-dt))
    return bias


def step_sizes(draw: Random, *shape: int) -> Tensor:
    """Δ = softplus(x + bias) [B, T, H] or [B, T, H, K] in fp32, one bias per head."""
    H = shape[2]
    bias = step_bias(draw, H).view(H, *(1 for _ in shape[3:]))
    return softplus(draw(*shape, dtype=torch.float32) + bias)


def decay_rates(draw: Random, H: int) -> Tensor:
    """-A per head, uniform in [-16, -1] as Mamba-2 and Gated DeltaNet start out."""
    uniform: Tensor = torch.special.ndtr(draw(H, dtype=torch.float32))
    return -(A_MIN + uniform * (A_MAX - A_MIN))


def carried_state(draw: Random, cached: int, *shape: int) -> Tensor | None:
    """A state [B, H, K, V] of about unit size in fp32, where something came before."""
    if cached == 0:
        return None
    return draw(*shape, dtype=torch.float32)
