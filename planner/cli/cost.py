"""`attn-plan cost`: what models cost, side by side, in seconds, bytes and dollars."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.catalog import DEFAULT_ENGINE
from planner.cli.model_options import named
from planner.cli.options import (
    HardwareOption,
    JsonOption,
    KvOption,
    StoreOption,
    TpOption,
    WeightsOption,
    console,
    emit_json,
    open_advisor,
    split_words,
)
from planner.errors import UsageError
from planner.workload import parse_lengths, parse_tokens

if TYPE_CHECKING:
    from planner.architecture import Architecture
    from planner.catalog import Price
    from planner.report.cost import TrainingStep


def cost(
    models: Annotated[
        list[str],
        typer.Argument(help="Models of the catalog, or paths of a config.json, to compare."),
    ],
    ratio: Annotated[
        str | None,
        typer.Option("--ratio", help="Also with its layers mixed so, such as 3:1 or 3:1,7:1."),
    ] = None,
    mixer: Annotated[
        str, typer.Option("--mixer", help="The linear mixers of --ratio, comma-separated.")
    ] = "gated_deltanet",
    hardware: HardwareOption = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Prompt length in tokens.")] = "8k",
    output_length: Annotated[
        str, typer.Option("--output-length", help="Output length in tokens.")
    ] = "512",
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", help="Requests at once.")
    ] = 16,
    weights: WeightsOption = None,
    kv: KvOption = None,
    tp: TpOption = 1,
    engine: Annotated[
        str, typer.Option("--engine", help="Whose memory rules: ideal, paged, vllm, sglang, …")
    ] = DEFAULT_ENGINE,
    mode: Annotated[
        str, typer.Option("--mode", help="graph, or eager: with what launches add.")
    ] = "graph",
    provider: Annotated[
        list[str] | None,
        typer.Option("--provider", help="As FAMILY=NAME; others take the fastest. Repeatable."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="US dollars an hour and device.")
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option("--prices", help="Your own price list, columns as data/prices/gpu.csv."),
    ] = None,
    utilisation: Annotated[
        float, typer.Option("--utilisation", help="Share of paid time that serves requests.")
    ] = 1.0,
    cache_hits: Annotated[
        float, typer.Option("--cache-hits", help="Share of prompt tokens in the prefix cache.")
    ] = 0.0,
    over: Annotated[
        str | None,
        typer.Option("--over-context", help="Also at these prompt lengths, such as 1k:128k."),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(
            "--training", help="Also a training step, as SEQUENCESxTOKENS, such as 8x4k."
        ),
    ] = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """What models cost: TTFT, TPOT, memory, how many fit, and $ a million tokens."""
    from planner.report.cost import CostReport
    from planner.report.cost_text import print_cost
    from planner.workload import Traffic

    traffic = Traffic(
        prompt_tokens=parse_tokens(prompt),
        output_tokens=parse_tokens(output_length),
        concurrency=concurrency,
        prefix_hit_rate=cache_hits,
        utilisation=utilisation,
    )
    wanted = list(_architectures(models, ratio, mixer, weights))
    lengths = parse_lengths(over) if over else []
    advisor = open_advisor(store)
    report = CostReport.of(
        advisor,
        wanted,
        traffic,
        device_id=hardware,
        weights_dtype=weights,
        kv_dtype=kv,
        tensor_parallel=tp,
        engine=engine,
        mode=mode,
        providers=dict(_provider(text) for text in provider or ()),
        price=_price(advisor.device(hardware).id, price, prices),
        contexts=lengths,
        training=_training(training) if training else None,
    )
    if as_json:
        emit_json(report.to_dict())
    else:
        print_cost(report, console())


def _architectures(
    names: list[str], ratio: str | None, mixers: str, weights: str | None
) -> Iterator[Architecture]:
    """Each model as it is, then with each mixer at each ratio."""
    for name in names:
        arch = named(name, weights)
        yield arch
        for part in split_words(ratio) or ():
            for mixer in split_words(mixers) or ():
                yield arch.with_mixer(mixer, part, name=f"{arch.name} {part} {mixer}")


def _provider(text: str) -> tuple[str, str]:
    family, equals, name = text.partition("=")
    if not (equals and family and name):
        raise UsageError(
            f"provider must be FAMILY=NAME, such as full_attention=sdpa_cudnn, got {text!r}"
        )
    return family, name


def _training(text: str) -> TrainingStep:
    from planner.report.cost import TrainingStep

    sequences, x, tokens = text.partition("x")
    if not (x and sequences.isdecimal() and int(sequences) >= 1):
        raise UsageError(f"--training must be SEQUENCESxTOKENS, such as 8x4k, got {text!r}")
    return TrainingStep(batch_size=int(sequences), tokens=parse_tokens(tokens))


def _price(hardware: str, usd_per_hour: float | None, file: Path | None) -> Price | None:
    """The price given, else the usual one of the user's list, else of the shipped list."""
    from planner import catalog
    from planner.cost.price import usual_price

    if usd_per_hour is None:
        return usual_price(catalog.prices(file), hardware)
    if not usd_per_hour > 0:
        raise UsageError(f"price must be above 0 US dollars an hour, got {usd_per_hour:g}")
    return catalog.Price(
        hardware=hardware,
        usd_per_hour=usd_per_hour,
        kind="own",
        source="--price",
        read_on=date.today().isoformat(),
    )
