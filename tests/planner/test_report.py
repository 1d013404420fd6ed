"""Reports: one model, three forms; nothing of a name runs, nothing is fetched, nothing is lost."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from planner.architecture import Architecture
from planner.catalog import load_hardware, load_model
from planner.cost.basis import Basis
from planner.cost.kernel import KernelCost
from planner.cost.model import CostModel, Deployment, ModelCost, Part, PhaseCost
from planner.cost.ratio import cost_ratio, surely_cheaper
from planner.decision.advisor import Advisor
from planner.decision.recommend import recommend
from planner.decision.recommendation import Recommendation
from planner.decision.use_case import Limits, UseCase, load_use_case
from planner.errors import EnvironmentProblem, UsageError
from planner.quality.task_mix import MixScore
from planner.report import FORMAT_VERSION, ReportModel, write_report
from planner.report.charts import frontier_chart, frontier_frame, layers_chart, layers_frame
from planner.report.csv import safe_csv
from planner.report.designs import designs_of, frame_of
from planner.report.evidence import source_url
from planner.report.markdown import escape
from planner.report.palette import luminance, styles_of
from planner.store import Store

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "report_keys.json"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> | `x` *b*\n# =cmd()"


class ScriptedMix:
    """By hand: 1:1 keeps 101 %, every halving of the full layers costs 2 points, none costs 40."""

    def scores(
        self,
        archs: Sequence[Architecture],
        weights: Mapping[str, float],
        *,
        context: int | None,
        baseline: int | None = None,
    ) -> list[MixScore]:
        return [self._score(arch, i == baseline) for i, arch in enumerate(archs)]

    def _score(self, arch: Architecture, control: bool) -> MixScore:
        share = arch.full_attention_share
        lost = 0.40 if share == 0 else 0.02 * math.log2(1 / share) - 0.03
        draws = np.full(201, 1.0) if control else np.linspace(0.95, 1.05, 201) - lost
        low, median, high = np.quantile(draws, (0.1, 0.5, 0.9))
        return MixScore(
            median=float(median), low=float(low), high=float(high), draws=draws,
            marginal=draws, coverage=1.0, strength="moderate", level="by hand", per_class={},
        )  # fmt: skip

    def has_ratio_rows(self, arch: Architecture) -> bool:
        return True


def advise(case: UseCase | None = None, *, model: Architecture | None = None) -> Recommendation:
    hardware = load_hardware("h200-sxm")
    costs = CostModel(KernelCost.fit([], hardware), Deployment(hardware=hardware))
    mix: Any = ScriptedMix()
    return recommend(
        case or load_use_case("throughput"),
        model=model or load_model("llama-3.1-8b"),
        intent="build",
        cost_model=costs,
        task_mix=mix,
        mixers=["gated_deltanet", "sliding_window"],
        ratios=["1:1", "3:1", "1:0"],
    )


@pytest.fixture(scope="module")
def found() -> Recommendation:
    return advise()


@pytest.fixture(scope="module")
def impossible() -> Recommendation:
    case = load_use_case("general")
    return advise(replace(case, limits=Limits(ttft_s=1e-6, tpot_s=10.0)))


@pytest.fixture(scope="module")
def hostile() -> Recommendation:
    return advise(
        replace(load_use_case("general"), title=HOSTILE, question=HOSTILE, source=HOSTILE),
        model=replace(load_model("llama-3.1-8b"), name=HOSTILE),
    )


# JSON


def key_paths(data: Any, prefix: str = "") -> set[str]:
    """Every key as a dotted path, list items as []."""
    if isinstance(data, dict):
        return {
            p for k, v in data.items() for p in {f"{prefix}{k}", *key_paths(v, f"{prefix}{k}.")}
        }
    if isinstance(data, list):
        return {p for item in data for p in key_paths(item, f"{prefix[:-1]}[].")}
    return set()


def test_the_json_has_the_golden_keys(found: Recommendation) -> None:
    """UPDATE_GOLDEN=1 pytest tests/planner/test_report.py writes the file anew."""
    paths = sorted(key_paths(json.loads(ReportModel.of(found).to_json())))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(paths, indent=1) + "\n")
    assert paths == json.loads(GOLDEN.read_text())


def test_every_key_is_documented(found: Recommendation) -> None:
    text = (ROOT / "docs" / "report-format.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)(?:\[\])?`", text))
    names = {p.rsplit(".", 1)[-1].removesuffix("[]") for p in json.loads(GOLDEN.read_text())}
    free = {"device", "kind"}  # names of an environment's facts
    assert names - documented - free == set()
    assert f"`format_version` is {FORMAT_VERSION}." in text


def test_the_json_says_what_the_recommendation_says(found: Recommendation) -> None:
    data = json.loads(ReportModel.of(found).to_json())
    winner = found.winner
    assert winner is not None
    assert data["answer"]["label"] == winner.candidate.label
    figures = {f["name"]: f for f in data["figures"]}
    assert figures["ttft_s"]["value"] == winner.cost.ttft_s
    assert figures["ttft_s"]["low"] <= figures["ttft_s"]["value"] <= figures["ttft_s"]["high"]
    assert figures["accuracy_kept"]["value"] == winner.quality.median
    assert figures["cost_ratio"]["value"] == pytest.approx(winner.cost_ratio)
    assert figures["session_bytes"]["value"] == winner.cost.memory.per_sequence
    assert {f["basis"] for f in data["figures"]} == {"published", "analytic", "formula"}
    assert [r["text"] for r in data["reasons"]] == [r.text for r in found.reasons]


def test_the_json_has_no_numbers_that_json_has_not(impossible: Recommendation) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    json.loads(ReportModel.of(impossible).to_json(), parse_constant=refuse)


def test_layers_are_the_pattern(found: Recommendation) -> None:
    model = ReportModel.of(found)
    assert model.answer is not None
    assert "".join(layer.letter for layer in model.layers) == model.answer.pattern
    assert [layer.index for layer in model.layers] == list(range(32))


def test_designs_stand_for_their_placements(found: Recommendation) -> None:
    designs = designs_of(found)
    # full attention, and two mixers at 1:1, 3:1 and 1:0
    assert len(designs) == 1 + 2 * 3
    assert len(designs_of(found, all_placements=True)) == len(found.evaluated)
    assert designs[0].is_baseline
    rest = [d.cost_ratio for d in designs[1:]]
    assert rest == sorted(rest)
    assert [d.role for d in designs].count("recommended") == 1


def test_the_command_asks_the_same(found: Recommendation) -> None:
    command = ReportModel.of(found).command
    assert command.startswith("attn-plan recommend --use-case throughput --for build")
    assert "--retention-floor 0.9" in command and "--prompt 8k" in command


def test_changed_limits_are_in_the_command(impossible: Recommendation) -> None:
    def command(**limits: float) -> str:
        case = impossible.use_case
        case = replace(case, limits=replace(case.limits, **limits))
        return ReportModel.of(replace(impossible, use_case=case)).command

    assert command().endswith("--ttft 0.000001s --tpot 10s")
    assert command(session_bytes=2.0**30).endswith("--tpot 10s --session-mib 1024")
    assert command(kv_slope_bytes=30000.0).endswith("--tpot 10s --kv-growth 30000")


def test_a_lifted_limit_has_no_command(impossible: Recommendation) -> None:
    """The use case limits TTFT; no option takes that away."""
    case = impossible.use_case
    assert load_use_case(case.id).limits.ttft_s is not None
    lifted = replace(impossible, use_case=replace(case, limits=replace(case.limits, ttft_s=None)))
    assert ReportModel.of(lifted).command == ""


def test_the_shipped_evidence_stands_behind_the_score(tmp_path: Path) -> None:
    advisor = Advisor(Store.open(str(tmp_path / "store.db")))
    made = advisor.recommend("general", device_id="h200-sxm", ratios=["3:1"])
    model = ReportModel.of(made, advisor=advisor)
    winner = made.winner
    assert winner is not None
    assert {line.id for line in model.evidence} == set(winner.quality.row_ids)
    assert sum(s.rows for s in model.sources) == len(model.evidence)
    assert all(s.title and s.tier for s in model.sources)


# The ratio of costs


def phase(*parts: tuple[str, float, float]) -> PhaseCost:
    """(error group, seconds, half-width) each."""
    return PhaseCost(
        parts=tuple(
            Part(
                role="mixer", name=group, count=1, seconds=seconds, low=seconds - half,
                high=seconds + half, basis=Basis.MEASURED, provider="x", error_group=group,
            )
            for group, seconds, half in parts
        )
    )  # fmt: skip


def with_prefill(cost: ModelCost, prefill: PhaseCost) -> ModelCost:
    return replace(cost, prefill=prefill, decode=phase(("none", 0.0, 0.0)))


def test_errors_of_shared_kernels_cancel_in_the_ratio(found: Recommendation) -> None:
    base = found.baseline.cost
    assert cost_ratio(base, base).low == cost_ratio(base, base).high == 1.0
    # all of both models is one kernel: 1 s and 2 s, each 10 % unsure, by the same factor
    one = with_prefill(base, phase(("gemm", 1.0, 0.1)))
    two = with_prefill(base, phase(("gemm", 2.0, 0.2)))
    same = cost_ratio(one, two)
    assert (same.low, same.value, same.high) == pytest.approx((0.5, 0.5, 0.5))


def test_errors_of_different_kernels_add_in_quadrature(found: Recommendation) -> None:
    base = found.baseline.cost
    one = with_prefill(base, phase(("a", 1.0, 0.03)))
    two = with_prefill(base, phase(("b", 1.0, 0.04)))
    apart = cost_ratio(one, two)
    # the first 3 % slower and the second 4 % faster, in quadrature of logarithms
    assert apart.high == pytest.approx(math.exp(math.hypot(math.log(1.03), -math.log(0.96))))
    assert apart.low == pytest.approx(math.exp(-math.hypot(-math.log(0.97), math.log(1.04))))


def test_a_shared_part_does_not_blur_who_is_cheaper(found: Recommendation) -> None:
    """However lopsided its interval: it is the same for both."""
    base = found.baseline.cost
    shared = replace(phase(("norms", 1.0, 0.0)).parts[0], low=0.5, high=3.0)
    own = phase(("mixer", 0.10, 0.001)).parts[0]
    less = replace(own, seconds=0.09, low=0.0891, high=0.0909)
    dear, cheap = (with_prefill(base, PhaseCost(parts=(shared, part))) for part in (own, less))
    assert surely_cheaper(cheap, dear)
    assert not surely_cheaper(dear, cheap)
    assert not surely_cheaper(dear, dear)


def test_without_a_cost_nothing_is_cheaper(found: Recommendation) -> None:
    base = found.baseline.cost
    nothing = replace(base, batch_size=0)
    assert surely_cheaper(base, nothing)
    assert not surely_cheaper(nothing, base)
    assert not surely_cheaper(nothing, nothing)


def test_a_wild_interval_stays_a_number(found: Recommendation) -> None:
    base = found.baseline.cost
    wild = with_prefill(
        base,
        PhaseCost(parts=(replace(phase(("a", 1.0, 0.0)).parts[0], low=0.0, high=1e6),)),
    )
    ratio = cost_ratio(wild, with_prefill(base, phase(("b", 1.0, 0.1))))
    assert 0 < ratio.low < 1 < ratio.high < 2e6


# Limits


def test_what_does_not_fit_says_which_limit_and_the_nearest_value(
    impossible: Recommendation,
) -> None:
    model = ReportModel.of(impossible)
    assert model.answer is None and model.figures == () and model.layers == ()
    ttft = next(x for x in model.limits if x.constraint == "ttft")
    assert ttft.rejects == ttft.designs == 7
    fastest = min(e.cost.ttft_s for e in impossible.evaluated if len(e.broken) == 1)
    assert ttft.relax_to == fastest


@pytest.mark.parametrize("constraint", ["ttft", "floor"])
def test_the_relaxed_limit_lets_a_design_pass(constraint: str) -> None:
    case = load_use_case("general")
    if constraint == "ttft":
        case = replace(case, limits=Limits(ttft_s=1e-6))
        found = advise(case)
        relax_to = ReportModel.of(found).limits[0].relax_to
        passing = advise(replace(case, limits=Limits(ttft_s=relax_to)))
    else:
        # a floor above parity rejects everything, the control too
        case = replace(case.changed(retention_floor=1.2), limits=Limits())
        found = advise(case)
        relax_to = ReportModel.of(found).limits[0].relax_to
        passing = advise(case.changed(retention_floor=relax_to))
    assert found.winner is None
    assert passing.winner is not None


def test_too_little_memory_names_the_weights_that_fit() -> None:
    found = advise(model=load_model("qwen3-next-80b-a3b"))
    memory = next(x for x in ReportModel.of(found).limits if x.constraint == "memory")
    # 80e9 parameters: 160 GB in bf16, 80 GB in fp8, of 150.75e9 x 0.9 bytes
    assert memory.relax_dtype == "fp8"
    assert "fp8" in memory.relax_text


# HTML


class Page(HTMLParser):
    """What a browser would run, load or follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.append(name)
            if name in ("src", "srcset", "data") or (name.endswith("href") and tag != "a"):
                self.loads.append(str(value))
            if tag == "a" and name == "href":
                self.links.append(str(value))


def test_html_stands_alone(found: Recommendation) -> None:
    text = ReportModel.of(found).to_html()
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert [v for v in page.loads if not v.startswith("#")] == []
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert page.tags.count("svg") == 2, "the frontier and the layers"
    assert len(text) < 400_000


def test_html_keeps_names_inert(hostile: Recommendation) -> None:
    page = Page(ReportModel.of(hostile).to_html())
    assert "script" not in page.tags and "img" not in page.tags
    assert page.handlers == []


def test_html_shows_every_figure_with_its_basis(found: Recommendation) -> None:
    model = ReportModel.of(found)
    text = model.to_html()
    for figure in model.figures:
        assert figure.text in text and f">{figure.basis}</span>" in text
    for design in model.designs:
        assert design.label in text


def test_every_form_says_that_nothing_meets_the_limits(impossible: Recommendation) -> None:
    model = ReportModel.of(impossible)
    assert "Nothing meets the limits" in model.to_html()
    assert "Nothing meets the limits" in model.to_markdown()
    assert json.loads(model.to_json())["answer"] is None


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("arXiv:2507.06457v1", "https://arxiv.org/abs/2507.06457v1"),
        ("see https://github.com/a/b.", "https://github.com/a/b"),
        ("javascript:alert(1)", ""),
        ('https://x/"onmouseover="alert(1)', "https://x/"),
        ("a talk", ""),
    ],
)
def test_citations_become_links_only_if_they_are(reference: str, url: str) -> None:
    assert source_url(reference) == url


# Markdown and CSV


def test_markdown_tables_keep_their_columns(hostile: Recommendation) -> None:
    tables: list[list[int]] = [[]]
    for line in ReportModel.of(hostile).to_markdown().splitlines():
        if line.startswith("|"):
            tables[-1].append(len(re.findall(r"(?<!\\)\|", line)))
        elif tables[-1]:
            tables.append([])
    assert len([t for t in tables if t]) >= 4
    assert all(len(set(counts)) == 1 for counts in tables if counts)


def test_markdown_shows_names_as_written(hostile: Recommendation) -> None:
    text = ReportModel.of(hostile).to_markdown()
    outside_code = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert len(outside_code) < len(text), "the command holds the name"
    assert not re.search(r"(?<!\\)<(script|img)", outside_code)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gated_deltanet", "gated_deltanet"),
        ("_x_", r"\_x\_"),
        ("a\n# b", "a # b"),
        ("# b", r"\# b"),
        ("1. x", r"1\. x"),
        ("1.05x", "1.05x"),
        ("[a](b)", r"\[a\](b)"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_csv_cells_are_no_formulas() -> None:
    frame = pd.DataFrame({"=name": ["=1+1", "@x", "plain", "-2"], "value": [-1.5, 2.0, 3.0, 4.0]})
    lines = safe_csv(frame).splitlines()
    assert lines == ["'=name,value", "'=1+1,-1.5", "'@x,2.0", "plain,3.0", "'-2,4.0"]


def test_the_designs_as_csv_are_numbers(found: Recommendation) -> None:
    from io import StringIO

    frame = frame_of(designs_of(found))
    read = pd.read_csv(StringIO(safe_csv(frame)))
    assert list(read["cost_ratio"]) == pytest.approx(list(frame["cost_ratio"]))


# Charts and colours


def test_the_frontier_draws_every_design_once(found: Recommendation) -> None:
    designs = designs_of(found)
    frame = frontier_frame(designs)
    spec = frontier_chart(frame, floor=90.0).to_dict()
    assert len(frame) == len(designs)
    assert sum(len(rows) for rows in spec["datasets"].values()) < 2000
    # pure linear keeps 60 %, 30 below the floor: on the bottom edge, inside the axis
    low, _ = next(
        layer["encoding"]["y"]["scale"]["domain"]
        for layer in spec["layer"]
        if layer.get("encoding", {}).get("y", {}).get("field") == "shown"
    )
    shown = [r["shown"] for rows in spec["datasets"].values() for r in rows if "cost_low" in r]
    assert min(shown) >= low > 50


def test_a_design_without_evidence_is_a_tick_not_a_point(found: Recommendation) -> None:
    designs = designs_of(found)
    unknown = replace(designs[-1], accuracy_kept=math.nan, accuracy_low=math.nan)
    frame = frontier_frame([*designs[:-1], unknown])
    assert list(frame.loc[~frame["covered"], "label"]) == [unknown.label]
    assert frame["role"].iloc[-1] == "recommended", "drawn last, on top"
    frontier_chart(frame).to_dict()


def test_costs_are_drawn_in_seconds_where_no_session_of_the_baseline_fits(
    found: Recommendation,
) -> None:
    nan = math.nan
    designs = [
        replace(d, cost_ratio=nan, cost_ratio_low=nan, cost_ratio_high=nan)
        for d in designs_of(found)
    ]
    frame = frontier_frame(designs)
    assert len(frame) == len(designs) and frame["in_seconds"].all()
    assert sorted(frame["cost"]) == sorted(d.gpu_seconds_per_request for d in designs)
    assert frame["cost_interval"].str.fullmatch(r"\S+ m?s to \S+ m?s").all()
    spec = frontier_chart(frame).to_dict()
    axes = [layer["encoding"]["x"] for layer in spec["layer"] if "x" in layer.get("encoding", {})]
    titled = [axis for axis in axes if "title" in axis]
    assert {axis["title"] for axis in titled} == {"GPU time per request"}
    assert all("' s'" in axis["axis"]["labelExpr"] for axis in titled)


@pytest.mark.slow
def test_a_prompt_that_full_attention_has_no_room_for_is_told_in_seconds(tmp_path: Path) -> None:
    advisor = Advisor(Store.open(str(tmp_path / "store.db")))
    use_case = load_use_case("summarization").changed(prompt_tokens=2**20)
    model = ReportModel.of(advisor.recommend(use_case, device_id="h100-sxm"))
    assert model.answer is not None and model.runner_up is not None
    cost = model.figure("gpu_seconds_per_request")
    assert cost.value > 0 and cost.text.endswith(" s") and "no session fits" in cost.baseline
    assert model.figure("tpot_s").baseline == "full attention: does not fit"
    text = model.to_markdown()
    assert f"{model.runner_up.cost_text} of GPU time a request" in text
    assert "n/a of" not in text


def test_long_stacks_wrap_into_equal_rows(found: Recommendation) -> None:
    one = ReportModel.of(found).layers[0]
    frame = layers_frame([replace(one, index=i) for i in range(80)])
    # 80 layers at most 48 a row: two rows of 40
    assert list(frame.groupby("row").size()) == [40, 40]
    layers_chart(frame).to_dict()


def test_mixers_differ_in_colour_and_in_shape_and_letters_read() -> None:
    styles = list(styles_of(["full_attention", "sliding_window", "linear_attention", "lightning",
                             "gated_deltanet", "kda", "mamba2", "mla"]).values())  # fmt: skip
    for what in ("colour", "shape", "letter"):
        assert len({getattr(s, what) for s in styles}) == len(styles)
    for style in styles:
        light, dark = sorted((luminance(style.ink), luminance(style.colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


# Files


@pytest.mark.parametrize(
    ("name", "start"), [("m.html", "<!doctype"), ("m.md", "# "), ("m.JSON", "{")]
)
def test_the_suffix_says_the_form(
    name: str, start: str, found: Recommendation, tmp_path: Path
) -> None:
    write_report(found, tmp_path / name)
    assert (tmp_path / name).read_text().startswith(start)


def test_an_unknown_suffix_is_refused_with_the_known_ones(
    found: Recommendation, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"\.html, \.md, \.json, got 'memo\.doc'"):
        write_report(found, tmp_path / "memo.doc")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_says_so(found: Recommendation, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        write_report(found, tmp_path / "missing" / "memo.md")
