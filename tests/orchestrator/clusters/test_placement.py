"""Workers on cards: how many there are, and that each card has as many as any other, through Ray with cards that are
not there."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.clusters import config
from orchestrator.clusters.config import LocalClusterSpec, SlurmClusterSpec
from orchestrator.clusters.ray_cluster import LocalCluster
from orchestrator.clusters.ray_pool import RayPool, _Slot, gpu_share
from orchestrator.runs.pool import JobReturned, PoolBroken, WorkerJoined
from tests.nvidia_smi import UUIDS, pretend_cards
from tests.orchestrator.fakes import graph_of
from workers.runtime.visible_cards import installed_cards, visible_cards


@pytest.fixture(autouse=True)
def cards_forgotten() -> Iterator[None]:
    yield
    installed_cards.cache_clear()


def test_local_workers_are_one_a_card_else_one_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 64)
    pretend_cards(tmp_path, monkeypatch, 0)
    assert LocalClusterSpec().count() == 64
    pretend_cards(tmp_path, monkeypatch, 4)
    assert LocalClusterSpec().count() == 4
    assert LocalClusterSpec(slots_per_gpu=3).count() == 12
    assert LocalClusterSpec(workers=5).count() == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert LocalClusterSpec().count() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalClusterSpec().count() == 64


def test_a_list_of_cards_on_a_machine_without_any_leaves_one_worker_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 64)
    pretend_cards(tmp_path, monkeypatch, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert LocalClusterSpec().count() == 64


def test_slots_of_a_slurm_worker_share_its_gpus_when_that_is_said() -> None:
    spec = SlurmClusterSpec(kind="slurm", gpus="a100:2", cpus=8, slots_per_gpu=3)
    assert spec.slots_per_worker == 6
    assert SlurmClusterSpec(kind="slurm", cpus=8, slots_per_gpu=3).slots_per_worker == 8


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 6, 10])
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_parts_of_foreign_gpus_fill_each_of_them(gpus: int, slots: int) -> None:
    shares = [gpu_share(gpus, slots, number) for number in range(slots)]
    by_card = [sum(shares[number] for number in range(card, slots, gpus)) for card in range(min(gpus, slots))]
    assert by_card == pytest.approx([by_card[0]] * len(by_card)) and sum(shares) <= gpus + 1e-9
    assert gpu_share(0, slots, 0) == 0.0


def test_a_run_does_not_wait_for_cards_that_are_all_left_alone_because_a_core_beside_them_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = RayPool(LocalCluster(2, 2), str(tmp_path), "r1")
    node = {"NodeID": "n", "NodeManagerHostname": "h", "Resources": {"GPU": 2.0, "pdd_slot": 2.0, "pdd_cpu_slot": 1.0}}
    monkeypatch.setattr(pool, "_living_nodes", lambda: {"n": node})
    first, second, core = _Slot(None, "n", "h", 0, 0), _Slot(None, "n", "h", 1, 1), _Slot(None, "n", "h", 2, "none")
    pool._slots, pool._retired = {"core": core, "second": second}, [first]
    pool._require_a_card()
    pool._slots, pool._retired = {"core": core}, [first]
    pool._require_a_card()
    pool._retired = [first, second]
    with pytest.raises(PoolBroken, match="every card of h is left alone"):
        pool._require_a_card()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("cards", "workers", "given"),
    [
        (4, 6, None),
        (4, 5, ",".join(UUIDS[:4])),
        (8, 10, None),
        (4, "auto", "4,5,6,7"),
        (2, 1, None),
    ],
)
def test_no_card_is_idle_while_another_has_two_workers(
    cards: int, workers: int, given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 64)
    pretend_cards(tmp_path, monkeypatch, 8 if given else cards)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    spec = LocalClusterSpec(workers=workers)  # type: ignore[arg-type]
    count = spec.count()
    assert count == (4 if workers == "auto" else workers)
    cluster = LocalCluster(count, len(visible_cards(os.environ)))
    pool = RayPool(cluster, str(tmp_path), "r1", "tests.orchestrator.fakes.show_card")
    graph, keys = graph_of(range(count + 1))
    names, messages, beside = list[str](), list[str](), dict[str, str]()
    try:
        pool.start()
        deadline = time.monotonic() + 280
        while len(messages) < count or "" in beside.values() or not beside:
            assert time.monotonic() < deadline
            for event in pool.events(1.0):
                match event:
                    case WorkerJoined(slot, cpu_only=True):
                        pool.submit(graph[keys[-1]].to_json(), slot, 1, 0)
                        beside[slot] = ""
                    case JobReturned(slot, message=message) if slot in beside:
                        beside[slot] = message
                    case WorkerJoined(slot, _, card):
                        pool.submit(graph[keys[len(names)]].to_json(), slot, 1, 0)
                        names.append(card)
                    case JobReturned(message=message):
                        messages.append(message.split()[0])
    finally:
        pool.close(0.0)
    assert list(beside.values()) == ["-1 1"]
    allowed = given.split(",") if given else UUIDS[:cards]
    assert set(messages) <= set(allowed)
    for used in (Counter(messages), Counter(names)):
        assert len(used) == min(cards, count) and max(used.values()) - min(used.values()) <= 1
