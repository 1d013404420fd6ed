"""The project's Triton kernels against their rivals, on the GPU of this machine, in one command.

    PYTHONPATH=. python3 tests/benchmarks/bench_kernels_gpu.py --out kernels.json --sweep
    PYTHONPATH=. python3 tests/benchmarks/bench_kernels_gpu.py --diagnose      # a minute

1. compiles everything in parallel processes, and in the same pool checks every case of
   tests/profiler/kernels/kernel_cases.py in bf16 and fp16 against fp64;
2. times each group of contenders in a process of its own: CUDA events, L2 flushed before each
   call, contenders interleaved, median of `ROUNDS`; as a CUDA graph (short calls many to a
   graph) and, beside it, eagerly;
3. with --sweep, other configurations of our kernels are contenders too;
4. writes JSON to --out and prints a short table last.

--diagnose only asks whether the linear kernel is right, and if not, where: errors of output and
state, chunk by chunk, in several variants under each assembler that Triton's package holds.

A contender that fails is a row with its reason. Every output is compared with another
contender's before its time counts. Nothing here needs the network; rivals that are not
installed are reported as such.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("FLA_DISABLE_BACKEND_DISPATCH", "1")  # or "fla" means what is installed
# As the profiler's workers: with inductor's pool of processes flex took 231 s to compile here.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
ROUNDS = 25
BEST_SHOWN = 3  # of the swept configurations, in the table; the JSON has all
COPY_BYTES = 8 * 2**30  # read plus written
FLUSH_BYTES = 256 * 2**20  # over four times the L2 of an H200
SHORT_MS = 0.5  # shorter calls are captured many to a graph: single ones read ~10 us too long
GRAPH_MS = 2.0  # about how long such a graph runs
GROUP_SECONDS = 60
WARM_SECONDS = 240
TOLERANCE = 1.5e-2  # two bf16 results against each other, relative RMS

Run = Callable[[], torch.Tensor]


@dataclass
class Group:
    """One workload: what to run it with, and how much it must move and multiply at least.

    Inputs are made when the first contender is built, so that listing the names costs nothing.
    """

    contenders: dict[str, Callable[[], Run]]
    flops: float = 0.0
    bytes: float = 0.0
    sweep: dict[str, Callable[[], Run]] = field(default_factory=dict)
    compared: bool = True  # whether the contenders compute the same thing


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def kernels() -> types.SimpleNamespace:
    from profiler.kernels import (
        flash_attention,
        flash_decode,
        latent_decode,
        linear_attention,
        short_convolution,
    )

    return types.SimpleNamespace(
        attention=flash_attention,
        decode=flash_decode,
        latent=latent_decode,
        linear=linear_attention,
        convolution=short_convolution,
    )


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: str, causal: bool) -> Run:
    """SDPA pinned to one backend, on [B, T, H, D] as the models hold it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    pinned = getattr(SDPBackend, backend)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))

    def run() -> torch.Tensor:
        with sdpa_kernel([pinned]):
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
            )
        return out.transpose(1, 2)

    return run


def attention_variants(window: int | None) -> dict[str, dict[str, Any]]:
    """Configurations worth a try: block_q, block_k, warps, stages."""
    shapes = [(128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 4, 2), (64, 64, 4, 3)]
    if window is not None:
        shapes += [(64, 64, 4, 2), (128, 32, 4, 3)]
    return {
        f"{q}x{k} w{w} s{s}": {
            "block_q": q, "block_k": k, "num_warps": w, "num_stages": s, "tma": True,
        }
        for q, k, w, s in shapes
    }  # fmt: skip


def causal_pairs(T: int, window: int | None) -> int:
    w = T if window is None else min(window, T)
    return w * (w + 1) // 2 + (T - w) * w


def prefill(B: int, T: int, HQ: int, HKV: int, D: int, window: int | None = None) -> Group:
    @cache
    def inputs() -> list[torch.Tensor]:
        return [normal(B, T, H, D) for H in (HQ, HKV, HKV)]

    def ours(**config: Any) -> Run:
        attention = kernels().attention
        chosen = attention.AttentionConfig(**config) if config else None
        return lambda: attention.flash_attention(*inputs(), window=window, config=chosen)

    def varlen() -> Run:
        from torch.nn.attention.varlen import varlen_attn

        cu = torch.arange(0, (B + 1) * T, T, device="cuda", dtype=torch.int32)
        flat = [x.reshape(B * T, x.shape[2], D) for x in inputs()]
        left = (window or T) - 1
        return lambda: varlen_attn(*flat, cu, cu, T, T, window_size=(left, 0)).view(B, T, HQ, D)

    def flex() -> Run:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
            return (i >= j) & (i - j < window)

        mask = torch.compile(create_block_mask)(seen, None, None, T, T, device="cuda")
        compiled = torch.compile(flex_attention, dynamic=False)
        heads = [x.transpose(1, 2) for x in inputs()]
        return lambda: compiled(*heads, block_mask=mask, enable_gqa=HQ != HKV).transpose(1, 2)

    def fla() -> Run:
        from fla.ops.attn.parallel import parallel_attn

        return lambda: parallel_attn(*inputs(), window_size=window)

    contenders: dict[str, Callable[[], Run]] = {"triton": ours}
    if window is None:
        contenders |= {
            "sdpa_cudnn": lambda: sdpa(*inputs(), "CUDNN_ATTENTION", True),
            "sdpa_flash": lambda: sdpa(*inputs(), "FLASH_ATTENTION", True),
        }
    else:
        contenders |= {"varlen": varlen, "flex": flex, "fla": fla}
    variants = attention_variants(window) if D == 128 else {}
    return Group(
        contenders,
        flops=4.0 * B * HQ * D * causal_pairs(T, window),
        bytes=2.0 * 2 * B * T * (HQ + HKV) * D,
        sweep={
            f"triton {name}": (lambda c=config: ours(**c)) for name, config in variants.items()
        },
    )


def gates(B: int, T: int, H: int) -> torch.Tensor:
    """Log-decays as trained gates have them: most a little under zero."""
    return torch.nn.functional.logsigmoid(torch.randn(B, T, H, device="cuda") + 4)


def linear_variants(T: int, segment_counts: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Configurations worth a try, and numbers of segments for the plain one."""
    variants = {}
    for chunk, block_v, w, s in (
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 2), (64, 32, 4, 3), (64, 64, 8, 2),
        (64, 128, 8, 2), (128, 64, 8, 2),
    ):  # fmt: skip
        config = {
            "chunk": chunk, "block_v": block_v, "num_warps": w, "num_stages": s, "tma": True,
        }  # fmt: skip
        middle = segment_counts[len(segment_counts) // 2]
        counts = segment_counts if (w, s) in ((4, 2), (8, 2)) else (middle,)
        for count in counts:
            name = f"c{chunk} v{block_v} w{w} s{s} x{count}"
            variants[name] = config | {"segment_len": -(-T // count)}
    return variants


def linear(B: int, T: int, H: int, segment_counts: tuple[int, ...]) -> Group:
    """K = V = 128, a gate per token and head, final state wanted."""
    D, chunk = 128, 64

    @cache
    def inputs() -> list[torch.Tensor]:
        return [normal(B, T, H, D), normal(B, T, H, D) * D**-0.5, normal(B, T, H, D)]

    gate = cache(lambda: gates(B, T, H))

    def ours(decayed: bool = True, segment_len: int | None = None, **config: Any) -> Run:
        module = kernels().linear
        chosen = module.LinearConfig(**config) if config else None
        return lambda: module.chunked_linear_attention(
            *inputs(), log_decay=gate() if decayed else None, output_final_state=True,
            segment_len=segment_len, config=chosen,
        )[0]  # fmt: skip

    def fla() -> Run:
        from fla.ops.simple_gla import chunk_simple_gla

        return lambda: chunk_simple_gla(*inputs(), gate(), scale=1.0, output_final_state=True)[0]

    sweep = {
        f"triton {name}": (lambda c=config: ours(**c))
        for name, config in linear_variants(T, segment_counts).items()
    }
    return Group(
        {"triton": ours, "fla": fla},
        flops=B * T * H * (4.0 * D * D + 4.0 * chunk * D),
        bytes=2.0 * 4 * B * T * H * D,
        sweep=sweep | {"triton no decay (other result)": lambda: ours(decayed=False)},
    )


def import_mamba() -> Any:
    """mamba_ssm's Triton SSD without its package's own __init__, which wants compiled parts."""
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None:
            raise ModuleNotFoundError("mamba_ssm is not installed")
        package = types.ModuleType("mamba_ssm")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["mamba_ssm"] = package
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined


def ssd(B: int, T: int, segment_counts: tuple[int, ...]) -> Group:
    """Mamba-2: 128 heads of P = 64, state N = 128, 8 groups."""
    H, P, N, G, chunk = 128, 64, 128, 8, 64

    @cache
    def inputs() -> tuple[torch.Tensor, ...]:
        dt = torch.nn.functional.softplus(torch.randn(B, T, H, device="cuda") - 4)
        A = -torch.linspace(1, 16, H, device="cuda")
        return normal(B, T, H, P), normal(B, T, G, N) * N**-0.5, normal(B, T, G, N), dt, A

    def ours(segment_len: int | None = None, **config: Any) -> Run:
        module = kernels().linear
        chosen = module.LinearConfig(**config) if config else None

        def run() -> torch.Tensor:
            x, keys, queries, dt, A = inputs()
            return module.chunked_linear_attention(
                queries, keys, x, log_decay=dt * A, value_scale=dt, output_final_state=True,
                segment_len=segment_len, config=chosen,
            )[0]  # fmt: skip

        return run

    def mamba() -> Run:
        scan = import_mamba()

        def run() -> torch.Tensor:
            x, keys, queries, dt, A = inputs()
            return scan(x, dt, A, keys, queries, chunk_size=256, return_final_states=True)[0]

        return run

    variants = {
        name: config
        for name, config in linear_variants(T, segment_counts).items()
        if config["block_v"] <= P
    }
    return Group(
        {"triton": ours, "mamba_ssm": mamba},
        flops=B * T * H * (4.0 * P * N + 2.0 * chunk * (P + N)),
        bytes=B * T * (2.0 * (2 * H * P + 2 * G * N) + 4.0 * H),
        sweep={
            f"triton {name}": (lambda c=config: ours(**c)) for name, config in variants.items()
        },
    )


def copy() -> Run:
    """A device copy: the bandwidth to compare with."""
    source = torch.empty(COPY_BYTES // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def decode_variants() -> dict[str, dict[str, Any]]:
    """Numbers of splits for the plain configuration, and other tiles with a few of them."""
    variants: dict[str, dict[str, Any]] = {
        f"x{splits}": {"num_splits": splits} for splits in (1, 2, 3, 4, 6, 8, 16, 33, 66)
    }
    for block_k, w, s in (
        (64, 4, 2), (64, 4, 3), (32, 4, 2), (32, 4, 3), (32, 4, 4), (128, 4, 2), (64, 8, 3),
    ):  # fmt: skip
        for splits in (1, 2, 4, 16, 33):
            variants[f"k{block_k} w{w} s{s} x{splits}"] = {
                "num_splits": splits, "block_k": block_k, "num_warps": w, "num_stages": s,
            }  # fmt: skip
    return variants


def decode(B: int, S: int, HQ: int, HKV: int, D: int, window: int | None = None) -> Group:
    near = slice(max(0, S - (window or S)), S)
    keys = S if window is None else min(S, window)

    @cache
    def inputs() -> list[torch.Tensor]:
        return [normal(B, 1, HQ, D), normal(B, S, HKV, D), normal(B, S, HKV, D)]

    def ours(num_splits: int | None = None, **config: Any) -> Run:
        module = kernels().decode
        chosen = module.DecodeConfig(**config) if config else None
        return lambda: module.flash_decode(
            *inputs(), window=window, num_splits=num_splits, config=chosen
        )

    def pinned(backend: str) -> Run:
        q, k, v = inputs()
        return sdpa(q, k[:, near], v[:, near], backend, False)

    return Group(
        {
            "triton": ours,
            "sdpa_cudnn": lambda: pinned("CUDNN_ATTENTION"),
            "sdpa_flash": lambda: pinned("FLASH_ATTENTION"),
            "copy": copy,
        },
        flops=4.0 * B * HQ * D * keys,
        bytes=2.0 * 2 * B * D * (keys * HKV + HQ),
        sweep={
            f"triton {name}": (lambda c=config: ours(**c))
            for name, config in decode_variants().items()
        },
    )


def latent_variants() -> dict[str, dict[str, Any]]:
    """Heads and keys of a tile, warps, stages; the splits as chosen."""
    return {
        f"h{block_h} k{block_k} w{w} s{s}": {
            "block_h": block_h, "block_k": block_k, "num_warps": w, "num_stages": s,
        }
        for block_h, block_k, w, s in (
            (64, 32, 8, 3), (64, 32, 8, 4), (64, 64, 8, 2), (32, 32, 8, 3), (32, 32, 4, 3),
            (32, 64, 8, 2), (32, 64, 8, 3), (16, 32, 4, 3), (16, 32, 4, 4), (16, 64, 4, 2),
            (16, 64, 4, 3),
        )
    }  # fmt: skip


def latent(B: int, S: int, H: int) -> Group:
    """MLA decode on the compressed cache: 512 latent and 64 rotary columns."""
    lora, rope = 512, 64

    @cache
    def inputs() -> list[torch.Tensor]:
        return [normal(B, 1, H, lora + rope), normal(B, S, 1, lora + rope)]

    def ours(**config: Any) -> Run:
        module = kernels().latent
        chosen = module.LatentConfig(**config) if config else None
        return lambda: module.latent_decode(*inputs(), lora=lora, config=chosen)

    return Group(
        {"triton": ours, "copy": copy},
        flops=2.0 * B * H * S * (2 * lora + rope),
        bytes=2.0 * B * (S + 2 * H) * (lora + rope),
        sweep={
            f"triton {name}": (lambda c=config: ours(**c))
            for name, config in latent_variants().items()
        },
    )


def step(B: int, H: int) -> Group:
    D = 128

    @cache
    def inputs() -> list[torch.Tensor]:
        return [normal(B, 1, H, D), normal(B, 1, H, D) * D**-0.5, normal(B, 1, H, D)]

    gate = cache(lambda: gates(B, 1, H))
    state = cache(lambda: torch.randn(B, H, D, D, device="cuda"))

    def ours() -> Run:
        module = kernels().linear
        return lambda: module.linear_attention_step(*inputs(), state=state(), log_decay=gate())

    def fla() -> Run:
        from fla.ops.simple_gla import fused_recurrent_simple_gla

        return lambda: fused_recurrent_simple_gla(
            *inputs(), gate(), scale=1.0, initial_state=state(), output_final_state=True
        )[0]

    # Ours changes the state in place, so the outputs of two calls differ on purpose.
    return Group(
        {"triton": ours, "fla": fla, "copy": copy}, bytes=8.0 * B * H * D * D, compared=False
    )


def convolution(B: int, T: int, C: int) -> Group:
    """Four taps and SiLU; one token moves its tail up, in place."""
    W = 4

    @cache
    def inputs() -> list[torch.Tensor]:
        return [normal(B, T, C), normal(C, W)]

    tail = cache(lambda: normal(B, W, C))
    across = cache(lambda: tail().transpose(1, 2).contiguous())

    def ours() -> Run:
        module = kernels().convolution
        x, w = inputs()
        w = w.T.contiguous().T
        if T == 1:
            return lambda: module.short_convolution_step(x, w, tail=tail())
        return lambda: module.short_convolution(x, w)

    def fla() -> Run:
        from fla.modules.causal_conv1d import causal_conv1d, causal_conv1d_update

        x, w = inputs()
        if T > 1:
            return lambda: causal_conv1d(x, w, activation="silu")[0]
        return lambda: causal_conv1d_update(x, across(), weight=w, activation="silu")[0]

    # A step changes its tail, so the outputs of two calls differ on purpose.
    moved = 2.0 * B * C * (2 * T if T > 1 else 2 + 2 * W)
    return Group({"triton": ours, "fla": fla, "copy": copy}, bytes=moved, compared=T > 1)


GROUPS: dict[str, Callable[[], Group]] = {
    "prefill 16K, 32/8 heads, D128": lambda: prefill(1, 16384, 32, 8, 128),
    "prefill 16K, 32/8 heads, D64": lambda: prefill(1, 16384, 32, 8, 64),
    "prefill 16K, 16/2 heads, D256": lambda: prefill(1, 16384, 16, 2, 256),
    "window 1024, 16K, 16 heads, D128": lambda: prefill(1, 16384, 16, 16, 128, window=1024),
    "linear B1 T32K H32": lambda: linear(1, 32768, 32, (1, 2, 3, 4, 6, 8, 16)),
    "linear B8 T4K H32": lambda: linear(8, 4096, 32, (1, 2)),
    "ssd B1 T4K": lambda: ssd(1, 4096, (1, 2, 4)),
    "ssd B1 T32K": lambda: ssd(1, 32768, (1, 2, 4, 8)),
    "decode B64 S1K, 32/8 heads": lambda: decode(64, 1024, 32, 8, 128),
    "decode B64 S8K, 32/8 heads": lambda: decode(64, 8192, 32, 8, 128),
    "decode B64 S8K W4K, 32/8 heads": lambda: decode(64, 8192, 32, 8, 128, window=4096),
    "decode B64 S8K W1K, 32/8 heads": lambda: decode(64, 8192, 32, 8, 128, window=1024),
    "decode B64 S8K, 16/2 heads, D256": lambda: decode(64, 8192, 16, 2, 256),
    "decode B8 S8K, 32/8 heads": lambda: decode(8, 8192, 32, 8, 128),
    "decode B1 S128K, 32/8 heads": lambda: decode(1, 131072, 32, 8, 128),
    "latent B1 S32K, 32 heads": lambda: latent(1, 32768, 32),
    "latent B64 S8K, 32 heads": lambda: latent(64, 8192, 32),
    "latent B64 S8K, 128 heads": lambda: latent(64, 8192, 128),
    "convolution B1 T32K C10240": lambda: convolution(1, 32768, 10240),
    "convolution B64 T1 C10240": lambda: convolution(64, 1, 10240),
    "convolution B256 T1 C10240": lambda: convolution(256, 1, 10240),
    "step B64 H32": lambda: step(64, 32),
}


def family(group: str) -> str:
    """Groups measured in one process: those whose name starts alike."""
    return group.split()[0]


@dataclass(frozen=True)
class Bar:
    """What must hold: our time times `factor` at most that of the fastest rival named."""

    group: str
    rivals: tuple[str, ...]
    factor: float
    text: str


BARS = (
    Bar("prefill 16K, 32/8 heads, D128", ("sdpa_cudnn",), 0.75, ">= 0.75x sdpa_cudnn"),
    Bar("window 1024, 16K, 16 heads, D128", ("varlen", "flex", "fla"), 1.0, "not slower"),
    Bar("linear B1 T32K H32", ("fla",), 1.5, ">= 1.5x fla"),
    Bar("linear B8 T4K H32", ("fla",), 1.0, "not slower than fla"),
    Bar("ssd B1 T4K", ("mamba_ssm",), 1.0, "not slower than mamba_ssm"),
    Bar("ssd B1 T32K", ("mamba_ssm",), 1.0, "not slower than mamba_ssm"),
)
BANDWIDTH_BARS = (
    "decode B64 S1K, 32/8 heads",
    "decode B64 S8K, 32/8 heads",
    "decode B64 S8K W4K, 32/8 heads",
    "decode B64 S8K W1K, 32/8 heads",
    "step B64 H32",
)


# ---- in the child processes ---------------------------------------------------------------------


def relative_rms(a: torch.Tensor, b: torch.Tensor) -> float:
    error = float((a.float() - b.float()).norm() / b.float().norm())
    return error if error == error else float("inf")


def capture(run: Run) -> tuple[Callable[[], None], int] | None:
    """The call as a CUDA graph and how often it is in there; None where it cannot be captured."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        single = record(run, 1)
        single()
        milliseconds = statistics.median(interleaved({"": single}, 3)[""])
        calls = max(1, round(GRAPH_MS / milliseconds)) if milliseconds < SHORT_MS else 1
        return (record(run, calls), calls) if calls > 1 else (single, 1)
    except Exception:  # noqa: BLE001 - whatever a rival does in capture, it is timed eagerly
        torch.cuda.synchronize()
        return None


def record(run: Run, calls: int) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    torch.cuda.synchronize()
    return graph.replay


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Milliseconds of each call, taken in turns so that clock drift meets all alike."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            stop.record()
            events[name].append((start, stop))
        torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) for a, b in pairs] for name, pairs in events.items()}


def summary(samples: list[float], calls: int = 1) -> dict[str, float]:
    """Median and spread per call, of samples that hold `calls` calls each."""
    ordered = sorted(sample / calls for sample in samples)
    n = len(ordered)
    return {
        "ms": statistics.median(ordered),
        "p20": ordered[n // 5],
        "p80": ordered[-1 - n // 5],
        "n": n,
        "calls": calls,
    }


def build_all(
    group: Group, names: list[str], report: Callable[..., None]
) -> tuple[dict[str, Run], dict[str, tuple[Callable[[], None], int]]]:
    """What runs and gives the right output: as calls, and as graphs where they capture."""
    eager: dict[str, Run] = {}
    graphs: dict[str, tuple[Callable[[], None], int]] = {}
    reference: torch.Tensor | None = None
    for name in names:
        report(begin=name)
        started = time.perf_counter()
        try:
            run = (group.contenders | group.sweep)[name]()
            out = run().clone()
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - a rival's failure is a row
            report(row=name, error=f"{type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
            continue
        row: dict[str, Any] = {"row": name, "first_call_s": time.perf_counter() - started}
        if name != "copy" and "other result" not in name and group.compared:
            reference = out if reference is None else reference
            row["difference"] = relative_rms(out, reference)
            if not row["difference"] <= TOLERANCE:
                report(**row, error="output differs from the first contender's")
                continue
        report(**row)
        eager[name] = run
        # A copy in a graph becomes a memory-copy node, which is slower than the kernel.
        if name != "copy" and (captured := capture(run)):
            graphs[name] = captured
    report(begin="")
    return eager, graphs


def measure(group_name: str, skip: set[str], sweep: bool, report: Callable[..., None]) -> None:
    """Times one group, writing what is known as soon as it is known."""
    torch.manual_seed(0)
    group = GROUPS[group_name]()
    names = [n for n in (*group.contenders, *(group.sweep if sweep else ())) if n not in skip]
    eager, graphs = build_all(group, names, report)
    counts = {name: count for name, (_, count) in graphs.items()}
    replays = {name: replay for name, (replay, _) in graphs.items()}
    plain = {name: run for name, run in eager.items() if name in group.contenders}
    work = {"flops": group.flops, "bytes": group.bytes}
    for name, samples in interleaved(replays).items():
        report(row=name, mode="graph", **work, **summary(samples, counts[name]))
    for name, samples in interleaved(plain).items():
        report(row=name, mode="eager", **work, **summary(samples))


def load_cases() -> types.ModuleType:
    path = ROOT / "tests" / "profiler" / "kernels" / "kernel_cases.py"
    spec = importlib.util.spec_from_file_location("kernel_cases", path)
    assert spec and spec.loader
    module = sys.modules["kernel_cases"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(dtype: str, names: list[str]) -> None:
    """Prints one JSON line per case: its pairs, or what it raised."""
    cases = load_cases()
    for name in names:
        row: dict[str, Any] = {"case": name, "dtype": dtype, "bad": [], "error": ""}
        try:
            if name.startswith("check_"):
                limit = cases.LIMITS[torch.bfloat16]
                errors = getattr(cases, name)()
                pairs = [{"pair": p, "error": e, "limit": limit} for p, e in errors.items()]
            else:
                pairs = cases.check(name, getattr(torch, dtype), "cuda", small=False)
            row["pairs"] = len(pairs)
            row["worst"] = max(pair["error"] for pair in pairs)
            row["bad"] = [pair for pair in pairs if not pair["error"] <= pair["limit"]]
        except Exception as error:  # noqa: BLE001 - the next case may still be right
            row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        print(json.dumps(row), flush=True)


def warm(group_name: str, names: list[str]) -> None:
    """Runs contenders once, for what they leave in the compilers' caches."""
    group = GROUPS[group_name]()
    for name in names:
        started, error = time.perf_counter(), ""
        try:
            (group.contenders | group.sweep)[name]()()
            torch.cuda.synchronize()
        except Exception as raised:  # noqa: BLE001 - the measuring process records it
            error = f"{type(raised).__name__}: {str(raised)[:300]}"
        seconds = time.perf_counter() - started
        row = {"group": group_name, "contender": name, "seconds": seconds, "error": error}
        print(json.dumps(row), flush=True)


# What to run the case with instead of the configuration chosen for it, one at a time.
DIAGNOSES: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "1 stage": {"num_stages": 1},
    "3 stages": {"num_stages": 3},
    "no bulk copies": {"tma": False},
    "V in blocks of 64": {"block_v": 64},
    "8 warps": {"block_v": 64, "num_warps": 8},
    "chunks of 32": {"chunk": 32},
    "chunks of 16": {"chunk": 16},
}


def diagnose(tokens: int, heads: tuple[int, int], V: int) -> None:
    """Prints one JSON line per variant: errors of the state, the output and each of its chunks."""
    cases, linear = load_cases(), kernels().linear
    B, K, (HK, HV) = 2, 128, heads
    generator = torch.Generator("cuda").manual_seed(0)
    make = cases.Make(dtype=torch.bfloat16, device="cuda", small=False, generator=generator)
    q, k, v = (
        make.normal(B, tokens, HK, K),
        make.keys(B, tokens, HK, K),
        make.normal(B, tokens, HV, V),
    )
    gate = make.gate(B, tokens, HV)
    expected, expected_state = cases.linear_reference(q, k, v, gate)
    device = linear.device_of(q)
    chosen = linear.linear_config(device, q.dtype, K, V, ragged=tokens % linear.LARGEST_CHUNK != 0)
    for name, changes in DIAGNOSES.items():
        row: dict[str, Any] = {"variant": name}
        try:
            out, state = linear.chunked_linear_attention(
                q, k, v, log_decay=gate, output_final_state=True,
                config=dataclasses.replace(chosen, **changes),
            )  # fmt: skip
            chunks = zip(out.split(chosen.chunk, 1), expected.split(chosen.chunk, 1), strict=True)
            row |= {
                "output": cases.relative_rms(out, expected),
                "state": cases.relative_rms(state, expected_state),
                "chunks": [cases.relative_rms(*pair) for pair in chunks],
            }
        except Exception as error:  # noqa: BLE001 - the next variant may run
            row["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        print(json.dumps(row), flush=True)


def child(kind: str, arguments: dict[str, Any]) -> None:
    """One job of `warm`, `check`, `measure` or `diagnose`; see the functions."""
    if kind == "diagnose":
        diagnose(**arguments)
    elif kind == "warm":
        warm(arguments["group"], arguments["names"])
    elif kind == "check":
        check(arguments["dtype"], arguments["names"])
    else:
        torch.manual_seed(0)
        for group in arguments["groups"]:

            def report(group: str = group, **row: Any) -> None:
                with open(arguments["path"], "a") as file:
                    file.write(json.dumps({"group": group} | row) + "\n")

            measure(group, set(arguments["skip"].get(group, ())), arguments["sweep"], report)
            torch.cuda.empty_cache()


# ---- in the parent ------------------------------------------------------------------------------


def spawn(
    kind: str, arguments: dict[str, Any], seconds: float, **environment: str
) -> tuple[int, list[dict[str, Any]], str]:
    """A child of this script: exit code, the JSON lines it printed, the end of its stderr."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, HERE, "--child", kind, json.dumps(arguments)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        code, error = 124, error + f"\nno end after {seconds:.0f} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return code, rows, error[-1500:]


def print_diagnosis(workers: int) -> bool:
    """A case that was once wrong, by each assembler; whether the one that we choose is right."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    shapes: dict[str, dict[str, Any]] = {
        "T 333, 4 heads, V 128": {"tokens": 333, "heads": (4, 4), "V": 128},
        "T 333, 2/16 heads, V 64": {"tokens": 333, "heads": (2, 16), "V": 64},
        "T 320, 4 heads, V 128": {"tokens": 320, "heads": (4, 4), "V": 128},
    }
    runs = [(tool, shape) for tool in sorted(folder.glob("ptxas*")) for shape in shapes]
    # A compile cache of its own for each: Triton's does not tell assemblers of a process apart.
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(
                spawn,
                "diagnose",
                shapes[shape],
                WARM_SECONDS,
                TRITON_PTXAS_PATH=str(tool),
                TRITON_CACHE_DIR=f"{cache}/{tool.name}",
            )  # fmt: skip
            for tool, shape in runs
        ]
        results = [future.result() for future in futures]
    limit, well = load_cases().LIMITS[torch.bfloat16], {tool.name: True for tool, _ in runs}
    for (tool, shape), (code, rows, error) in zip(runs, results, strict=True):
        print(f"\n{tool.name}, {shape}" + (f": exit {code}, {error[-300:]}" if code else ""))
        well[tool.name] &= not code
        for row in rows:
            if "error" in row:
                print(f"  {row['variant']:18} {row['error'][:90]}")
                continue
            right = max(row["output"], row["state"]) <= limit
            well[tool.name] &= right
            chunks = " ".join(f"{e:.0e}" for e in row["chunks"])
            mark = "     " if right else "WRONG"
            print(
                f"  {row['variant']:18} {mark} output {row['output']:.1e}, "
                f"state {row['state']:.1e}; by chunk {chunks}"
            )
    for name, right in well.items():
        version = subprocess.run([folder / name, "--version"], capture_output=True, text=True)
        release = version.stdout.strip().splitlines()[-2:-1]
        print(f"\n{name} ({', '.join(release)}): {'all right' if right else 'WRONG'}")
    # The last of the list is the one our kernels choose.
    return list(well.values())[-1]


def batches(names: list[str], size: int) -> list[list[str]]:
    return [names[i : i + size] for i in range(0, len(names), size)]


def warm_jobs(groups: list[str], sweep: bool) -> list[tuple[str, dict[str, Any]]]:
    """Rivals one by one, for theirs take longest; ours a few to a process."""
    rivals, ours = [], []
    for name in groups:
        group = GROUPS[name]()
        names = [n for n in (*group.contenders, *(group.sweep if sweep else ())) if n != "copy"]
        rivals += [[name, [n]] for n in names if not n.startswith("triton")]
        ours += [[name, b] for b in batches([n for n in names if n.startswith("triton")], 8)]
    return [("warm", {"group": group, "names": names}) for group, names in rivals + ours]


def check_jobs() -> list[tuple[str, dict[str, Any]]]:
    """Every case in bf16 and fp16, some in fp32, and the offsets past 2**31."""
    cases = list(load_cases().CASES)
    jobs = [(dtype, b) for dtype in ("bfloat16", "float16") for b in batches(cases, 4)]
    jobs += [("float32", ["attention_heads", "decode_heads"]), ("float32", ["linear_groups"])]
    jobs += [("bfloat16", ["check_large_attention", "check_large_linear"])]
    return [("check", {"dtype": dtype, "names": names}) for dtype, names in jobs]


def warm_and_check(groups: list[str], sweep: bool, checked: bool, workers: int) -> dict[str, Any]:
    """Compiles every contender and runs every correctness case, many processes at a time."""
    jobs = warm_jobs(groups, sweep) + (check_jobs() if checked else [])
    # Tuning beside other processes would choose by noise: compile only, tune when measuring.
    quiet = {"FLA_CACHE_RESULTS": "0", "TRITON_CACHE_AUTOTUNING": "0"}
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(spawn, *job, seconds=WARM_SECONDS, **quiet) for job in jobs]
        results = [future.result() for future in futures]
    report: dict[str, Any] = {"warm": [], "checks": []}
    for (kind, arguments), (code, rows, error) in zip(jobs, results, strict=True):
        report["warm" if kind == "warm" else "checks"] += rows
        if code and kind == "check":
            for name in arguments["names"][len(rows) :]:
                report["checks"].append(
                    {"case": name, "dtype": arguments["dtype"], "bad": [], "error": error}
                )
    return report


def measured(groups: list[str], sweep: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of some groups; a contender that kills the process is left out and the rest go on."""
    results: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in groups}
    skip: dict[str, list[str]] = {}
    for _ in range(4):
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
            arguments = {"groups": groups, "sweep": sweep, "skip": skip, "path": file.name}
            code, _, error = spawn("measure", arguments, GROUP_SECONDS * len(groups))
            lines = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
        last, begun = groups[0], ""
        for line in lines:
            last = line.pop("group")
            if "begin" in line:
                begun = line["begin"]
                continue
            row = results[last].setdefault(line.pop("row"), {})
            mode = line.pop("mode", None)
            row.update({mode: line} if mode else line)
        if code == 0:
            break
        reason = (error.strip().splitlines() or ["killed"])[-1][:300]
        results[last].setdefault(begun or "group", {})["error"] = reason
        if begun:
            skip.setdefault(last, []).append(begun)
        groups = groups[groups.index(last) + (not begun) :]
        if not groups:
            break
    return results


def best_ms(row: dict[str, Any]) -> float | None:
    """The graph's median, or the eager one where nothing could be captured."""
    for mode in ("graph", "eager"):
        if mode in row:
            return float(row[mode]["ms"])
    return None


def clocks() -> str:
    """Clocks, power, temperature and throttle reasons, for the record; never changed here."""
    if not shutil.which("nvidia-smi"):
        return "no nvidia-smi"
    query = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


def judge(results: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each bar with both times, the ratio and whether it holds."""
    verdicts = []
    for bar in BARS:
        rows = results.get(bar.group, {})
        ours = best_ms(rows.get("triton", {}))
        times = {n: t for n in bar.rivals if (t := best_ms(rows.get(n, {}))) is not None}
        if ours is None or not times:
            verdicts.append({"bar": bar.group, "need": bar.text, "held": None})
            continue
        rival, ms = min(times.items(), key=lambda item: item[1])
        ratio = ms / ours
        verdicts.append(
            {
                "bar": bar.group, "need": bar.text, "ours_ms": ours, "rival": rival,
                "rival_ms": ms, "ratio": ratio, "held": ratio >= bar.factor,
            }
        )  # fmt: skip
    for group in BANDWIDTH_BARS:
        rows = results.get(group, {})
        ours, device_copy = best_ms(rows.get("triton", {})), best_ms(rows.get("copy", {}))
        if ours is None or device_copy is None:
            verdicts.append({"bar": group, "need": ">= 0.9x copy bandwidth", "held": None})
            continue
        moved = next(rows["triton"][m]["bytes"] for m in ("graph", "eager") if m in rows["triton"])
        ours_tb, copy_tb = moved / ours / 1e9, COPY_BYTES / device_copy / 1e9
        verdicts.append(
            {
                "bar": group, "need": ">= 0.9x copy bandwidth", "ours_ms": ours,
                "rival": f"copy {copy_tb:.2f} TB/s", "rival_ms": device_copy,
                "ratio": ours_tb / copy_tb, "held": ours_tb / copy_tb >= 0.9,
            }
        )  # fmt: skip
    return verdicts


def print_report(report: dict[str, Any]) -> None:
    print(f"\n{report['environment']}")
    for check in report["checks"]:
        if check["bad"] or check["error"]:
            print(f"WRONG {check['case']} {check['dtype']}: {check['bad'][:3]} {check['error']}")
    good = [c for c in report["checks"] if not c["bad"] and not c["error"]]
    print(f"correct: {len(good)} of {len(report['checks'])} case files")
    for group, rows in report["results"].items():
        print(f"\n{group:36}      ms   TF/s  TB/s    eager")
        timed = sorted(
            (ms, name, row) for name, row in rows.items() if (ms := best_ms(row)) is not None
        )
        variants = [name for _, name, _ in timed if name.startswith("triton ")]
        for ms, name, row in timed:
            if name in variants[BEST_SHOWN:]:
                continue
            data = row.get("graph") or row["eager"]
            eager = f"{row['eager']['ms']:8.3f}" if "eager" in row else ""
            work = data["bytes"] if name != "copy" else COPY_BYTES
            rates = f"{data['flops'] / ms / 1e9:6.0f} {work / ms / 1e9:5.2f}"
            print(f"  {name:30} {ms:10.4f} {rates} {eager}")
        for name, row in rows.items():
            if "error" in row and not name.startswith("triton "):
                print(f"  {name:30} {row['error'][:80]}")
    print("\nbars")
    for v in report["bars"]:
        if v["held"] is None:
            print(f"  ?    {v['bar']:36} {v['need']}: not measured")
            continue
        print(
            f"  {'ok  ' if v['held'] else 'MISS'} {v['bar']:36} {v['need']:26} "
            f"{v['ratio']:.2f}x  ({v['ours_ms']:.3f} ms, {v['rival']} {v['rival_ms']:.3f} ms)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--sweep", action="store_true", help="time other configurations too")
    parser.add_argument("--only", default="", help="groups whose name contains this")
    parser.add_argument("--no-check", action="store_true", help="leave the correctness cases out")
    parser.add_argument("--diagnose", action="store_true", help="only look for wrong outputs")
    parser.add_argument("--workers", type=int, default=max(2, (os.cpu_count() or 4) - 2))
    arguments = parser.parse_args()
    if arguments.diagnose:
        sys.exit(0 if print_diagnosis(arguments.workers) else 1)
    groups = [name for name in GROUPS if arguments.only in name]
    started = time.perf_counter()
    import triton

    report: dict[str, Any] = {
        "environment": f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton "
        f"{triton.__version__}, {clocks()}",
        "checks": [],
        "results": {},
    }
    report |= warm_and_check(groups, arguments.sweep, not arguments.no_check, arguments.workers)
    report["warm_s"] = time.perf_counter() - started
    print(f"compiled and checked in {report['warm_s']:.0f} s", flush=True)
    for name in dict.fromkeys(map(family, groups)):
        report["results"] |= measured([g for g in groups if family(g) == name], arguments.sweep)
        report.setdefault("clocks", {})[name] = clocks()
        report["bars"] = judge(report["results"])
        report["total_s"] = time.perf_counter() - started
        arguments.out.write_text(json.dumps(report, indent=1))
        print(f"measured {name}: {report['total_s']:.0f} s", flush=True)
    print_report(report)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
