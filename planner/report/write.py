"""Writing a report to a file: the suffix says in which form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import UsageError
from planner.report.model import ReportModel
from planner.store.whole import write_whole

if TYPE_CHECKING:
    from planner.decision.advisor import Advisor
    from planner.decision.recommendation import Recommendation

FORMS: dict[str, Callable[[ReportModel], str]] = {
    ".html": ReportModel.to_html,
    ".md": ReportModel.to_markdown,
    ".json": ReportModel.to_json,
}


def form_of(path: Path) -> Callable[[ReportModel], str]:
    """What writes a report of this suffix: to be asked before the work is done.

    Raises: UsageError for a suffix that none has, listing those there are.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"a report's file must end in {', '.join(FORMS)}, got {path.name!r}")
    return form


def write_report(
    found: Recommendation, path: Path, *, advisor: Advisor | None = None, link: str = ""
) -> None:
    """Writes `found` to `path` as its suffix says.

    `advisor`, the one that found it, adds the provenance of measurements and evidence.

    Raises:
        UsageError: an unknown suffix; nothing is written.
        EnvironmentProblem: the file cannot be written.
    """
    form = form_of(path)
    text = form(ReportModel.of(found, advisor=advisor, link=link))
    write_whole({path: text if text.endswith("\n") else text + "\n"})
