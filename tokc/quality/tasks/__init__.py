"""Tasks that come with tokc, in the format of lm-evaluation-harness; see LICENCE beside them."""

from pathlib import Path

FOLDER = Path(__file__).parent
