"""A stage that runs out of memory, in each of the words for it, is done in less of it and makes the same images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.graph import Job
from orchestrator.runs.driver import Outcome, RunInfo, run
from orchestrator.runs.journal import Journal, read
from orchestrator.runs.pool import InProcessPool
from tests.orchestrator.fakes import plan_of
from tests.workers.short_jobs import GRADIENTS, ONE
from tests.workers.workshop import Workshop
from workers.data import synthetic_set
from workers.execute import perform_missing
from workers.methods import method_named
from workers.methods.base import Method

WORDS: list[Exception] = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
]
TWO_AT_ONCE = {"distil.settings.classes_at_once": 2}
ANSWERS: list[tuple[str, dict[str, Any], str, bool]] = [
    ("mtt", {"distil.settings.engine": "unrolled"}, "with the adjoint", False),
    ("dsa", {**GRADIENTS["dsa"], **TWO_AT_ONCE}, "with one class in a call", False),
    ("idc", {**GRADIENTS["idc"], **TWO_AT_ONCE}, "with one class in a call", False),
    ("dream", {**GRADIENTS["dream"], **TWO_AT_ONCE}, "with one class in a call", False),
    ("cafe", {}, "with the synthetic images of one class at a time", True),
]
"""Methods, their numbers, what the note says, and whether every bit is the same."""


def opened(folder: Path, method: str, numbers: dict[str, Any]) -> tuple[Workshop, Job]:
    """A store in which all is done that the stage needs."""
    shop = Workshop.open(folder, {"method": method, **ONE}, networks=1, set={"distil.iterations": 2, **numbers})
    job = shop.job("distil")
    perform_missing(shop.plan.graph, shop.store, job.parent_keys())
    return shop, job


def driven(shop: Workshop) -> tuple[Outcome, list[str]]:
    """One run over the workshop's jobs in this process, and the texts of its notes."""
    root, graph = str(shop.store.root), shop.plan.graph
    folder = shop.store.run_folder("r1")
    with Journal.open(folder) as journal:
        pool = InProcessPool(root, "r1")
        outcome = run(plan_of(graph), graph, pool, journal, shop.store, about=RunInfo("r1"))
    return outcome, [str(record["text"]) for record in read(folder / "journal.jsonl") if record["event"] == "note"]


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """Errors that iterations of any method end with, one each, as long as their memory level is 0."""
    errors: list[Exception] = []

    def scarce_for(method: type[Method]) -> None:
        iterate = method.iterate

        def short_of_memory(self: Any, learnable: Any, iteration: int, generator: torch.Generator) -> float:
            level = getattr(self, "_stage", None) or self.stage
            if iteration == 1 and level.memory_level == 0 and errors:
                raise errors[0]
            return iterate(self, learnable, iteration, generator)

        monkeypatch.setattr(method, "iterate", short_of_memory)

    for name in ("mtt", "dsa", "idc", "cafe"):  # DREAM iterates as IDC does
        scarce_for(method_named(name))
    yield errors


@pytest.mark.parametrize("error", WORDS, ids=lambda error: str(error)[:40] or type(error).__name__)
def test_each_of_the_words_is_answered(error: Exception, tmp_path: Path, scarce: list[Exception]) -> None:
    shop, job = opened(tmp_path, "cafe", {})
    scarce.append(error)
    outcome, notes = driven(shop)
    assert outcome.exit == 0, outcome
    (text,) = (text for text in notes if "ran out of memory" in text)
    assert job.key in text and "tried again (1 of 2)" in text and "one class at a time" in text


@pytest.mark.parametrize(("method", "numbers", "answer", "same_bits"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_what_a_method_does_in_less_memory_makes_the_same_images(
    method: str, numbers: dict[str, Any], answer: str, same_bits: bool, tmp_path: Path, scarce: list[Exception]
) -> None:
    plenty, job = opened(tmp_path / "plenty", method, numbers)
    plenty.make(job)
    shop, _ = opened(tmp_path / "scarce", method, numbers)
    scarce.append(RuntimeError("CUDA error: out of memory"))
    outcome, notes = driven(shop)
    assert outcome.exit == 0, outcome
    assert any(answer in text for text in notes), notes
    if same_bits:
        assert shop.store.manifest(job.key).digest == plenty.store.manifest(job.key).digest
    sets = [synthetic_set.newest(store, [job.key])[0] for store in (plenty.store, shop.store)]
    torch.testing.assert_close(sets[1].images, sets[0].images, rtol=1e-3, atol=1e-4)


def test_a_method_that_can_do_with_no_less_fails_at_once_with_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: Any) -> float:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(method_named("dm"), "iterate", short_of_memory)
    shop, job = opened(tmp_path, "dm", {})
    outcome, notes = driven(shop)
    assert outcome.exit != 0
    assert not any("tried again" in text for text in notes)
    (failed,) = (
        record for record in read(shop.store.run_folder("r1") / "journal.jsonl") if "failed" in record["event"]
    )
    assert failed["key"] == job.key and "use a larger card or node, or smaller numbers" in str(failed["message"])
