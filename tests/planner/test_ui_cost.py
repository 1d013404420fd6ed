"""The dashboard's Cost page without a browser: what it shows is what the report says."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

from planner import catalog
from planner.cli.main import app as command_line
from planner.cost.price import token_price
from planner.decision.advisor import Advisor
from planner.errors import UsageError
from planner.report.cost import CostReport
from planner.report.cost_figures import cost_figures
from planner.store import Store
from planner.ui import cost_charts, cost_frames
from planner.ui.cost_scenario import PARAMETERS, CostScenario, misread, parse_price
from planner.ui.data import COST_LENGTHS
from planner.ui.glossary import GLOSSARY
from planner.ui.text import plain
from planner.workload import Traffic

MAIN_FILE = Path(__file__).parents[2] / "app.py"
TIMEOUT_S = 120
SIDES = ("input tokens", "output tokens")
LOOKS = {"Llama 3.1 8B": "#0072b2", "3:1 gated_deltanet": "#009e73"}


@pytest.fixture(scope="module")
def shipped_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("store") / "store.db")
    Store.open(path).close()
    return path


@pytest.fixture
def shipped(shipped_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_STORE", shipped_store)


def opened(**parameters: str) -> AppTest:
    app = AppTest.from_file(str(MAIN_FILE), default_timeout=TIMEOUT_S)
    app.switch_page("planner/ui/views/cost.py")
    app.query_params.update(parameters)
    app.run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    return "\n".join(e.value for e in [*app.markdown, *app.caption, *app.header, *app.subheader])


def figures(app: AppTest) -> dict[str, str]:
    return {m.label: m.value for m in app.metric}


@pytest.fixture(scope="module")
def report(shipped_store: str) -> CostReport:
    advisor = Advisor(Store.open(shipped_store))
    arch = catalog.load_model("llama-3.1-8b")
    return CostReport.of(
        advisor,
        [arch, arch.with_mixer("gated_deltanet", "3:1", name="3:1 gated_deltanet")],
        Traffic(prompt_tokens=32768, output_tokens=512, concurrency=64),
        device_id="h200-sxm",
        engine="vllm",
        price=catalog.Price(
            hardware="h200-sxm", usd_per_hour=3.6, kind="own", source="test", read_on="2026-11-25"
        ),
        contexts=(1024, 32768, 131072),
    )


# The page


@pytest.mark.usefixtures("shipped")
def test_the_page_shows_the_reports_figures(report: CostReport) -> None:
    app = opened(hardware="h200-sxm", price="3.6")
    assert not app.error and not app.warning
    expected = {f.label: f.text for f in cost_figures(report)}
    assert figures(app) == expected
    assert set(expected) >= {"Sequences that fit", "$ a million input tokens"}
    shown = texts(app)
    for figure in cost_figures(report):
        assert plain(figure.interval) in shown, figure.label
        assert plain(figure.baseline) in shown, figure.label
    assert shown.count("cheaper from a prompt of") == 2
    assert "energy a token is not measured here" in shown
    assert "own" in app.caption[0].value


@pytest.mark.usefixtures("shipped")
def test_a_moved_widget_moves_the_numbers() -> None:
    app = opened(hardware="h200-sxm", price="4")
    at_first = figures(app)
    app.text_input(key="price").set_value("8").run()
    doubled = figures(app)
    assert float(doubled["$ a million output tokens"].lstrip("$")) == pytest.approx(
        2 * float(at_first["$ a million output tokens"].lstrip("$")), rel=0.01
    )
    app.selectbox(key="ratio").set_value("1:0").run()
    assert not app.exception
    assert figures(app)["Memory per sequence"] != at_first["Memory per sequence"]
    assert plain("1:0 gated_deltanet") in texts(app)


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("engine", catalog.engine_ids())
def test_every_engine_has_its_source_on_the_page(engine: str) -> None:
    shown = texts(opened(hardware="h200-sxm", engine=engine))
    assert plain(catalog.load_engine(engine).source) in shown


@pytest.mark.usefixtures("shipped")
def test_a_model_alone() -> None:
    app = opened(mixer="none", hardware="h200-sxm")
    assert "cheaper from" not in texts(app)
    assert all(not m.delta for m in app.metric)
    assert "$ a million input tokens" in figures(app)


@pytest.mark.usefixtures("shipped")
def test_a_model_that_does_not_fit() -> None:
    app = opened(model="kimi-k2", mixer="none", hardware="rtx-4090")
    assert figures(app)["Sequences that fit"] == "0"
    assert figures(app)["TPOT"] == "does not fit"
    assert not any("million" in label or "batch" in label for label in figures(app))


@pytest.mark.usefixtures("shipped")
def test_a_device_without_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "prices", list)
    app = opened(hardware="h200-sxm", prompt="3000")
    assert "$ a million input tokens" not in figures(app)
    assert any("No price" in i.value for i in app.info)


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"price": "cheap"}, "US dollars an hour: must be a number above 0"),
        ({"ratio": "three"}, "ratio"),
        ({"prompt": "long"}, "whole number of tokens"),
        ({"tp": "8", "model": "qwen2.5-1.5b"}, "divide"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(parameters: dict[str, str], message: str) -> None:
    app = opened(**parameters)
    assert len(app.error) == 1
    assert message in app.error[0].value.replace("\\", "")
    assert app.sidebar.selectbox and any("nothing leaves it" in c.value for c in app.caption)
    if "tp" not in parameters:
        assert app.metric, "the default stands in"


@pytest.mark.usefixtures("shipped")
def test_a_link_that_cannot_be_meant_is_named() -> None:
    app = opened(engine="tgi", colour="red")
    warning = app.warning[0].value.replace("\\", "")
    assert "2 parameters" in warning
    assert "engine=tgi" in warning and "sglang" in warning and "colour" in warning


# The scenario


SCENARIO = CostScenario(
    model="llama-3.1-8b", mixer="mamba2", ratio="7:1", hardware="h200-sxm", prompt_tokens=65536,
    output_tokens=512, concurrency=8, weights_dtype=None, kv_dtype="fp8", tensor_parallel=2,
    engine="sglang", mode="eager", usd_per_hour=2.5, utilisation=0.5, prefix_hit_rate=0.25,
)  # fmt: skip


def test_the_command_asks_the_same(shipped_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_STORE", shipped_store)
    words = shlex.split(SCENARIO.command())
    assert words[:2] == ["attn-plan", "cost"]
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        command_line([*words[1:], "--json"])
    assert stopped.value.code == 0
    said = json.loads(out.getvalue())
    report = CostReport.of(
        Advisor(Store.open(shipped_store)),
        SCENARIO.architectures(),
        SCENARIO.traffic(),
        device_id="h200-sxm",
        kv_dtype="fp8",
        tensor_parallel=2,
        engine="sglang",
        mode="eager",
        price=SCENARIO.price(),
        contexts=COST_LENGTHS,
    )
    mine = json.loads(json.dumps(report.to_dict()))
    for one, other in zip(said["models"], mine["models"], strict=True):
        assert one == {**other, "model": one["model"]}


@pytest.mark.usefixtures("shipped")
def test_the_recommendation_links_to_its_cost() -> None:
    app = AppTest.from_file(str(MAIN_FILE), default_timeout=TIMEOUT_S)
    app.query_params.update({"use_case": "streaming", "hardware": "h200-sxm", "weights": "fp8"})
    app.query_params["tp"] = "2"
    app.run()
    link = re.findall(r'href="([^"]*)"', app.get("html")[0].proto.body)[0]
    link = html.unescape(link)
    parameters = dict(parse_qsl(urlsplit(link).query))
    assert urlsplit(link).path == "cost"
    assert misread(parameters, ["h200-sxm"]) == [] and parameters["tp"] == "2"
    there = figures(opened(**parameters))
    here = figures(app)
    for label in ("TTFT, 16k prompt", "TPOT at batch 64"):
        assert there[label] == here[label]
    assert there["Sequences that fit"] == here["Sessions that fit"]


def test_prices_typed() -> None:
    assert parse_price("list") is None and parse_price(" ") is None
    assert parse_price("2.5") == 2.5
    for text in ("0", "-1", "nan", "inf", "two"):
        with pytest.raises(UsageError, match="US dollars an hour"):
            parse_price(text)


def test_every_parameter_is_explained_and_checked() -> None:
    assert {p for p in PARAMETERS if p not in GLOSSARY} <= {"prompt", "output"}
    good = {"mixer": "none", "tp": "2", "engine": "vllm", "price": "3", "concurrency": "4"}
    assert misread(good, ["h200-sxm"]) == []
    bad = {"mixer": "magic", "tp": "3", "utilisation": "half", "use_case": "general"}
    assert [text.split(":")[0] for text in misread(bad, ["h200-sxm"])] == [
        "mixer=magic", "tp=3", "utilisation=half", "use_case",
    ]  # fmt: skip


# Frames and charts


def test_prices_are_those_of_each_length(report: CostReport) -> None:
    frame = cost_frames.prices(report)
    assert set(frame["side"]) == set(SIDES)
    assert (frame["low"] <= frame["usd"]).all() and (frame["usd"] <= frame["high"]).all()
    row = frame[(frame["length"] == 32768) & (frame["side"] == SIDES[1])].iloc[0]
    assert row["usd"] == pytest.approx(token_price(report.models[0].cost, 3.6).output.value)


def test_the_crossing_lies_where_the_lines_cross(report: CostReport) -> None:
    found = cost_frames.crossings(report).set_index("side")["length"]
    wide = cost_frames.prices(report).pivot_table(
        index=["side", "length"], columns="model", values="usd"
    )
    hybrid_is_cheaper = wide["3:1 gated_deltanet"] < wide["Llama 3.1 8B"]
    for side, length in found.items():
        at = hybrid_is_cheaper[side]
        assert not at[at.index < length].any() and at[at.index > length].all()


def test_parts_add_up_to_the_phase(report: CostReport) -> None:
    sums = cost_frames.parts(report).groupby(["model", "phase"])["ms"].sum()
    for m in report.models:
        assert sums[m.name, "TTFT"] == pytest.approx(1e3 * m.cost.prefill.seconds)
        assert sums[m.name, "TPOT"] == pytest.approx(1e3 * m.cost.decode.seconds)
    calls = cost_frames.calls(report)
    assert calls.groupby(["model", "phase"])["share"].sum().to_numpy() == pytest.approx(100)


def test_memory_bars_are_the_models_bytes(report: CostReport) -> None:
    sums = cost_frames.memory(report).groupby(["model", "rules"])["gib"].sum()
    for m in report.models:
        batch = m.cost.batch_size
        assert sums[m.name, "ideal"] == pytest.approx(m.ideal.at(m.context, batch).total / 2**30)
        assert sums[m.name, "reserved"] <= m.reserved.capacity / 2**30


def test_fewer_fit_at_greater_length_and_never_more_than_ideal(report: CostReport) -> None:
    fits = cost_frames.fits(report).pivot_table(
        index=["model", "length"], columns="rules", values="sequences", fill_value=0
    )
    assert (fits["reserved"] <= fits["ideal"]).all()
    for name in LOOKS:
        assert fits.loc[name]["reserved"].is_monotonic_decreasing


@pytest.mark.parametrize("side", SIDES)
def test_price_charts_have_a_rule_at_the_crossing(report: CostReport, side: str) -> None:
    crossings = cost_frames.crossings(report)
    spec = cost_charts.price_chart(cost_frames.prices(report), crossings, side, LOOKS).to_dict()
    marks = [layer["mark"]["type"] for layer in spec["layer"]]
    assert marks == ["area", "rule", "text", "line", "point"]
    without = cost_charts.price_chart(cost_frames.prices(report), crossings[:0], side, LOOKS)
    assert "rule" not in [layer["mark"]["type"] for layer in without.to_dict()["layer"]]


def test_bar_and_fit_charts_are_valid(report: CostReport) -> None:
    names = list(LOOKS)
    for phase in ("TTFT", "TPOT"):
        spec = cost_charts.parts_chart(cost_frames.parts(report), phase, names).to_dict()
        assert spec["encoding"]["y"]["sort"] == names
    bars = cost_charts.memory_chart(cost_frames.memory(report), names, 120.0).to_dict()
    assert [layer["mark"]["type"] for layer in bars["layer"]] == ["bar", "rule"]
    assert cost_charts.fit_chart(cost_frames.fits(report), LOOKS).to_dict()["layer"]
