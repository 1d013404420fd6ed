"""The documents say what is there: commands, links, set-up lines, sources of data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

import planner.cli
import profiler.cli

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
