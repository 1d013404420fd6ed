"""`attn-plan inspect`: what a model is made of, and what it stores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.model_options import named
from planner.cli.options import JsonOption, emit_json
from planner.workload import parse_tokens

if TYPE_CHECKING:
    from planner.architecture import Architecture


def inspect(
    model: Annotated[
        str, typer.Argument(help="Model of the catalog, such as llama-3-70b, or a config.json.")
    ],
    context: Annotated[str, typer.Option("--context", help="Tokens per sequence.")] = "128k",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences.")] = 1,
    kv: Annotated[str, typer.Option("--kv", help="KV cache dtype.")] = "bf16",
    state: Annotated[str, typer.Option("--state", help="Recurrent state dtype.")] = "fp32",
    ratio: Annotated[
        str | None, typer.Option("--ratio", help="As if its layers were mixed so, such as 3:1.")
    ] = None,
    mixer: Annotated[
        str, typer.Option("--mixer", help="The linear mixer of --ratio.")
    ] = "gated_deltanet",
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="Also what it reserves: paged, vllm, sglang, llama-cpp."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What a model is made of, and the exact bytes of its KV cache and state."""
    from planner.units import bytes_text
    from planner.workload import dtype_bytes

    tokens = parse_tokens(context)
    arch = named(model)
    if ratio is not None:
        arch = arch.with_mixer(mixer, ratio)
    kv_bytes = round(arch.kv_cache_bytes(tokens, dtype_bytes(kv)))
    state_bytes = round(arch.state_bytes(dtype_bytes(state)))
    facts: dict[str, object] = {
        "model": arch.name,
        "mixers": arch.describe(),
        "is_hybrid": bool(arch.linear_mixers) and arch.num_full_layers > 0,
        "layers": arch.pattern.run_length(),
        "num_layers": arch.num_layers,
        "parameters": arch.parameters(),
        "active_parameters": arch.active_parameters(),
        "context_tokens": tokens,
        "batch_size": batch,
        "kv_cache_bytes": batch * kv_bytes,
        "kv_slope_bytes_per_token": round(arch.kv_slope_bytes(tokens, dtype_bytes(kv))),
        "state_bytes": batch * state_bytes,
        "basis": "formula",
    }
    if engine is not None:
        facts |= _reserved(arch, tokens, batch, kv, state, engine)
    if as_json:
        emit_json(facts)
        return
    for key, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        extra = f"  ({bytes_text(value)})" if isinstance(value, int) and "_bytes" in key else ""
        print(f"{key:26}{shown}{extra}")


def _reserved(
    arch: Architecture, tokens: int, batch: int, kv: str, state: str, engine: str
) -> dict[str, object]:
    """As an engine's rules round, pad and multiply them, on a device that is never full."""
    from planner.catalog import load_engine
    from planner.cost.memory import MemoryModel

    rules = load_engine(engine)
    memory = MemoryModel(
        arch=arch, memory_bytes=math.inf, kv_dtype=kv, state_dtype=state, rules=rules
    )
    return {
        "engine": rules.name,
        "reserved_kv_cache_bytes": round(batch * memory.kv_bytes(tokens)),
        "reserved_state_bytes": round(batch * memory.state_bytes()),
    }
