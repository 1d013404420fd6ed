"""Engines' rules: shipped ones are sourced and dated, bad ones are refused in one line."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from planner import catalog
from planner.engine import IDEAL
from planner.errors import UnknownName, UsageError

GOOD = """
id = "mine"
name = "Mine 1.0"
page_tokens = 32
source = "a test"
read_on = 2026-11-23
"""


def engine_of(tmp_path: Path, text: str) -> catalog.EngineRules:
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "mine.toml").write_text(text)
    return catalog.engine_from(catalog.read_folder(folder)["mine"])


def test_the_catalog_holds_the_engines_people_use() -> None:
    assert {"ideal", "paged", "vllm", "sglang", "llama-cpp"} <= set(catalog.engine_ids())
    assert catalog.load_engine("ideal") is IDEAL
    assert catalog.load_engine() == catalog.load_engine(catalog.DEFAULT_ENGINE)


@pytest.mark.parametrize("id", catalog.engine_ids())
def test_every_rule_has_a_source_and_a_day(id: str) -> None:
    rules = catalog.load_engine(id)
    assert rules.id == id and rules.name and rules.source
    assert date.fromisoformat(rules.read_on)
    assert 0 < rules.capacity(80e9) <= 80e9


def test_an_unknown_engine_lists_what_exists() -> None:
    with pytest.raises(UnknownName, match="unknown engine 'vlm'; did you mean 'vllm'"):
        catalog.load_engine("vlm")


def test_good_rules_load(tmp_path: Path) -> None:
    rules = engine_of(tmp_path, GOOD)
    assert (rules.page_tokens, rules.usable_fraction, rules.read_on) == (32, 1.0, "2026-11-23")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "a test"', "", r"^engines/mine.toml has no source: every entry needs"),
        ("read_on = 2026-11-23", "", "has no read_on"),
        ("page_tokens", "page_token", "unknown key 'page_token'; known: "),
        ("= 32", "= 0", "page_tokens must be a whole number of at least 1, got 0"),
        ("= 32", "= 1.5", "page_tokens must be a whole number of at least 1, got 1.5"),
        ("= 32", "= 32\nusable_fraction = 1.2", "usable_fraction must be above 0 and at most 1"),
        ("= 32", "= 32\nstate_pool_ratio = 0", "state_pool_ratio must be above 0, got 0"),
        ("= 32", '= 32\nconv_dtype = "bf16"', "conv_dtype must be state or model, got 'bf16'"),
        ('name = "Mine 1.0"', "", "name is missing"),
    ],
)
def test_bad_rules_are_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        engine_of(tmp_path, GOOD.replace(old, new, 1))
    assert "\n" not in str(caught.value) and "mine.toml" in str(caught.value)
