"""Options that several commands share, and how every command speaks.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from planner.decision.advisor import Advisor


class Intent(StrEnum):
    BUILD = "build"
    DEPLOY = "deploy"


StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Store: a file or URL. Default: ATTN_STORE or the user's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
UseCaseOption = Annotated[
    str,
    typer.Option("--use-case", "-u", help="throughput, general, summarization, streaming, rag, …"),
]
IntentOption = Annotated[
    Intent, typer.Option("--for", help="build: a new model; deploy: an existing one.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Of the catalog, or a config.json's path; default: the use case's."
    ),
]
HardwareOption = Annotated[
    str | None,
    typer.Option("--hardware", "--gpu", "-g", help="Device; default: the best measured GPU."),
]
LengthOption = Annotated[
    str | None, typer.Option("--prompt", help="Prompt length in tokens, such as 32k.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output-length", help="Output length in tokens.")
]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--concurrency", "-c", help="Requests at once.")
]
TtftOption = Annotated[
    str | None, typer.Option("--ttft", help="Longest time to first token, such as 2s.")
]
TpotOption = Annotated[
    str | None, typer.Option("--tpot", help="Longest time per output token, such as 30ms.")
]
SessionOption = Annotated[
    float | None,
    typer.Option("--session-mib", help="Most MiB of cache and state that one session may hold."),
]
GrowthOption = Annotated[
    float | None,
    typer.Option("--kv-growth", help="Most bytes that one more token may add to a session."),
]
TpOption = Annotated[int, typer.Option("--tp", help="Tensor-parallel devices.")]
FloorOption = Annotated[
    float | None,
    typer.Option(
        "--retention-floor", help="Accuracy to keep against full attention, such as 0.95."
    ),
]
ScoreFloorOption = Annotated[
    list[str] | None,
    typer.Option("--floor", help="A score to reach, such as 'RULER>=85@128k'; repeatable."),
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="Weight dtype: bf16, fp8, int8, int4.")
]
KvOption = Annotated[str | None, typer.Option("--kv", help="KV cache dtype: bf16, fp8.")]
MixersOption = Annotated[
    str | None, typer.Option("--mixers", help="Only these linear mixers, comma-separated.")
]
RatiosOption = Annotated[
    str | None, typer.Option("--ratios", help="Only these linear:full ratios, such as 3:1,7:1.")
]


def console() -> Console:
    """stdout for tables: the terminal's width, or wide enough not to wrap in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    print(text, file=sys.stderr)


def emit_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def open_advisor(store: str | None) -> Advisor:
    from planner.decision.advisor import Advisor
    from planner.store import Store

    return Advisor(Store.open(store))


def split_words(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None
