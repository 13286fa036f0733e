"""What the tests of recipes compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def facts(shared: Path) -> dict[str, Any]:
    """The numbers collected from the papers and their code, `science/hyperparameters.yaml` of the shared folder."""
    file = shared / "science" / "hyperparameters.yaml"
    if not file.is_file():
        pytest.skip(f"no file {file}")
    collected: dict[str, Any] = yaml.safe_load(file.read_text())
    return collected
