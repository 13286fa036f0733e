from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import write_faults
from tests.faults.drill import Drill


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The faults at writes, compiled."""
    path = write_faults.library(tmp_path_factory.mktemp("library"))
    if path is None:
        pytest.skip("faults at writes need Linux and a C compiler (cc)")
    return path


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Drill]:
    drill = Drill.open(tmp_path_factory.mktemp("drill"), library)
    yield drill
    drill.server.close()
