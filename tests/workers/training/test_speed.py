from __future__ import annotations

import pytest
import torch

from workers.training import speed


def test_an_epoch_takes_time_and_no_random_number_of_others() -> None:
    before = torch.get_rng_state()
    assert 0 < speed.epoch_seconds(0.05) < 60
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_workers_at_once_are_measured_in_processes_of_their_own() -> None:
    assert 0.02 < speed.Timing(2, seconds=0.05).slowness() < 1000
