"""A card records every kind of inner step, and gives the adjoint's numbers from the recordings."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.capture import STAGES
from tests.gpu.conftest import note

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")]


@pytest.mark.parametrize("name", [name for name in STAGES if not name.startswith("time of ")])
def test_a_card_records(name: str) -> None:
    note(f"recorded: {name}", note=STAGES[name]())
