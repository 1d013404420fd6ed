"""Reports: one model of a recommendation, written as HTML, Markdown or JSON."""

from planner.report.model import FORMAT_VERSION, ReportModel
from planner.report.write import form_of, write_report

__all__ = ["FORMAT_VERSION", "ReportModel", "form_of", "write_report"]
