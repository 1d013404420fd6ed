"""The article's claims: verdicts follow from the store, and change with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from planner.architecture import Architecture
from planner.catalog import load_model
from planner.errors import UnknownName, UsageError
from planner.quality.absolute import ScoreFloor, absolute_level, effective_contexts
from planner.quality.calibration import quality_calibration
from planner.quality.claims import CHECKS, Claim, Evidence, check_claims
from planner.quality.evidence import is_class, is_pure, with_retention
from planner.quality.features import MixFeatures
from planner.quality.retention import QualityModel
from planner.store import Store

VERDICTS = {
    "needle_drop": "refined",
    "shots_gap": "weakly supported",
    "multi_hop": "not shown",
    "summarization": "weakly supported",
    "placement": "refined",
    "three_to_one": "supported",
    "threshold": "not shown",
    "kimi_k2": "contradicted",
    "gemma_3": "supported",
    "qwen3_next": "supported",
}


@pytest.fixture(scope="module")
def found(store: Store) -> dict[str, Claim]:
    return {claim.id: claim for claim in check_claims(store)}


@pytest.fixture(scope="module")
def evidence(store: Store, comparisons: pd.DataFrame, quality_model: QualityModel) -> Evidence:
    return Evidence(
        rows=store.evidence(),
        comparisons=comparisons,
        model=quality_model,
        architecture=load_model,
    )


def test_verdicts_on_the_shipped_evidence(found: dict[str, Claim]) -> None:
    assert {id: claim.verdict for id, claim in found.items()} == VERDICTS
    assert set(found) == set(CHECKS)


def test_every_claim_says_how_much_and_on_what(
    found: dict[str, Claim], evidence: Evidence
) -> None:
    known = set(evidence.rows["id"])
    for claim in found.values():
        assert claim.effect and claim.caveat and claim.sources
        assert set(claim.row_ids) <= known
        assert any(ch.isdigit() for ch in claim.effect)


def test_other_evidence_gives_another_verdict(evidence: Evidence) -> None:
    pure = is_pure(evidence.comparisons) & is_class(evidence.comparisons, "retrieval")
    perfect = replace(evidence, comparisons=with_retention(evidence.comparisons, pure, 1.0))
    assert CHECKS["needle_drop"](perfect).verdict == "contradicted"
    poor = replace(
        evidence,
        comparisons=with_retention(
            evidence.comparisons, is_class(evidence.comparisons, "summarization"), 0.5
        ),
    )
    assert CHECKS["summarization"](poor).verdict == "contradicted"
    assert (
        CHECKS["three_to_one"](
            replace(
                evidence,
                comparisons=with_retention(
                    evidence.comparisons, evidence.comparisons["full_share"].between(0.2, 0.3), 0.5
                ),
            )
        ).verdict
        == "contradicted"
    )


def test_claims_on_models_are_read_from_their_layers(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    hybrid = replace(evidence, architecture=lambda _: build("gated_deltanet", "3:1"))
    assert CHECKS["kimi_k2"](hybrid).verdict == "supported"
    assert CHECKS["gemma_3"](hybrid).verdict == "contradicted"


def test_an_absolute_floor_is_answered_from_real_scores_or_refused(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    hybrid = MixFeatures.of(build("gated_deltanet", "3:1"))
    known = absolute_level(evidence.rows, "RULER", 131072, hybrid)
    assert known.covered and 0 < known.probability_at_least(85) < 1
    assert known.low <= known.median <= known.high
    rows = evidence.rows.set_index("id").loc[list(known.row_ids)]
    assert set(rows["kind"]) == {"recurrent"} and (rows["full_share"] >= 1 / 7).all()
    unknown = absolute_level(
        evidence.rows, "RULER", 131072, MixFeatures.of(build("sliding_window", "5:1"))
    )
    assert not unknown.covered and unknown.probability_at_least(0) == 0.0
    with pytest.raises(UnknownName, match="unknown benchmark 'NIAH'"):
        absolute_level(evidence.rows, "NIAH", 4096, hybrid)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("RULER>=85@128k", ScoreFloor("RULER", 85.0, 131072)),
        (" LongBench V2 >= 30.5 @ 1m ", ScoreFloor("LongBench V2", 30.5, 1 << 20)),
        ("MMLU>=60", ScoreFloor("MMLU", 60.0, None)),
    ],
)
def test_a_score_floor_is_read_and_written(text: str, read: ScoreFloor) -> None:
    assert ScoreFloor.parse(text) == read == ScoreFloor.parse(str(read).replace(" at ", "@"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("RULER=85", "BENCHMARK>=SCORE@LENGTH"),
        ("RULER>=85@long", "length must be a whole number"),
        ("RULER>=0@4k", "above 0 and at most 100"),
        ("RULER>=101@4k", "above 0 and at most 100"),
        ("RULER>=85@0", "at least 1 token"),
        ("Ruler>=85@4k", "unknown benchmark 'Ruler'"),
    ],
)
def test_what_is_no_score_floor_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ScoreFloor.parse(text)


def test_a_level_is_of_lengths_at_least_as_asked_and_inside_the_trained_one(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    full = MixFeatures.of(build("full_attention", "0:1"))
    found = absolute_level(evidence.rows, "RULER", 65536, full)
    rows = evidence.rows.set_index("id").loc[list(found.row_ids)]
    assert rows["eval_length"].between(65536, 131072).all() and (rows["kind"] == "full").all()
    assert not (rows["eval_length"] > rows["train_length"]).any()
    assert "Mistral-base 7B" not in set(rows["model"])  # trained to 32k
    converted = replace(full, origin="converted")
    assert not absolute_level(evidence.rows, "RULER", 65536, converted).covered


def test_the_users_own_score_answers_for_its_mixer_alone(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    windowed = MixFeatures.of(build("sliding_window", "3:1"))
    row = evidence.rows[evidence.rows["task"] == "RULER"].head(1).assign(
        id="mine:1", source="mine", imported_file_sha256="0" * 64, mixer="sliding_window",
        kind="windowed", full_share=0.25, origin="scratch", params_b=8.0, eval_length=131072.0,
        train_length=float("nan"), value=91.0, duplicate_of="", metric="accuracy",
    )  # fmt: skip
    rows = pd.concat([evidence.rows, row])
    found = absolute_level(rows, "RULER", 131072, windowed)
    assert found.covered and found.alike == "mixer" and found.own_sources == ("mine",)
    assert found.scores.tolist() == [91.0] and "mine (your own)" in str(found)
    assert found.probability_at_least(85) == 1.0 and found.probability_at_least(92) == 0.0
    without = absolute_level(evidence.rows, "RULER", 131072, windowed)
    assert not without.covered and "two sources are needed" in str(without)


def test_a_level_without_a_score_near_in_total_size_is_weak(
    evidence: Evidence, build: Callable[..., Architecture]
) -> None:
    """Mixtures of experts of 48B to 122B have the active parameters of an 8B, not its size."""
    asked = MixFeatures.of(build("gated_deltanet", "3:1"))
    small = replace(asked, params_b=8.0)
    weak = absolute_level(evidence.rows, "RULER", 131072, small)
    assert weak.covered and weak.is_weak
    assert weak.sizes_b.min() > 4 * 8 and weak.sizes_b.max() == 122
    assert "scores at 48B to 122B, all 3:1 of " in str(weak)
    assert str(weak).endswith("weak evidence: none within 4 times of 8B in size")
    reached = float(weak.scores.min())
    assert weak.probability_at_least(reached) == 1.0
    assert not weak.meets(reached, 0.8, "moderate") and not weak.meets(reached, 0.8, "strong")
    assert weak.meets(reached, 0.8, "weak") and not weak.meets(100.0, 0.8, "weak")

    large = absolute_level(evidence.rows, "RULER", 131072, replace(asked, params_b=80.0))
    assert large.covered and not large.is_weak and "weak" not in str(large)
    assert large.meets(float(large.scores.min()), 0.8, "moderate")


def test_effective_context_is_where_ruler_stays_above_its_threshold(evidence: Evidence) -> None:
    table = effective_contexts(evidence.rows).set_index("model")
    # README of NVIDIA/RULER: Llama-3.1-8B 95.5, 93.8, 91.6, 87.4 up to 32K, 84.7 at 64K.
    assert table.loc["Llama3.1-8B", "effective"] == 32768
    assert table.loc["Jamba-1.5-large", "effective"] == 131072
    assert table.loc["Mamba-2.8B-slimpj", "effective"] == 0
    assert (table["effective"] <= table["longest"]).all()


def test_an_empty_store_decides_nothing() -> None:
    empty = Store.open("sqlite:///:memory:", shipped=False)
    found = {claim.id: claim for claim in check_claims(empty)}
    on_rows = [c for id, c in found.items() if id not in ("kimi_k2", "gemma_3", "qwen3_next")]
    assert {c.verdict for c in on_rows} == {"not shown"}
    assert all(c.effect == "the store has no row on it" and c.value is None for c in on_rows)
    with pytest.raises(UsageError, match="too little evidence"):
        quality_calibration(empty.comparisons())
