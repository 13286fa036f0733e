"""TF32 is a choice of the recipe: the same in a worker and in a session, recorded, and taken back after the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.specs import NetworkSpec, Tf32
from tests.pretended import DEVICE, card
from tests.workers.short_jobs import ONE
from tests.workers.workshop import Workshop
from workers import execute as module
from workers.execute import execute, perform
from workers.runtime.arithmetic import described, with_tf32
from workers.runtime.context import JobContext
from workers.runtime.process import prepare_process

CHOICES: list[tuple[Tf32, tuple[bool, bool], str]] = [
    ("convolutions", (False, True), "float32, TF32 in convolutions"),
    ("all", (True, True), "float32, TF32 in all products"),
    ("none", (False, False), "float32"),
]


def flags() -> tuple[bool, bool]:
    """Whether matrix products and convolutions may use TF32."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def opened(folder: Path, tf32: Tf32, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A full training whose job says which flags it saw."""

    def watched(context: JobContext, folder: Path) -> Any:
        seen.append(flags())
        return train(context, folder)

    train = module.WORK["evaluate"]
    monkeypatch.setitem(module.WORK, "evaluate", watched)
    return Workshop.open(folder, {"method": "random", **ONE}, networks=1, set={"network.tf32": tf32})


@pytest.mark.parametrize(("tf32", "wanted", "recorded"), CHOICES)
def test_a_job_computes_as_its_spec_says_in_a_session_and_in_a_worker(
    tf32: Tf32, wanted: tuple[bool, bool], recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = flags(), list[Any]()
    shop = opened(tmp_path, tf32, seen, monkeypatch)
    job = shop.job("evaluate")
    assert job.spec.network.tf32 == tf32, "the evaluated network is the recipe's"  # type: ignore[union-attr]
    context = shop.context(job)
    with card():
        prepare_process()
        context.device = DEVICE
        perform(context)
        assert shop.store.manifest(job.key).arithmetic == recorded
        shop.store.remove(job.key)
        assert execute(job.to_json(), str(shop.store.root), "run")["status"] == "done"
    assert seen == [wanted, wanted] and flags() == before
    assert shop.store.manifest(job.key).arithmetic == recorded


def test_a_cpu_is_left_alone_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = flags(), list[Any]()
    shop = opened(tmp_path, "all", seen, monkeypatch)
    manifest = shop.make(shop.job("evaluate"))
    assert seen == [before] and manifest.arithmetic == "float32"


def test_training_in_bfloat16_is_said(tmp_path: Path) -> None:
    shop = Workshop.open(tmp_path, {"method": "dm", **ONE}, networks=1, set={"evaluate.precision": "bfloat16"})
    cpu = torch.device("cpu")
    assert described(cpu, shop.job("evaluate").spec) == "bfloat16 in training, else float32"
    assert described(cpu, shop.job("distil").spec) == "float32"
    whole = described(DEVICE, shop.job("evaluate").spec)
    assert whole == "bfloat16 in training, else float32, TF32 in convolutions"


def test_what_was_set_comes_back_when_a_job_fails() -> None:
    before = flags()
    with pytest.raises(RuntimeError), with_tf32(DEVICE, "all"):
        assert flags() == (True, True)
        raise RuntimeError
    assert flags() == before


def test_the_usual_choice_is_not_written() -> None:
    assert "tf32" not in NetworkSpec().model_dump(mode="json")
    assert NetworkSpec(tf32="none").model_dump(mode="json")["tf32"] == "none"
