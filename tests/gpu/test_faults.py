"""Faults of a card that really happen: too little memory, and an error after which the process is of no use."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.memory import peak_bytes
from tests.gpu.conftest import note
from tests.gpu.test_memory import workshop_of
from tests.workers.workshop import Workshop
from workers.execute import execute, perform_missing

pytestmark = pytest.mark.gpu


@contextmanager
def card_of(limit: float) -> Iterator[None]:
    """Inside, this process gets so many bytes of the card."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _ended(shop: Workshop, kind: str, memory_level: int) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    return dict(execute(shop.job(kind).to_json(), str(shop.store.root), "run", memory_level))


def _ready(folder: Path, pictures: Path, arm: dict[str, Any], **numbers: Any) -> Workshop:
    """A workshop of width 128 in which all is done that a stage needs."""
    shop = workshop_of(folder, pictures, arm, **{"network.width": 128, "network.depth": 3, **numbers})
    perform_missing(shop.plan.graph, shop.store, shop.job("distil").parent_keys())
    return shop


def test_matching_that_is_too_large_is_answered_by_the_adjoint(pictures: Path, tmp_path: Path) -> None:
    arm = {"method": "mtt", "ipc_per_stage": 10}
    shop = _ready(tmp_path, pictures, arm, **{"distil.iterations": 2, "distil.settings.syn_steps": 10})
    job = shop.job("distil")
    whole, least = (peak_bytes(job, shop.plan.graph, engine) for engine in ("unrolled", "adjoint"))  # type: ignore[arg-type]
    assert whole > 3 * least
    with card_of((whole + least) / 2.5):
        assert _ended(shop, "distil", memory_level=0)["reason"] == "memory"
        ended = _ended(shop, "distil", memory_level=1)
    assert ended["status"] == "done", ended
    note("out of memory, then the adjoint", note=f"{whole / 2**20:.0f} MiB and {least / 2**20:.0f} MiB estimated")


def test_a_job_that_can_do_with_no_less_names_its_sizes(pictures: Path, tmp_path: Path) -> None:
    shop = _ready(tmp_path, pictures, {"method": "dm", "ipc_per_stage": 10}, **{"distil.iterations": 2})
    with card_of(peak_bytes(shop.job("distil"), shop.plan.graph) / 4):
        ended = _ended(shop, "distil", memory_level=0)
    assert ended["reason"] == "too_large" and "width 128" in ended["message"], ended


_ASSERTS = """
import json, sys
import torch
from jobs.graph import Job
from workers.execute import execute
from workers.training.networks import ConvNet

embed = ConvNet.embed

def faulty(network, x):
    torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")]
    return embed(network, x)

ConvNet.embed = faulty
job, root = json.loads(sys.argv[1]), sys.argv[2]
first = execute(job, root, "run")
ConvNet.embed = embed
print(json.dumps([first, execute(job, root, "run")]))
"""


def test_a_device_side_assert_ends_what_a_process_can_do(tmp_path: Path) -> None:
    """The job ends with `card`, and so does the next one of the process; another process does it."""
    shop = Workshop.open(tmp_path, {"method": "random", "ipc_per_stage": 1}, networks=1)
    job = shop.job("evaluate")
    perform_missing(shop.plan.graph, shop.store, job.parent_keys())
    command = [sys.executable, "-c", _ASSERTS, json.dumps(job.to_json()), str(shop.store.root)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[-2000:]
    endings = json.loads(child.stdout.splitlines()[-1])
    assert [ended["reason"] for ended in endings] == ["card", "card"], endings
    assert endings[0]["card"].startswith("GPU-")
    assert execute(job.to_json(), str(shop.store.root), "run")["status"] == "done"
    note("device-side assert", note=f"recognised on {endings[0]['card']}")
