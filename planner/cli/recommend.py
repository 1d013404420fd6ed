"""`attn-plan recommend` and `attn-plan report`: the decision, on a terminal or as a memo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.options import (
    ConcurrencyOption,
    FloorOption,
    GrowthOption,
    HardwareOption,
    Intent,
    IntentOption,
    JsonOption,
    KvOption,
    LengthOption,
    MixersOption,
    ModelOption,
    OutputOption,
    RatiosOption,
    ScoreFloorOption,
    SessionOption,
    StoreOption,
    TpOption,
    TpotOption,
    TtftOption,
    UseCaseOption,
    WeightsOption,
    console,
    open_advisor,
    say,
    split_words,
)
from planner.decision.use_case import FIRST_USE_CASE
from planner.errors import Infeasible
from planner.workload import parse_tokens

if TYPE_CHECKING:
    from planner.decision.advisor import Advisor
    from planner.decision.recommendation import Recommendation


def make_recommendation(
    store: str | None,
    use_case: str,
    intent: str,
    *,
    model: str | None,
    hardware: str | None,
    prompt: str | None,
    output_length: str | None,
    concurrency: int | None,
    retention_floor: float | None,
    floors: list[str] | None,
    weights: str | None,
    kv: str | None,
    mixers: str | None,
    ratios: str | None,
    ttft: str | None,
    tpot: str | None,
    session_mib: float | None,
    kv_growth: float | None,
    tp: int,
) -> tuple[Recommendation, Advisor]:
    from planner.cli.model_options import named
    from planner.decision.use_case import load_use_case
    from planner.mixers import get_mixer
    from planner.quality.absolute import ScoreFloor
    from planner.units import parse_seconds

    case = load_use_case(use_case).changed(
        prompt_tokens=parse_tokens(prompt) if prompt else None,
        output_tokens=parse_tokens(output_length) if output_length else None,
        concurrency=concurrency,
        retention_floor=retention_floor,
        score_floors=tuple(map(ScoreFloor.parse, floors)) if floors else None,
        ttft_s=parse_seconds(ttft, "--ttft") if ttft else None,
        tpot_s=parse_seconds(tpot, "--tpot") if tpot else None,
        session_bytes=None if session_mib is None else session_mib * 2**20,
        kv_slope_bytes=kv_growth,
    )
    for name in split_words(mixers) or ():
        get_mixer(name)
    advisor = open_advisor(store)
    found = advisor.recommend(
        case,
        intent="build" if intent == "build" else "deploy",
        model=named(model, weights) if model else None,
        device_id=hardware,
        weights_dtype=weights,
        kv_dtype=kv,
        tensor_parallel=tp,
        mixers=split_words(mixers),
        ratios=split_words(ratios),
    )
    return found, advisor


def recommend(
    use_case: UseCaseOption = FIRST_USE_CASE,
    intent: IntentOption = Intent.BUILD,
    model: ModelOption = None,
    hardware: HardwareOption = None,
    prompt: LengthOption = None,
    output_length: OutputOption = None,
    concurrency: ConcurrencyOption = None,
    ttft: TtftOption = None,
    tpot: TpotOption = None,
    session_mib: SessionOption = None,
    kv_growth: GrowthOption = None,
    retention_floor: FloorOption = None,
    floor: ScoreFloorOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    tp: TpOption = 1,
    mixers: MixersOption = None,
    ratios: RatiosOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Recommends mixer, ratio and placement for a use case, with reasons and alternatives."""
    from planner.report.model import ReportModel
    from planner.report.text import print_recommendation

    found, advisor = make_recommendation(
        store,
        use_case,
        intent.value,
        model=model,
        hardware=hardware,
        prompt=prompt,
        output_length=output_length,
        concurrency=concurrency,
        retention_floor=retention_floor,
        floors=floor,
        weights=weights,
        kv=kv,
        mixers=mixers,
        ratios=ratios,
        ttft=ttft,
        tpot=tpot,
        session_mib=session_mib,
        kv_growth=kv_growth,
        tp=tp,
    )
    if as_json:
        print(ReportModel.of(found, advisor=advisor).to_json())
    else:
        print_recommendation(found, console())
    if found.winner is None:
        raise Infeasible("nothing meets the limits: " + "; ".join(r.text for r in found.reasons))


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="File: .html, .md or .json.")],
    use_case: UseCaseOption = FIRST_USE_CASE,
    intent: IntentOption = Intent.BUILD,
    model: ModelOption = None,
    hardware: HardwareOption = None,
    prompt: LengthOption = None,
    output_length: OutputOption = None,
    concurrency: ConcurrencyOption = None,
    ttft: TtftOption = None,
    tpot: TpotOption = None,
    session_mib: SessionOption = None,
    kv_growth: GrowthOption = None,
    retention_floor: FloorOption = None,
    floor: ScoreFloorOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
    tp: TpOption = 1,
    mixers: MixersOption = None,
    ratios: RatiosOption = None,
    store: StoreOption = None,
) -> None:
    """Writes the recommendation as a memo: self-contained HTML, Markdown or JSON."""
    from planner.report import form_of, write_report

    form_of(output)
    found, advisor = make_recommendation(
        store,
        use_case,
        intent.value,
        model=model,
        hardware=hardware,
        prompt=prompt,
        output_length=output_length,
        concurrency=concurrency,
        retention_floor=retention_floor,
        floors=floor,
        weights=weights,
        kv=kv,
        mixers=mixers,
        ratios=ratios,
        ttft=ttft,
        tpot=tpot,
        session_mib=session_mib,
        kv_growth=kv_growth,
        tp=tp,
    )
    write_report(found, output, advisor=advisor)
    say(f"wrote {output}")
