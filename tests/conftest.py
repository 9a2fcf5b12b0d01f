"""What several test files share. Warnings are errors by pyproject.toml; what is missing is skipped with a reason.

Next: the test file of the module in question.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # whose programs are tested as modules


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of texts, sounds and models that some tests read: $FASTRNN_DATA, or ../shared/data."""
    folder = Path(os.environ.get("FASTRNN_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: FASTRNN_DATA can name another one")
    return folder
