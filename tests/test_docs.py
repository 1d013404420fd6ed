"""The documents say what is there: commands, links, set-up lines, sources of data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

import planner.cli
import profiler.cli
from planner.cost.ratio import cost_ratio
from planner.decision.advisor import Advisor
from planner.decision.recommendation import Recommendation
from planner.store import Store
from planner.units import bytes_text, seconds_text
from planner.workload import format_tokens

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CLIS = {"attn-plan": planner.cli.app, "attn-profile": profiler.cli.app}


def commands(app: typer.Typer) -> dict[str, Any]:
    """Every command by its name, those of groups as "group command"."""
    found: dict[str, Any] = {}

    def collect(command: Any, prefix: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            if getattr(child, "commands", None):
                collect(child, f"{prefix}{name} ")
            else:
                found[prefix + name] = child

    collect(typer.main.get_command(app), "")
    return found


@pytest.mark.parametrize("program", CLIS)
def test_every_command_has_help_and_stands_in_the_readme(program: str) -> None:
    for name, command in commands(CLIS[program]).items():
        assert command.help, f"{program} {name} has no help"
        assert f"{program} {name}" in README, f"README does not mention {program} {name}"


def test_the_readme_names_no_command_that_is_not_there() -> None:
    for program, rest in re.findall(r"\b(attn-plan|attn-profile) ([a-z]+)\b", README):
        first_words = {name.split()[0] for name in commands(CLIS[program])}
        assert rest in first_words, f"README names {program} {rest}"


def test_set_up_is_two_lines() -> None:
    lines = re.findall(r"^python3 -m venv .*$", README, re.MULTILINE)
    assert len(lines) == 2
    assert lines[0].endswith("attn-plan app")
    assert "pytest" in lines[1] and "-c constraints.txt" in lines[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_package_directory_of_the_readmes_tree_exists() -> None:
    tree = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    for line in tree[1].splitlines():
        name = line.split()[0] if line.split() else ""
        if name.endswith("/") and not line.startswith(" "):
            assert (ROOT / name).is_dir(), name


def answer_row(found: Recommendation) -> str:
    """A use case's line of the README's table of answers."""
    winner, base, traffic = found.winner, found.baseline, found.use_case.traffic
    assert winner is not None
    ratio = cost_ratio(winner.cost, base.cost)
    kept = winner.quality
    cells = (
        f"{found.use_case.id}: {format_tokens(traffic.prompt_tokens)} + "
        f"{format_tokens(traffic.output_tokens)}, {traffic.concurrency} at once",
        winner.candidate.label,
        found.decided_by,
        f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})",
        f"{100 * kept.median:.0f} % ({100 * kept.low:.0f} to {100 * kept.high:.0f})",
        f"{seconds_text(winner.cost.ttft_s)}, {seconds_text(base.cost.ttft_s)}",
        f"{bytes_text(winner.cost.memory.per_sequence)}, "
        f"{bytes_text(base.cost.memory.per_sequence)}",
    )
    return f"| {' | '.join(cells)} |"


def test_the_readme_gives_the_answers_of_the_shipped_data(tmp_path: Path) -> None:
    advisor = Advisor(Store.open(str(tmp_path / "store.db")))
    for use_case in ("general", "summarization", "streaming", "rag", "throughput"):
        row = answer_row(advisor.recommend(use_case))
        assert row in README, f"the README's line should be:\n{row}"
