from __future__ import annotations

import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from jobs.machines import Slowness
from orchestrator.clusters import doctor
from orchestrator.clusters.config import LocalClusterSpec, Target
from orchestrator.clusters.doctor import examine, time_card
from orchestrator.clusters.finding import Finding
from orchestrator.planning.host_speed import SUSTAINED, HostSpeed, machine_of_card
from tests.nvidia_smi import UUIDS, pretend_cards
from workers.runtime import card_speed
from workers.runtime.visible_cards import installed_cards


def findings(root: Path | str, workers: int = 1) -> dict[str, Finding]:
    found = examine(Target("local", LocalClusterSpec(workers=workers), str(root)))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose speed is known: to time it takes seconds."""
    monkeypatch.setattr(doctor, "host_speed", lambda workers: HostSpeed(Slowness(0.8, 1.1), 1.7e9))


def test_how_fast_a_core_is_and_since_when_that_is_known_is_shown(tmp_path: Path) -> None:
    found = findings(tmp_path)["speed"]
    assert (
        found.ok and "0.80 times its price for a layer's call and 1.10" in found.found and "2023-11-14" in found.found
    )


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_every_finding_that_is_not_well_has_a_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_full(monkeypatch)
    monkeypatch.setattr(metadata, "version", absent("ray"))
    found = findings("/proc/store", workers=10_000)
    assert {name for name, one in found.items() if not one.ok} >= {"ray", "workers", "shared memory", "store"}
    assert all(one.fix for one in found.values() if not one.ok)


def test_this_machine_passes_with_a_worker_and_a_store(tmp_path: Path) -> None:
    found = findings(tmp_path / "store")
    for name in ("python", "torch", "ray", "pyarrow", "workers", "device", "store"):
        assert found[name].ok, found[name]
    assert found["python"].found == ".".join(map(str, sys.version_info[:3]))
    assert found["store"].found == str(tmp_path / "store")


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", absent("submitit"))
    found = findings(tmp_path)
    assert found["submitit"] == Finding("submitit", False, "not installed", "pip install submitit")
    assert found["torch"].ok


def test_more_workers_than_cores_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert findings(tmp_path, workers=2)["workers"].ok
    found = findings(tmp_path, workers=3)["workers"]
    assert (found.ok, found.found) == (False, "3 workers on 2 cores") and "--workers 2" in found.fix


def test_cards_are_shown_with_what_a_worker_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(tmp_path)["cards"] == Finding("cards", True, "none", findings(tmp_path)["cards"].fix)
    pretend_cards(tmp_path, monkeypatch, 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(doctor, "usable_cores", lambda: 16)
    found = findings(tmp_path, workers=3)
    assert f"{UUIDS[1]}: NVIDIA H100 80GB HBM3, 80 GiB" in found["cards"].found
    assert not found["cards"].ok and "PyTorch" in found["cards"].fix, "this PyTorch sees no card"
    assert found["workers"].found == "3 workers on 2 cards, at most 2 on each; 5 of 16 cores for each"
    installed_cards.cache_clear()


def test_a_temporary_folder_whose_name_is_too_long_for_sockets_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert findings(tmp_path)["temporary folder"].ok
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/a-folder-with-a-very-long-name/tmp")
    found = findings(tmp_path)["temporary folder"]
    assert not found.ok and "TMPDIR" in found.fix


def test_the_longest_temporary_folder_that_is_well_is_one_that_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own check counts the whole name of the folder that it makes."""
    from orchestrator.clusters.ray_cluster import LONGEST_FOLDER

    for length, ok in ((23, True), (24, False)):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (length - 1))
        assert doctor._temporary_folder().ok is ok
        assert (len(f"{tempfile.gettempdir()}/pdd-12345678/ray") <= LONGEST_FOLDER) is ok


def test_a_store_that_cannot_be_written_is_found_with_its_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = findings(tmp_path / "file" / "store")
    assert not found["store"].ok and str(tmp_path / "file" / "store") in found["store"].found
    assert "write" in found["store"].fix and "disk" not in found


def test_a_full_disk_and_a_small_shared_memory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_full(monkeypatch)
    found = findings(tmp_path)
    assert not found["disk"].ok and found["disk"].found == "0 GiB free"
    if Path("/dev/shm").is_dir():
        assert not found["shared memory"].ok


def everything_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))


def absent(name: str) -> Any:
    """`metadata.version` on a machine without one package."""
    known = metadata.version

    def version(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return known(asked)

    return version


def test_a_card_is_timed_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PDD_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not time_card().ok and "node with one" in time_card().fix
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(card_speed, "time_card", lambda device: card_speed.CardSpeed(9.5e12, 8e11, 6e-6))
    assert time_card().found == "9.50 TFLOP/s in convolutions, 800 GB/s in memory, 6.0 us to start a kernel"
    assert machine_of_card().rate == SUSTAINED * 9.5e12
