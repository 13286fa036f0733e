"""What a step costs a card beside its arithmetic: waits, and kernels, beside the counts of the pretended card."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests import pretended
from tests.benchmarks.card.kernels import kernels_of
from tests.gpu.conftest import CUDA, note
from tests.workers.short_jobs import CARD_ENGINES, Problem, matching, trained

pytestmark = pytest.mark.gpu

SHORT, LONG = 2, 12
"""Steps; what a step more costs has no constant part in it."""


@contextmanager
def waits_refused() -> Iterator[None]:
    """Whatever makes the host wait for the card is an error inside."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("engine", CARD_ENGINES)
def test_an_inner_step_never_waits(engine: Any) -> None:
    match = matching(CUDA, engine, Problem())
    match()  # libraries are loaded by a first call
    with waits_refused():
        match()


def test_a_wait_is_refused_here() -> None:
    """Shows that the test above can fail."""
    with pytest.raises(RuntimeError, match="synchroniz"), waits_refused():
        torch.ones(3, device=CUDA).nonzero()


def test_training_waits_as_often_for_many_steps_as_for_few() -> None:
    waits = {batches: _waits(trained(CUDA, batches)) for batches in (SHORT, LONG)}
    note("waits of a training", note=f"{waits[SHORT]} of {SHORT} steps, {waits[LONG]} of {LONG}")
    assert waits[LONG] <= waits[SHORT]


def _waits(work: Callable[[], object]) -> int:
    work()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return len(seen)


def _a_step(work: Callable[[int], Callable[[], object]], count: Callable[[Callable[[], object]], int]) -> float:
    return (count(work(LONG)) - count(work(SHORT))) / (LONG - SHORT)


def _warm(work: Callable[[], object]) -> int:
    work()
    return kernels_of(work).number


def _pretended(work: Callable[[], object]) -> int:
    card = pretended._cards[-1]
    card.reset()
    work()
    return card.total("kernel")


STEPS: dict[str, Callable[[torch.device, int], Callable[[], object]]] = {
    **{
        f"inner step, {engine}": lambda device, steps, engine=engine: matching(device, engine, Problem(steps=steps))
        for engine in ("unrolled", "adjoint")
    },
    "training step": trained,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_starts_about_as_many_kernels_as_were_counted_without_a_card(step: str) -> None:
    """cuDNN starts several kernels for a convolution, others are one where two were counted: half to twice as many."""
    real = _a_step(lambda steps: STEPS[step](CUDA, steps), _warm)
    with pretended.card():
        counted = _a_step(lambda steps: STEPS[step](pretended.DEVICE, steps), _pretended)
    note(f"kernels, {step}", kernels=real, ratio=real / counted, note=f"{counted:.0f} on the pretended card")
    assert 0.5 < real / counted < 2
