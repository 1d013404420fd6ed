"""The dashboard: `streamlit run app.py`."""

from planner.ui.main import run

run()
