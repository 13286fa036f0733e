"""The largest job by card size, and the refusal of one that fits no card of the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import BadInput
from jobs.memory import peak_bytes
from orchestrator.clusters.config import LocalClusterSpec, SlurmClusterSpec, card_gigabytes
from orchestrator.planning.card_memory import lines, require_room, to_json
from tests.jobs.test_memory import stage_of
from tests.nvidia_smi import pretend_cards
from workers.runtime.visible_cards import installed_cards

PEAKS = {"small": 10**9, "middle": 18 * 10**9, "large": 60 * 10**9}


def test_plan_says_the_largest_job_of_each_card_size() -> None:
    said = list(lines(PEAKS))
    assert said[0] == "on a card of 16 GB the largest job is small with 1 GB; 2 are too large"
    assert said[-1] == "on a card of 80 GB the largest job is large with 60 GB"
    assert len(list(lines({"small": 10**9}))) == 1, "larger cards say no more"
    assert to_json(PEAKS)["24"] == {"largest": "middle", "bytes": 18 * 10**9, "too_large": 1}


def test_a_stage_that_fits_no_card_is_refused_with_its_size_and_the_engine_that_fits() -> None:
    job, graph = stage_of("cifar10", 50)
    peaks = {job.key: peak_bytes(job, graph)}
    require_room(peaks, graph, 80, "big")
    require_room(peaks, graph, None, "unknown")
    with pytest.raises(BadInput) as refused:
        require_room(peaks, graph, 24, "lab")
    assert "cluster lab" in str(refused.value) and job.key in str(refused.value)
    assert "distil.settings.engine=adjoint" in refused.value.fix
    with pytest.raises(BadInput) as refused:
        require_room(peaks, graph, 1, "lab")
    assert "larger cards" in refused.value.fix


def test_slots_share_a_card_that_is_declared_or_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert card_gigabytes(SlurmClusterSpec(kind="slurm", gpus=2)) is None
    assert card_gigabytes(SlurmClusterSpec(kind="slurm", gpus=2, gpu_memory=80.0)) == 80
    assert card_gigabytes(SlurmClusterSpec(kind="slurm", gpus=2, gpu_memory=80.0, slots_per_gpu=2)) == 40
    pretend_cards(tmp_path, monkeypatch, 0)
    assert card_gigabytes(LocalClusterSpec()) is None
    pretend_cards(tmp_path, monkeypatch, 4, mib=40_000)
    assert card_gigabytes(LocalClusterSpec()) == pytest.approx(41.9, abs=0.1)
    assert card_gigabytes(LocalClusterSpec(workers=6)) == pytest.approx(20.97, abs=0.1)
    installed_cards.cache_clear()
