"""The packaged main file: what `attn-plan app` runs, beside its own .streamlit/config.toml."""

from planner.ui.main import run

run()
