"""The dashboard without a browser: every page on the shipped data, and what its tables compute."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from planner.catalog import load_hardware, load_model
from planner.decision.use_case import load_use_case, use_case_ids
from planner.errors import UsageError
from planner.store import Environment, Outcome, Point, Store
from planner.ui import frames
from planner.ui.charts import latency_chart, residual_chart, retention_chart
from planner.ui.glossary import GLOSSARY
from planner.ui.main import VIEWS
from planner.ui.scenario import (
    LENGTHS,
    PARAMETERS,
    Scenario,
    limit_text,
    misread,
    parse_limit,
    presets,
)
from planner.ui.text import basis_badge, plain
from planner.workload import MixerOp, StackOp, Workload, parse_tokens

ROOT = Path(__file__).parents[2]
MAIN_FILES = (ROOT / "app.py", ROOT / "planner" / "ui" / "app_main.py")
TIMEOUT_S = 120

MODEL = load_model("llama-3.1-8b")
FULL = MODEL.spec_for("full_attention")
GDN = MODEL.spec_for("gated_deltanet")
ENVIRONMENT = Environment(device="Toy GPU", device_kind="cuda", versions={"torch": "2.13"})


# Pages


@pytest.fixture(scope="module")
def shipped_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("store") / "store.db")
    Store.open(path).close()
    return path


@pytest.fixture
def shipped(shipped_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that ships; what the server cached of it is kept from test to test."""
    monkeypatch.setenv("ATTN_STORE", shipped_store)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store without the shipped data, and nothing cached before or after."""
    monkeypatch.setattr("planner.store.shipped.load_shipped", lambda store: [])
    monkeypatch.setenv("ATTN_STORE", str(tmp_path / "store.db"))
    st.cache_data.clear()
    st.cache_resource.clear()
    yield tmp_path / "store.db"
    st.cache_data.clear()
    st.cache_resource.clear()


def opened(page: str = "recommend", *, main: Path = MAIN_FILES[0], **parameters: str) -> AppTest:
    app = AppTest.from_file(str(main), default_timeout=TIMEOUT_S)
    app.query_params.update(parameters)
    app.run()
    if page != "recommend":
        views = Path("planner/ui/views") if main.name == "app.py" else Path("views")
        app.switch_page(str(views / f"{page}.py")).run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    return "\n".join(e.value for e in [*app.markdown, *app.caption, *app.header, *app.subheader])


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("main", MAIN_FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.title)
def test_every_page_opens_from_either_main_file(view, main: Path) -> None:
    app = opened(view.script.removesuffix(".py"), main=main)
    assert app.header
    assert not app.error


@pytest.mark.usefixtures("shipped")
def test_the_first_page_is_filled_in_and_shows_the_answer_first() -> None:
    app = opened()
    labels = [m.label for m in app.metric]
    assert labels[:2] == ["Accuracy kept", "Cost against full attention"]
    assert {"Memory per session", "Sessions that fit"} <= set(labels)
    case = load_use_case(app.selectbox(key="use_case").value)
    assert case.question in app.header[0].value


@pytest.mark.usefixtures("shipped")
def test_the_numbers_are_those_of_the_advisor() -> None:
    from planner.ui import data

    app = opened(use_case="streaming", hardware="h200-sxm", floor="0")
    found = data.advisor().recommend(
        load_use_case("streaming").changed(retention_floor=0.0), device_id="h200-sxm"
    )
    assert found.winner is not None
    assert plain(found.winner.candidate.label) in texts(app)
    fit = next(m for m in app.metric if m.label == "Sessions that fit")
    assert fit.value == f"{found.winner.cost.max_concurrency:,}"


@pytest.mark.usefixtures("shipped")
def test_a_moved_widget_moves_the_numbers() -> None:
    app = opened(use_case="general", hardware="rtx-4090", ttft_ms="none", tpot_ms="none")
    memory = {m.label: m.value for m in app.metric}["Memory per session"]
    app.selectbox(key="prompt").set_value("8k").run()
    assert not app.exception
    assert {m.label: m.value for m in app.metric}["Memory per session"] != memory
    assert "8k prompt" in texts(app)


@pytest.mark.usefixtures("shipped")
def test_any_length_can_be_typed() -> None:
    assert "3,000 prompt" in texts(opened(use_case="general", hardware="rtx-4090", prompt="3000"))


@pytest.mark.usefixtures("shipped")
def test_a_use_case_sets_the_other_controls_and_reset_sets_them_again() -> None:
    app = opened(use_case="general", hardware="rtx-4090", prompt="64k")
    assert app.selectbox(key="prompt").value == "64k"
    app.selectbox(key="use_case").set_value("streaming").run()
    assert app.selectbox(key="prompt").value == "16k"
    assert app.number_input(key="concurrency").value == 64
    assert app.text_input(key="kv_growth").value == "0"
    app.number_input(key="concurrency").set_value(3).run()
    next(b for b in app.button if b.label == "Reset to the use case").click().run()
    assert app.number_input(key="concurrency").value == 64


@pytest.mark.usefixtures("shipped")
def test_where_nothing_is_feasible_it_says_what_binds_and_relaxing_helps() -> None:
    app = opened(use_case="general", hardware="rtx-4090", ttft_ms="0.001")
    assert "Nothing meets the limits" in texts(app)
    assert not app.metric
    app.button(key="relax_ttft").click().run()
    assert not app.exception
    assert float(app.text_input(key="ttft_ms").value) > 0.001
    assert [m.label for m in app.metric][0] == "Accuracy kept"


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompt": "long"}, "whole number of tokens"),
        ({"tpot_ms": "fast"}, "TPOT at most, ms: must be a number of at least 0, or none"),
        ({"prompt": "0"}, "prompt_tokens must be at least 1"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(parameters: dict[str, str], message: str) -> None:
    app = opened(**parameters)
    assert len(app.error) == 1
    assert message in app.error[0].value.replace("\\", "")
    assert_page_stands(app)


def assert_page_stands(app: AppTest) -> None:
    """Controls, answer and footer, whatever was wrong with a value."""
    assert app.sidebar.selectbox and app.header and app.metric
    assert any("nothing leaves it" in c.value for c in app.caption)


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("parameters", "message", "instead"),
    [
        ({"prompt": "abc"}, "got 'abc'", "prompt length 8k"),
        ({"output": "-5"}, "got '-5'", "output length 512"),
        ({"score_floor": "NIAH>=85@4k"}, "unknown benchmark 'NIAH'", "Score floor none"),
        ({"model": "llama-9"}, "llama-9", "model llama-3.1-8b"),
        ({"model": "/nowhere/config.json"}, "config.json", "model llama-3.1-8b"),
    ],
)
def test_the_use_cases_own_value_stands_in_for_one_that_cannot_be_read(
    parameters: dict[str, str], message: str, instead: str
) -> None:
    app = opened(**parameters)
    said = [e.value.replace("\\", "") for e in app.error]
    assert len(said) == 1
    assert message in said[0] and said[0].endswith(f"Until that is corrected: {instead}")
    assert_page_stands(app)
    key, value = next(iter(parameters.items()))
    control = app.text_input if key == "score_floor" else app.selectbox
    assert control(key=key).value == value, "what was typed stays, to be corrected"
    assert texts(app).replace("\\", "").count("8k prompt") == 1


@pytest.mark.usefixtures("shipped")
def test_a_corrected_length_leaves_no_message() -> None:
    app = opened(prompt="abc")
    app.selectbox(key="prompt").set_value("4k").run()
    assert not app.error and "4k prompt" in texts(app)


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("page", ["recommend", "cost"])
def test_quantised_weights_of_a_config_are_said_where_nobody_asks_for_them(
    page: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA_CONFIG | {"quantization_config": {"quant_method": "fp8"}}))
    for weights in ("default", "fp8"):
        app = AppTest.from_file(str(MAIN_FILES[0]), default_timeout=TIMEOUT_S)
        if page != "recommend":
            app.switch_page(f"planner/ui/views/{page}.py")
        app.query_params.update({"model": str(config), "weights": weights})
        app.run()
        assert not app.exception and not app.error and not app.warning
        said = [i.value.replace("\\", "") for i in app.info]
        noted = any("stores quantised weights (fp8)" in text for text in said)
        assert noted == (weights == "default")


LLAMA_CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 1024, "vocab_size": 32000,
    "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 4096,
    "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.mark.usefixtures("shipped")
def test_a_link_that_cannot_be_meant_is_named() -> None:
    app = opened(hardware="h900", colour="red")
    warning = app.warning[0].value.replace("\\", "")
    assert "2 parameters" in warning
    assert "hardware=h900" in warning and "h200-sxm" in warning and "colour" in warning


@pytest.mark.usefixtures("shipped")
def test_weights_that_do_not_fit_are_the_reason_and_more_devices_the_way_out() -> None:
    question = {"use_case": "rag", "model": "llama-3-70b", "hardware": "h100-sxm"}
    app = opened(**question)
    reason = "weights of 131.41 GiB against 71.68 GiB usable"
    said = app.info[0].value.replace("\\", "")
    assert said.startswith("No design has a cost") and reason in said and "--tp" in said
    shown = texts(app).replace("\\", "")
    assert reason in shown and "TPOT" not in shown
    assert app.dataframe[0].value["tpot"].isna().all()
    app.selectbox(key="tp").set_value("4").run()
    assert not app.exception and not app.info
    assert "4 x NVIDIA H100" in texts(app)
    assert any(m.label == "TPOT at batch 8" for m in app.metric)
    assert "--tp 4" in app.code[-1].value


@pytest.mark.usefixtures("shipped")
def test_devices_that_cannot_share_the_model_are_said_in_one_line() -> None:
    app = opened(model="qwen2.5-1.5b", tp="8")
    assert len(app.error) == 1 and "tensor" in app.error[0].value and not app.warning
    named = opened(tp="3")
    assert "tp=3: must be one of 1, 2, 4, 8" in named.warning[0].value.replace("\\", "")
    assert named.selectbox(key="tp").value == "1"


@pytest.mark.usefixtures("shipped")
def test_evidence_filters_narrow_the_rows() -> None:
    app = opened("evidence")
    everything = app.dataframe[-1].value
    app.multiselect(key="kind").set_value(["windowed"]).run()
    assert not app.exception
    windowed = app.dataframe[-1].value
    assert 0 < len(windowed) < len(everything)
    assert set(windowed["mixer"]) == {"sliding_window"}
    sources = app.dataframe[1].value
    assert sources["link"].str.startswith("https://").sum() >= 20


def test_an_empty_store_says_what_to_run(fresh: Path) -> None:
    app = opened("measurements")
    assert any("attn-profile run" in c.value for c in app.code)
    app = opened("evidence")
    assert "no accuracy evidence" in app.info[0].value
    app = opened(hardware="rtx-4090")
    assert any("analytic" in w.value for w in app.warning)
    assert any("attn-profile run" in w.value for w in app.warning)


def test_an_unusable_store_is_one_line(fresh: Path) -> None:
    fresh.write_text("this is no database, whatever its name says\n" * 40)
    app = opened()
    assert len(app.error) == 1 and "store" in app.error[0].value


def test_measured_points_stacks_and_failures_are_shown(fresh: Path) -> None:
    record_toy_points(Store.open(str(fresh)))
    app = opened("measurements")
    values = {m.label: m.value for m in app.metric}
    assert values["Points"] == "11" and values["Timed"] == "10" and values["Not timed"] == "1"
    # 3 layers of 1 ms and 1 of 2 ms make 5 ms, measured 5.5 ms: +10 %
    assert "**+10.0 %**" in texts(app)
    failed = next(d.value for d in app.dataframe if "reason" in d.value)
    assert list(failed["reason"]) == ["needs 90 GiB"]
    app.segmented_control(key="compare").set_value("providers").run()
    assert not app.exception
    app.multiselect(key="filter_family").set_value(["stack"]).run()
    assert len(app.dataframe[-1].value) == 3


# Frames


def record_toy_points(store: Store) -> None:
    """Two mixers at four lengths on three providers, a 3:1 stack with its pure ones, one OOM."""
    environment = store.add_environment(ENVIRONMENT)

    def point(op, provider: str, length: int, ms: float) -> Point:
        workload = Workload(op=op, batch_size=1, new_tokens=length)
        samples = [ms * 1e-3 * f for f in (0.98, 1.0, 1.02)]
        return Point(workload=workload, provider=provider, environment_id=environment,
                     outcome=Outcome.OK, samples_s=samples)  # fmt: skip

    points = [
        point(MixerOp(spec), provider, length, ms * length / 1024)
        for spec, provider, ms in ((FULL, "flash", 2.0), (FULL, "math", 3.0), (GDN, "fla", 1.0))
        for length in (1024, 2048, 4096)
    ][:7]
    kinds = (("F", FULL), ("G", GDN))
    points += [
        point(StackOp("F", (("F", FULL),), 512), "flash", 1024, 2.0),
        point(StackOp("G", (("G", GDN),), 512), "fla", 1024, 1.0),
        point(StackOp("GGGF", kinds, 512), "flash+fla", 1024, 5.5),
    ]
    for p in points:
        store.record(p)
    big = Workload(op=MixerOp(FULL), batch_size=1, new_tokens=1 << 20)
    store.record(
        Point(workload=big, provider="math", environment_id=environment,
              outcome=Outcome.OUT_OF_MEMORY, reason="needs 90 GiB")
    )  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> pd.DataFrame:
    store = Store.open("sqlite:///:memory:", shipped=False)
    record_toy_points(store)
    points = store.points().assign(device_id="h200-sxm").drop(columns="samples_s")
    return frames.describe(points, {"h200-sxm": load_hardware("h200-sxm")})


def test_no_time_beats_the_roofline(toy: pd.DataFrame) -> None:
    ok = toy[toy["outcome"] == "ok"]
    assert (ok["roofline_share"] > 0).all() and (ok["roofline_share"] < 1).all()
    row = ok[(ok["provider"] == "flash") & (ok["length"] == 2048)].iloc[0]
    hardware = load_hardware("h200-sxm")
    bound = hardware.lower_bound_s(row["model_flops"], row["min_bytes"], "bf16")
    assert row["roofline_ms"] == pytest.approx(1e3 * bound)
    assert row["shape"] == "32/8x128"


def test_the_fastest_provider_stands_for_its_mixer(toy: pd.DataFrame) -> None:
    mixers = toy[toy["family"].isin(frames.mixer_families(toy))]
    best = frames.fastest(mixers).set_index(["family", "length"])["provider"]
    assert best["full_attention", 1024] == "flash"
    assert best["gated_deltanet", 1024] == "fla"


def test_a_stack_is_compared_with_the_sum_of_its_layers(toy: pd.DataFrame) -> None:
    found = frames.stack_residuals(toy)
    # 3 x 1 ms + 1 x 2 ms = 5 ms; 5.5 / 5 - 1 = 10 %
    assert list(found["predicted_ms"]) == pytest.approx([5.0])
    assert list(found["residual"]) == pytest.approx([0.1])
    assert list(found["label"]) == ["3:1 gated_deltanet"]


@pytest.mark.parametrize("missing", ["F", "G"])
def test_a_stack_without_both_pure_ones_is_left_out(toy: pd.DataFrame, missing: str) -> None:
    pattern = toy["spec"].map(lambda spec: json.loads(spec).get("pattern"))
    assert frames.stack_residuals(toy[pattern != missing]).empty


@pytest.mark.parametrize(
    ("ratio", "band"),
    [
        ("0:1", "0:1"),
        ("1:1", "1:1 and below"),
        ("3:1", "2:1 to 4:1"),
        ("20:7", "2:1 to 4:1"),
        ("5:1", "5:1 to 7:1"),
        ("7:1", "5:1 to 7:1"),
        ("11:1", "above 7:1"),
        ("1:0", "1:0"),
    ],
)
def test_bands_of_the_ratio(ratio: str, band: str) -> None:
    linear, full = map(int, ratio.split(":"))
    assert frames.band(full / (linear + full)) == band
    assert band in frames.BANDS


def test_an_unknown_ratio_is_its_own_band() -> None:
    assert frames.band(float("nan")) == "unknown"


def test_retention_bands_are_quartiles_of_value_over_control() -> None:
    rows = frames.retention(
        pd.DataFrame(
            {
                "metric": ["accuracy"] * 4 + ["perplexity"],
                "value": [40.0, 45.0, 50.0, 60.0, 9.0],
                "control_value": [50.0, 50.0, 50.0, 50.0, 8.0],
                "full_share": [0.25, 0.25, 0.25, 0.2, 0.25],
                "task_class": "retrieval",
                "kind": "recurrent",
                "source": ["a", "a", "b", "c", "c"],
            }
        )
    )
    # 0.8, 0.9, 1.0, 1.2; perplexity is on another scale
    assert list(rows["retention"]) == [0.8, 0.9, 1.0, 1.2]
    one = frames.retention_bands(rows).iloc[0]
    assert (one["median"], one["rows"], one["sources"]) == (pytest.approx(0.95), 4, 3)
    assert one["q1"] == pytest.approx(np.quantile([0.8, 0.9, 1.0, 1.2], 0.25))


def test_charts_are_valid_and_name_their_units(toy: pd.DataFrame) -> None:
    mixers = toy[toy["family"].isin(frames.mixer_families(toy)) & (toy["outcome"] == "ok")]
    for chart in (
        latency_chart(frames.fastest(mixers), by="family", length_title="New tokens"),
        latency_chart(mixers, by="provider", length_title="New tokens"),
        residual_chart(frames.stack_residuals(toy)),
    ):
        text = json.dumps(chart.to_dict())
        assert "ms" in text and "oken" in text


def test_the_retention_chart_draws_the_shipped_evidence(shipped_store: str) -> None:
    rows = frames.retention(Store.open(shipped_store).comparisons())
    shown = rows[rows["task_class"] == "retrieval"]
    bands = frames.retention_bands(shown)
    spec = retention_chart(shown, bands, order=frames.BANDS).to_dict()
    assert "% of the full-attention control" in json.dumps(spec)
    assert bands["rows"].sum() == len(shown)


# Scenario and links


def scenario(**changes: object) -> Scenario:
    values = {
        "use_case": "rag", "intent": "build", "model": "llama-3.1-8b", "hardware": "h200-sxm",
        "prompt_tokens": 3000, "output_tokens": 7, "concurrency": 5, "floor_percent": 91,
        "ttft_ms": 250.0, "tpot_ms": None, "session_mib": 64.0, "kv_growth_bytes": 0.0,
        "weights_dtype": None, "kv_dtype": "fp8", "tensor_parallel": 1,
    }  # fmt: skip
    return Scenario(**{**values, **changes})  # type: ignore[arg-type]


def test_a_scenario_is_a_use_case_with_its_numbers() -> None:
    case = scenario().to_use_case()
    assert (case.traffic.prompt_tokens, case.traffic.output_tokens) == (3000, 7)
    assert case.floor.retention == 0.91 and case.floor.level == load_use_case("rag").floor.level
    assert case.limits.ttft_s == 0.25 and case.limits.tpot_s is None
    assert case.limits.session_bytes == 64 * 2**20 and case.limits.kv_slope_bytes == 0.0


@pytest.mark.parametrize("name", use_case_ids())
def test_presets_reproduce_the_use_case(name: str) -> None:
    case = load_use_case(name)
    set_ = presets(case)
    same = scenario(
        use_case=name,
        prompt_tokens=parse_tokens(str(set_["prompt"])),
        output_tokens=parse_tokens(str(set_["output"])),
        concurrency=set_["concurrency"],
        floor_percent=set_["floor"],
        ttft_ms=parse_limit("ttft_ms", str(set_["ttft_ms"])),
        tpot_ms=parse_limit("tpot_ms", str(set_["tpot_ms"])),
        session_mib=parse_limit("session_mib", str(set_["session_mib"])),
        kv_growth_bytes=parse_limit("kv_growth", str(set_["kv_growth"])),
    ).to_use_case()
    assert (same.traffic, same.floor, same.limits) == (case.traffic, case.floor, case.limits)


@pytest.mark.parametrize("text", ["-1", "x", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be a number of at least 0, or none"):
        parse_limit("ttft_ms", text)


@pytest.mark.parametrize("value", [None, 0.0, 0.5, 50.0, 10000.0])
def test_limits_survive_being_written(value: float | None) -> None:
    assert parse_limit("tpot_ms", limit_text(value)) == value


def test_links_are_read_strictly() -> None:
    good = {"use_case": "rag", "for": "deploy", "prompt": "96k", "floor": "90", "ttft_ms": "none"}
    assert misread(good, ["h200-sxm"]) == []
    bad = {"use_case": "ragg", "floor": "high", "x": "1"}
    assert [text.split(":")[0] for text in misread(bad, ["h200-sxm"])] == [
        "use_case=ragg", "floor=high", "x",
    ]  # fmt: skip
    out = {"concurrency": "0", "floor": "111"}
    assert misread(out, ["h200-sxm"]) == [
        "concurrency=0: must be a whole number of at least 1",
        "floor=111: must be a whole number from 0 to 110",
    ]


def test_every_parameter_is_explained() -> None:
    explained = {*GLOSSARY, "prompt", "output"}
    assert set(PARAMETERS) <= explained
    assert all(parse_tokens(text) >= 128 for text in LENGTHS)


# Text and settings


@pytest.mark.parametrize("text", ["$a$", ":red[x]", ":material/home:", "**b** <i>", "`c` [d](e)"])
def test_plain_text_has_no_directives(text: str) -> None:
    shown = plain(text)
    for mark in "$:*`<[":
        assert shown.count(mark) == shown.count(f"\\{mark}") == text.count(mark)


def test_a_badge_says_its_basis() -> None:
    assert basis_badge("measured").startswith(":green-badge[")
    assert "extrapolated" in basis_badge("extrapolated (prefill: 100% extrapolated)")


def test_both_main_files_have_the_same_local_only_settings() -> None:
    texts_ = [(main.parent / ".streamlit" / "config.toml").read_text() for main in MAIN_FILES]
    assert texts_[0] == texts_[1]
    config = tomllib.loads(texts_[0])
    assert config["server"]["address"] == "127.0.0.1"
    assert config["server"]["allowedHosts"] == ["127.0.0.1", "localhost"]
    assert config["browser"]["gatherUsageStats"] is False
    assert {"light", "dark"} <= set(config["theme"])
