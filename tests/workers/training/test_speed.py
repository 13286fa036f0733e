from __future__ import annotations

import pytest
import torch

from jobs import machines
from workers.training import speed


def test_an_epoch_takes_time_and_no_random_number_of_others() -> None:
    before = torch.get_rng_state()
    assert all(0 < seconds < 60 for seconds in speed.epoch_seconds(0.05))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_workers_at_once_are_measured_in_processes_of_their_own() -> None:
    assert all(0.02 < factor < 1000 for factor in speed.Timing(2, seconds=0.05).slowness())


def test_a_core_of_the_calibration_takes_what_the_prices_say() -> None:
    priced = [machines.estimate(epoch.effort) - machines.START for epoch in speed.EPOCHS]
    assert tuple(speed.slowness_of(priced)) == pytest.approx((1.0, 1.0))
    calls, work = (machines.CALL * epoch.effort.calls / one for epoch, one in zip(speed.EPOCHS, priced, strict=True))
    assert calls > 0.7 and work < 0.3
