"""The timing of a card, tried on the CPU."""

from __future__ import annotations

import torch

from workers.runtime import card_speed


def test_what_is_timed_is_what_the_device_does() -> None:
    timed = card_speed.time_card(torch.device("cpu"), seconds=0.05)
    assert 1e9 < timed.convolution < 1e13
    assert 1e8 < timed.bandwidth < 1e12
    assert 1e-8 < timed.launch < 1e-3
