"""attn-plan: plan from the store. `attn-plan recommend --use-case rag`.

Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 failure, 2 usage,
3 environment, 5 nothing feasible.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner import __version__
from planner.errors import EnvironmentProblem, Infeasible, PlannerError, UsageError
from planner.workload import parse_tokens

if TYPE_CHECKING:
    from rich.console import Console

    from planner.decision.advisor import Advisor
    from planner.decision.recommend import Recommendation

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What a token mixer costs, what accuracy it keeps, and which to choose.",
)
evidence_app = typer.Typer(no_args_is_help=True, help="Published accuracy evidence in the store.")
db_app = typer.Typer(no_args_is_help=True, help="The store: where it is and what it holds.")
app.add_typer(evidence_app, name="evidence")
app.add_typer(db_app, name="db")


class Intent(StrEnum):
    BUILD = "build"
    DEPLOY = "deploy"


StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Store: a file or URL. Default: ATTN_STORE or the user's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
UseCaseOption = Annotated[
    str, typer.Option("--use-case", "-u", help="general, summarization, streaming, rag, …")
]
IntentOption = Annotated[
    Intent, typer.Option("--for", help="build: a new model; deploy: an existing one.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model of the catalog; default: the use case's."),
]
HardwareOption = Annotated[
    str | None,
    typer.Option("--hardware", "-g", help="Device; default: the best measured GPU."),
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
FloorOption = Annotated[
    float | None,
    typer.Option(
        "--retention-floor", help="Accuracy to keep against full attention, such as 0.95."
    ),
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="Weight dtype: bf16, fp8, int4.")
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


def _split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


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
    weights: str | None,
    kv: str | None,
    mixers: str | None,
    ratios: str | None,
) -> tuple[Recommendation, Advisor]:
    from planner.decision.use_case import load_use_case
    from planner.mixers import get_mixer

    case = load_use_case(use_case).changed(
        prompt_tokens=parse_tokens(prompt) if prompt else None,
        output_tokens=parse_tokens(output_length) if output_length else None,
        concurrency=concurrency,
        retention_floor=retention_floor,
    )
    for name in _split(mixers) or ():
        get_mixer(name)
    advisor = open_advisor(store)
    found = advisor.recommend(
        case,
        intent="build" if intent == "build" else "deploy",
        model_id=model,
        device_id=hardware,
        weights_dtype=weights,
        kv_dtype=kv,
        mixers=_split(mixers),
        ratios=_split(ratios),
    )
    return found, advisor


@app.command()
def recommend(
    use_case: UseCaseOption = "general",
    intent: IntentOption = Intent.BUILD,
    model: ModelOption = None,
    hardware: HardwareOption = None,
    prompt: LengthOption = None,
    output_length: OutputOption = None,
    concurrency: ConcurrencyOption = None,
    retention_floor: FloorOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
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
        weights=weights,
        kv=kv,
        mixers=mixers,
        ratios=ratios,
    )
    if as_json:
        print(ReportModel.of(found, advisor=advisor).to_json())
    else:
        print_recommendation(found, console())
    if found.winner is None:
        raise Infeasible("nothing meets the limits: " + "; ".join(r.text for r in found.reasons))


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="File: .html, .md or .json.")],
    use_case: UseCaseOption = "general",
    intent: IntentOption = Intent.BUILD,
    model: ModelOption = None,
    hardware: HardwareOption = None,
    prompt: LengthOption = None,
    output_length: OutputOption = None,
    concurrency: ConcurrencyOption = None,
    retention_floor: FloorOption = None,
    weights: WeightsOption = None,
    kv: KvOption = None,
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
        weights=weights,
        kv=kv,
        mixers=mixers,
        ratios=ratios,
    )
    write_report(found, output, advisor=advisor)
    say(f"wrote {output}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Model of the catalog, such as llama-3-70b.")],
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
    as_json: JsonOption = False,
) -> None:
    """What a model is made of, and the exact bytes of its KV cache and state."""
    from planner.catalog import load_model
    from planner.units import bytes_text
    from planner.workload import dtype_bytes

    tokens = parse_tokens(context)
    arch = load_model(model)
    if ratio is not None:
        arch = arch.with_mixer(mixer, ratio)
    kv_bytes = round(arch.kv_cache_bytes(tokens, dtype_bytes(kv)))
    state_bytes = round(arch.state_bytes(dtype_bytes(state)))
    facts = {
        "model": arch.name,
        "mixers": arch.describe(),
        "is_hybrid": arch.linear_mixer is not None and arch.num_full_layers > 0,
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
    if as_json:
        emit_json(facts)
        return
    for key, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        extra = f"  ({bytes_text(float(value))})" if key.endswith("_bytes") else ""  # type: ignore[arg-type]
        print(f"{key:26}{shown}{extra}")


@evidence_app.command("list")
def evidence_list(
    as_json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="All controlled comparisons as CSV.")] = False,
    store: StoreOption = None,
) -> None:
    """The sources of accuracy evidence and how many rows each contributes."""
    from planner.report.csv import safe_csv
    from planner.store import Store

    opened = Store.open(store)
    comparisons, sources = opened.comparisons(), opened.sources()
    if csv:
        sys.stdout.write(safe_csv(comparisons))
        return
    counts = comparisons.groupby("source").size()
    rows = [
        {"source": key, "title": title, "comparisons": int(counts.get(key, 0))}
        for key, title in zip(sources["key"], sources["title"], strict=True)
    ]
    if as_json:
        emit_json(rows)
        return
    for row in rows:
        print(f"{row['comparisons']:5}  {row['source']:24} {row['title']}")


@db_app.command("info")
def db_info(as_json: JsonOption = False, store: StoreOption = None) -> None:
    """Where the store is, its schema, and the data sets in it."""
    from planner.store import Store
    from planner.store.schema import SCHEMA_VERSION

    opened = Store.open(store)
    facts = {
        "store": opened.engine.url.render_as_string(hide_password=True),
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "datasets": {name: d.rows for name, d in opened.datasets().items()},
        "environments": len(opened.environments()),
        "runs": len(opened.runs()),
    }
    if as_json:
        emit_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            for name, rows in value.items():
                print(f"{'  ' + name:44}{rows:>8} rows")
        else:
            print(f"{key:18}{value}")


@app.command("app")
def run_app(
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8501,
    headless: Annotated[bool, typer.Option(help="Do not open a browser.")] = False,
    store: StoreOption = None,
) -> None:
    """Opens the dashboard in the browser, on this machine only."""
    from importlib.util import find_spec

    if find_spec("streamlit") is None:
        raise EnvironmentProblem("the dashboard needs streamlit: pip install attention-planner")
    main_file = Path(__file__).parent / "ui" / "app_main.py"
    environment = dict(os.environ)
    if store:
        environment["ATTN_STORE"] = store
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(main_file),
        "--server.port",
        str(port),
        "--server.headless",
        str(headless).lower(),
    ]
    try:
        code = subprocess.call(command, env=environment)
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


def _version(value: bool) -> None:
    if value:
        print(f"attn-plan {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def run_cli(command: Callable[[], None]) -> int:
    """Runs a command line: a user's error is one line on stderr and its exit code."""
    try:
        command()
    except PlannerError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def main() -> None:
    sys.exit(run_cli(app))


__all__ = ["UsageError", "app", "main", "run_cli"]


if __name__ == "__main__":
    main()
