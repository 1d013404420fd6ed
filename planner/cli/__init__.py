"""attn-plan: plan from the store. `attn-plan recommend --use-case rag`.

Exit codes: 0 ok, 1 failure, 2 usage, 3 environment, 5 nothing feasible. A file per group of
commands; `main` puts them together.
"""

from planner.cli.main import app, main, run_cli
from planner.cli.options import emit_json, say

__all__ = ["app", "emit_json", "main", "run_cli", "say"]
