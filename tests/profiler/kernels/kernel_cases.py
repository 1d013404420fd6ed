"""What the Triton kernels must compute: references in fp64 and the cases compared with them.

Used three ways: by the CPU tests, in a process of its own under `TRITON_INTERPRET=1` (run as a
script it prints one JSON list), by the GPU tests, and by the GPU benchmark before it times
anything. A case is a function of `make`, which draws random inputs; it returns pairs of what a
kernel gave and what it should have given. Uninitialised memory is filled with NaN throughout, so
an element nobody wrote never passes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler.kernels.flash_attention import AttentionConfig, flash_attention
from profiler.kernels.flash_decode import flash_decode
from profiler.kernels.linear_attention import (
    LinearConfig,
    chunked_linear_attention,
    linear_attention_step,
)

Pairs = dict[str, tuple[Tensor, Tensor]]
# Relative RMS. 16-bit outputs alone round by 2.8e-4 (fp16) and 2.3e-3 (bf16); operands of the
# second product (softmax weights, the state) are rounded to 16 bits once more.
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """Softmax attention by its definition, in fp64: mask, softmax, weighted mean."""
    group = q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    Tq, Tk = q.shape[1], k.shape[1]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (scale or q.shape[3] ** -0.5)
    position = torch.arange(Tk - Tq, Tk, device=q.device)[:, None]
    key = torch.arange(Tk, device=q.device)[None, :]
    seen = (key <= position) & (key > position - (window or Tk))
    scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def linear_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    scale: float = 1.0,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token, in fp64: S = exp(g) S + k v^T, o = scale q^T S."""
    group = v.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double(), v.double()
    q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)
    B, T, H, K = k.shape
    S = k.new_zeros(B, H, K, v.shape[3]) if state is None else state.double()
    gate = k.new_zeros(B, T, H)
    if log_decay is not None:
        gate = log_decay.double().expand(B, T, H)
    out = []
    for t in range(T):
        S = S * gate[:, t, :, None, None].exp() + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], S))
    return torch.stack(out, 1), S


@dataclass(frozen=True, kw_only=True)
class Make:
    """Draws inputs in one dtype on one device; `small` shrinks tiles for the interpreter."""

    dtype: torch.dtype
    device: str
    small: bool
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    def keys(self, *shape: int) -> Tensor:
        """Keys of length about one, as models that normalise them have."""
        return (self.normal(*shape).float() * shape[-1] ** -0.5).to(self.dtype)

    def state(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def gate(self, *shape: int) -> Tensor:
        """Log-decays, fp32, from about -3 to -0.01 as trained gates have."""
        return torch.nn.functional.logsigmoid(self.state(*shape) * 2 + 2)

    def attention(self, *, tma: bool) -> AttentionConfig | None:
        """Tiles that keys and queries straddle; on a GPU, what the wrapper chooses."""
        if not self.small:
            return None
        return AttentionConfig(block_q=64, block_k=32, num_warps=4, num_stages=1, tma=tma)

    def linear(self, *, tma: bool) -> LinearConfig | None:
        if not self.small:
            return None
        return LinearConfig(chunk=32, block_v=32, num_warps=4, num_stages=1, tma=tma)


def attention_heads(make: Make) -> Pairs:
    """MHA, GQA, MQA at lengths that are no multiple of a tile."""
    pairs = {}
    for B, heads, kv_heads, T in ((2, 2, 2, 63), (1, 4, 2, 129), (2, 3, 1, 65)):
        q, k = make.normal(B, T, heads, 64), make.normal(B, T, kv_heads, 64)
        v = make.normal(B, T, kv_heads, 64)
        for tma in (False, True):
            out = flash_attention(q, k, v, config=make.attention(tma=tma))
            name = f"{heads}/{kv_heads} heads, T {T}, tma {tma}"
            pairs[name] = (out, attention_reference(q, k, v))
    return pairs


def attention_head_dims(make: Make) -> Pairs:
    """Head dims 64, 128, 256, and keys wider than values (192 and 128, as MLA has)."""
    pairs = {}
    for D, DV in ((64, 64), (128, 128), (256, 256), (192, 128), (40, 24)):
        q, k, v = make.normal(1, 100, 2, D), make.normal(1, 100, 1, D), make.normal(1, 100, 1, DV)
        out = flash_attention(q, k, v, scale=0.07, config=make.attention(tma=True))
        pairs[f"D {D}, Dv {DV}"] = (out, attention_reference(q, k, v, scale=0.07))
    return pairs


def attention_window(make: Make) -> Pairs:
    """Windows of one key, smaller and larger than a tile, the whole length and more."""
    T = 200
    q, k, v = make.normal(1, T, 1, 64), make.normal(1, T, 1, 64), make.normal(1, T, 1, 64)
    pairs = {}
    for window in (1, 2, 31, 64, 65, 128, T - 1, T, T + 1, 4096):
        out = flash_attention(q, k, v, window=window, config=make.attention(tma=window % 2 == 0))
        pairs[f"W {window}"] = (out, attention_reference(q, k, v, window))
    return pairs


def attention_segment(make: Make) -> Pairs:
    """New tokens after cached ones, down to a single one, and the prefill they are part of."""
    k, v = make.normal(2, 300, 1, 64), make.normal(2, 300, 1, 64)
    q = make.normal(2, 300, 2, 64)
    pairs = {}
    for new, window in ((100, None), (100, 70), (5, None), (1, None), (1, 8)):
        out = flash_attention(q[:, -new:], k, v, window=window, config=make.attention(tma=True))
        pairs[f"{new} new, W {window}"] = (out, attention_reference(q[:, -new:], k, v, window))
    return pairs


def attention_long(make: Make) -> Pairs:
    """A thousand tokens, with and without a window, as the wrapper configures it."""
    q, k, v = make.normal(1, 1000, 1, 64), make.normal(1, 1000, 1, 64), make.normal(1, 1000, 1, 64)
    full, local = flash_attention(q, k, v), flash_attention(q, k, v, window=300)
    return {
        "full": (full, attention_reference(q, k, v)),
        "W 300": (local, attention_reference(q, k, v, 300)),
    }


def decode_heads(make: Make) -> Pairs:
    """One token over a cache: MHA, GQA, MQA; every head dim."""
    pairs = {}
    for heads, kv_heads, D in ((2, 2, 64), (8, 2, 128), (20, 1, 64), (2, 1, 256), (2, 1, 192)):
        q, k = make.normal(2, 1, heads, D), make.normal(2, 500, kv_heads, D)
        v = make.normal(2, 500, kv_heads, min(D, 128))
        out = flash_decode(q, k, v)
        pairs[f"{heads}/{kv_heads} heads, D {D}"] = (out, attention_reference(q, k, v))
    return pairs


def decode_splits(make: Make) -> Pairs:
    """Any number of splits, also more than there are tiles, gives the same."""
    q, k, v = make.normal(1, 1, 4, 64), make.normal(1, 1000, 1, 64), make.normal(1, 1000, 1, 64)
    whole = flash_decode(q, k, v, num_splits=1)
    pairs = {"1 split": (whole, attention_reference(q, k, v))}
    for splits in (2, 7, 16, 100):
        out = flash_decode(q, k, v, num_splits=splits)
        pairs[f"{splits} splits"] = (out, attention_reference(q, k, v))
    return pairs


def decode_window(make: Make) -> Pairs:
    """Windows, split and not; keys before the window are never read (they are NaN here)."""
    S, pairs = 400, {}
    q, k, v = make.normal(1, 1, 4, 64), make.normal(1, S, 1, 64), make.normal(1, S, 1, 64)
    for window in (1, 63, 64, 300, S, S + 5):
        expected = attention_reference(q, k, v, window)
        hidden_k, hidden_v = k.clone(), v.clone()
        hidden_k[:, : max(0, S - window)] = float("nan")
        hidden_v[:, : max(0, S - window)] = float("nan")
        for splits in (1, 3):
            out = flash_decode(q, hidden_k, hidden_v, window=window, num_splits=splits)
            pairs[f"W {window}, {splits} splits"] = (out, expected)
    return pairs


def decode_few_tokens(make: Make) -> Pairs:
    """Drafted tokens that ride along see one key more each."""
    k, v, pairs = make.normal(2, 200, 1, 64), make.normal(2, 200, 1, 64), {}
    for tokens, window in ((2, None), (5, None), (5, 70), (3, 1)):
        q = make.normal(2, tokens, 3, 64)
        out = flash_decode(q, k, v, window=window, num_splits=3)
        pairs[f"{tokens} tokens, W {window}"] = (out, attention_reference(q, k, v, window))
    return pairs


def _gates(make: Make, B: int, T: int, H: int) -> dict[str, Tensor | None]:
    return {"none": None, "constant": make.gate(H), "token": make.gate(B, T, H)}


def linear_decays(make: Make) -> Pairs:
    """No, constant and data-dependent decay; state in and out; ragged lengths."""
    pairs = {}
    for B, T in ((1, 1), (2, 63), (1, 128)):
        q, k, v = make.normal(B, T, 1, 64), make.keys(B, T, 1, 64), make.normal(B, T, 1, 64)
        state = make.state(B, 1, 64, 64)
        for name, gate in _gates(make, B, T, 1).items():
            out, final = chunked_linear_attention(
                q, k, v, log_decay=gate, scale=0.5, initial_state=state,
                output_final_state=True, config=make.linear(tma=T >= 128),
            )  # fmt: skip
            expected, expected_state = linear_reference(q, k, v, gate, 0.5, state)
            pairs[f"{name}, T {T}"] = (out, expected)
            pairs[f"{name}, T {T}, state"] = (final, expected_state)
    return pairs


def linear_groups(make: Make) -> Pairs:
    """Heads that share q and k (SSD's groups), and dims that fill no tile."""
    pairs = {}
    for HK, HV, K, V in ((1, 4, 128, 64), (2, 4, 64, 32), (1, 2, 24, 40), (1, 1, 256, 64)):
        q, k, v = make.normal(1, 70, HK, K), make.keys(1, 70, HK, K), make.normal(1, 70, HV, V)
        gate = make.gate(1, 70, HV)
        out, _ = chunked_linear_attention(q, k, v, log_decay=gate, config=make.linear(tma=HV == 4))
        pairs[f"{HK}/{HV} heads, K {K}, V {V}"] = (out, linear_reference(q, k, v, gate)[0])
    return pairs


def linear_ssd(make: Make) -> Pairs:
    """Mamba-2: values weighted by Δt (also by zero), decay Δt · A, heads sharing B and C."""
    T = 100
    C, B, x = make.normal(2, T, 1, 64), make.keys(2, T, 1, 64), make.normal(2, T, 2, 32)
    dt = torch.nn.functional.softplus(make.state(2, T, 2) - 1)
    dt[:, ::7] = 0
    decay = -dt * torch.tensor([0.5, 8.0], device=make.device)
    expected, expected_state = linear_reference(C, B, x.double() * dt[..., None], decay)
    pairs = {}
    for segment_len in (T, 64):
        out, final = chunked_linear_attention(
            C, B, x, log_decay=decay, value_scale=dt, output_final_state=True,
            segment_len=segment_len, config=make.linear(tma=True),
        )  # fmt: skip
        pairs[f"segments of {segment_len}"] = (out, expected)
        pairs[f"segments of {segment_len}, state"] = (final, expected_state)
    return pairs


def linear_strong_decay(make: Make) -> Pairs:
    """Gates of -50 a token wipe the state; no exponential may overflow on the way."""
    q, k, v = make.normal(1, 100, 1, 32), make.keys(1, 100, 1, 32), make.normal(1, 100, 1, 32)
    gate = -50 * make.gate(1, 100, 1).abs()
    out, final = chunked_linear_attention(
        q, k, v, log_decay=gate, output_final_state=True, config=make.linear(tma=False)
    )
    expected, expected_state = linear_reference(q, k, v, gate)
    return {"out": (out, expected), "state": (final, expected_state)}


def linear_segments(make: Make) -> Pairs:
    """A sequence cut into segments over programs, and resumed from its state, is the same."""
    T, pairs = 300, {}
    q, k, v = make.normal(1, T, 1, 32), make.keys(1, T, 1, 32), make.normal(1, T, 2, 32)
    gate, state = make.gate(1, T, 2), make.state(1, 2, 32, 32)
    expected, expected_state = linear_reference(q, k, v, gate, state=state)
    for segment_len in (T, 160, 96):
        out, final = chunked_linear_attention(
            q, k, v, log_decay=gate, initial_state=state, output_final_state=True,
            segment_len=segment_len, config=make.linear(tma=segment_len == 96),
        )  # fmt: skip
        pairs[f"segments of {segment_len}"] = (out, expected)
        pairs[f"segments of {segment_len}, state"] = (final, expected_state)
    cut, carried = 177, state
    resumed = []
    for part in (slice(0, cut), slice(cut, T)):
        out, carried = chunked_linear_attention(
            q[:, part], k[:, part], v[:, part], log_decay=gate[:, part],
            initial_state=carried, output_final_state=True, config=make.linear(tma=False),
        )  # fmt: skip
        resumed.append(out)
    pairs["resumed"] = (torch.cat(resumed, 1), expected)
    pairs["resumed, state"] = (carried, expected_state)
    return pairs


def linear_packed(make: Make) -> Pairs:
    """Packed sequences, one of them empty, are as if alone; one of NaN spoils no other."""
    lengths, pairs = (70, 1, 0, 100, 64), {}
    bounds = torch.tensor([0, *lengths], device=make.device).cumsum(0).to(torch.int32)
    T, N = sum(lengths), len(lengths)
    q, k, v = make.normal(1, T, 1, 32), make.keys(1, T, 1, 32), make.normal(1, T, 2, 32)
    state = make.state(N, 2, 32, 32)
    sick = slice(70, 71)
    for x in (q, k, v):
        x[:, sick] = float("nan")
    for name, gate in _gates(make, 1, T, 2).items():
        for segment_len in (None, 64):
            out, final = chunked_linear_attention(
                q, k, v, log_decay=gate, initial_state=state, output_final_state=True,
                cu_seqlens=bounds, segment_len=segment_len, config=make.linear(tma=True),
            )  # fmt: skip
            for n in (0, 3, 4):
                part = slice(int(bounds[n]), int(bounds[n + 1]))
                own = gate if gate is None or gate.ndim == 1 else gate[:, part]
                expected, expected_state = linear_reference(
                    q[:, part], k[:, part], v[:, part], own, state=state[n : n + 1]
                )
                label = f"{name}, segments {segment_len}, sequence {n}"
                pairs[label] = (out[:, part], expected)
                pairs[f"{label}, state"] = (final[n : n + 1], expected_state)
            pairs[f"{name}, segments {segment_len}, empty"] = (final[2], state[2].double())
    return pairs


def linear_long(make: Make) -> Pairs:
    """A thousand tokens of one head, as the wrapper configures it."""
    q, k, v = make.normal(1, 1000, 1, 32), make.keys(1, 1000, 1, 32), make.normal(1, 1000, 1, 32)
    gate = make.gate(1, 1000, 1)
    out, final = chunked_linear_attention(q, k, v, log_decay=gate, output_final_state=True)
    expected, expected_state = linear_reference(q, k, v, gate)
    return {"out": (out, expected), "state": (final, expected_state)}


def linear_step(make: Make) -> Pairs:
    """Tokens one at a time, the state updated in place, equal the chunked prefill."""
    T, pairs = 2, {}
    for HK, HV, K, V in ((2, 2, 64, 64), (1, 3, 128, 24)):
        q, k, v = make.normal(2, T, HK, K), make.keys(2, T, HK, K), make.normal(2, T, HV, V)
        start = make.state(2, HV, K, V)
        for name, gate in _gates(make, 2, T, HV).items():
            state, out = start.clone(), []
            for t in range(T):
                own = gate if gate is None or gate.ndim == 1 else gate[:, t : t + 1]
                at = slice(t, t + 1)
                out.append(
                    linear_attention_step(
                        q[:, at], k[:, at], v[:, at], state=state, log_decay=own, scale=0.5
                    )
                )
            expected, expected_state = linear_reference(q, k, v, gate, 0.5, start)
            chunked, _ = chunked_linear_attention(
                q, k, v, log_decay=gate, scale=0.5, initial_state=start,
                config=make.linear(tma=False),
            )  # fmt: skip
            label = f"{name}, {HK}/{HV} heads, K {K}, V {V}"
            pairs[label] = (torch.cat(out, 1), expected)
            pairs[f"{label}, state"] = (state, expected_state)
            pairs[f"{label}, chunked"] = (chunked, expected)
    return pairs


CASES: dict[str, Callable[[Make], Pairs]] = {
    case.__name__: case
    for case in (
        attention_heads, attention_head_dims, attention_window, attention_segment, attention_long,
        decode_heads, decode_splits, decode_window, decode_few_tokens,
        linear_decays, linear_groups, linear_ssd, linear_strong_decay, linear_segments,
        linear_packed, linear_long, linear_step,
    )
}  # fmt: skip


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||; infinite where anything is NaN."""
    error = (actual.double() - expected).norm() / expected.norm()
    return float("inf") if torch.isnan(error) else float(error)


def check(name: str, dtype: torch.dtype, device: str, *, small: bool) -> list[dict[str, Any]]:
    """Errors of all pairs of one case, with the limit they must stay under."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills empty tensors with NaN
    generator = torch.Generator(device).manual_seed(0)
    make = Make(dtype=dtype, device=device, small=small, generator=generator)
    started = time.perf_counter()
    rows = []
    for pair, (actual, expected) in CASES[name](make).items():
        rows.append(
            {
                "case": name,
                "dtype": str(dtype).removeprefix("torch."),
                "pair": pair,
                "error": relative_rms(actual, expected),
                "limit": LIMITS[dtype],
            }
        )
    rows[-1]["seconds"] = time.perf_counter() - started
    return rows


def check_large_attention() -> dict[str, float]:
    """Errors at the end of tensors of more than 2**31 elements, where 32-bit offsets wrap.

    The tail of a windowed prefill depends on few keys, so it can be computed from a slice.
    """
    T, H, D, window, tail = 2**20 + 4096, 16, 128, 128, 1000
    assert T * H * D > 2**31
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, T, H, D)
    q, k, v = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for _ in range(3)
    )
    near = slice(T - tail - window, T)
    expected = attention_reference(q[:, T - tail :], k[:, near], v[:, near], window)
    prefill = flash_attention(q, k, v, window=window)[:, T - tail :]
    decode = flash_decode(q[:, -1:], k, v, window=window)
    return {
        "prefill": relative_rms(prefill, expected),
        "decode": relative_rms(decode, expected[:, -1:]),
    }


def check_large_linear() -> dict[str, float]:
    """As `check_large_attention`; strong decay makes the tail depend on few tokens."""
    T, H, D, tail = 2**19 + 4096, 32, 128, 1024
    assert T * H * D > 2**31
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, T, H, D)
    q, k, v = (
        torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        for _ in range(3)
    )
    gate = torch.full((1, T, H), -0.5, device="cuda")
    out, state = chunked_linear_attention(q, k, v, log_decay=gate, output_final_state=True)
    end = slice(T - tail, T)
    expected, expected_state = linear_reference(q[:, end], k[:, end], v[:, end], gate[:, end])
    settled = slice(100, None)  # exp(-50): what came before the slice no longer counts
    return {
        "out": relative_rms(out[:, end][:, settled], expected[:, settled]),
        "state": relative_rms(state, expected_state),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dtype = getattr(torch, sys.argv[1])
    rows = [row for case in sys.argv[2:] or CASES for row in check(case, dtype, "cpu", small=True)]
    print(json.dumps(rows))
