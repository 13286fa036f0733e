"""What the tests of recipes and tables compare with: the numbers of the papers and their code, in `tests/data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    """The published hyper-parameters, by method; the file names the source of each section."""
    numbers: dict[str, Any] = yaml.safe_load((DATA / "hyperparameters.yaml").read_text())
    return numbers
