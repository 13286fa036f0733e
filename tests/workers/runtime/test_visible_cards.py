"""Which cards a process sees, in all the ways in which they are named, and that it is kept to one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nvidia_smi import LARGEST_MIB, UUIDS, pretend_cards
from workers.runtime import visible_cards as module
from workers.runtime.process import prepare_process
from workers.runtime.visible_cards import Card, installed_cards, pinned, visible_cards

MIG = "MIG-11111111-2222-3333-4444-555555555555"
CUDA, HIP, ROCR = module.CUDA, module.HIP, module.ROCR


@pytest.fixture(autouse=True)
def cards_forgotten() -> Iterator[None]:
    yield
    installed_cards.cache_clear()


def test_cards_are_what_nvidia_smi_lists_with_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(tmp_path, monkeypatch, 2)
    assert installed_cards() == [Card(uuid, "NVIDIA H100 80GB HBM3", LARGEST_MIB << 20) for uuid in UUIDS[:2]]
    assert str(installed_cards()[0]) == "NVIDIA H100 80GB HBM3, 80 GiB"


def test_a_card_that_is_split_stands_for_its_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(tmp_path, monkeypatch, 2, extra=[f"  MIG 3g.40gb     Device  0: (UUID: {MIG})"])
    assert installed_cards() == [
        Card(UUIDS[0], "NVIDIA H100 80GB HBM3", LARGEST_MIB << 20),
        Card(MIG, "MIG 3g.40gb", 40 * 10**9),
    ]


def test_without_nvidia_smi_device_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert installed_cards(tmp_path, tmp_path) == [Card("0"), Card("1")]


def test_amd_cards_are_the_nodes_of_its_topology_that_are_no_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for node, gpu in enumerate(["0", "51101", "2345"]):
        bank = tmp_path / str(node) / "mem_banks" / "0"
        bank.mkdir(parents=True)
        (tmp_path / str(node) / "gpu_id").write_text(f"{gpu}\n")
        (bank / "properties").write_text("heap_type 1\nsize_in_bytes 68702699520\nflags 0\n")
    assert installed_cards(tmp_path / "none", tmp_path) == [
        Card("0", "AMD", 68702699520),
        Card("1", "AMD", 68702699520),
    ]


def test_a_failing_nvidia_smi_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(tmp_path, monkeypatch, 2)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert installed_cards(tmp_path / "none", tmp_path / "none") == []


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("2", ["2"]),
        ("2,0", ["2", "0"]),
        ("0,-1,1", ["0"]),
        (f"{UUIDS[1]}, {UUIDS[0]}", [UUIDS[1], UUIDS[0]]),
        (UUIDS[2][:12], [UUIDS[2][:12]]),
        ("", []),
        ("NoDevFiles", []),
        (MIG, [MIG]),
    ],
)
def test_a_list_in_the_environment_chooses(
    value: str, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cards(tmp_path, monkeypatch, 3)
    monkeypatch.setenv(CUDA, value)
    cards = visible_cards(os.environ)
    assert [card.id for card in cards] == seen
    assert all(card.memory == LARGEST_MIB << 20 for card in cards if card.id != MIG)


@pytest.mark.parametrize(
    ("environment", "amd", "number", "variables"),
    [
        ({CUDA: "3,5"}, False, 0, {CUDA: "3"}),
        ({CUDA: "3,5"}, False, 3, {CUDA: "5"}),
        ({CUDA: f"{UUIDS[0]},{MIG}"}, False, 1, {CUDA: MIG}),
        ({CUDA: "", ROCR: "0"}, False, 1, {}),
        ({CUDA: "0,1", ROCR: "0,1", HIP: "7"}, False, 1, {CUDA: "1"}),
        ({ROCR: "2,3"}, True, 1, {ROCR: "3", HIP: None, CUDA: None}),
        ({ROCR: "GPU-a,GPU-b,GPU-c", HIP: "0,2"}, True, 1, {ROCR: "GPU-c", HIP: None, CUDA: None}),
        ({ROCR: "2,3", CUDA: "2,3"}, True, 0, {ROCR: "2", HIP: None, CUDA: None}),
        ({ROCR: "0,1", CUDA: "0,1"}, True, 1, {ROCR: "1", HIP: None, CUDA: None}),
        ({HIP: "4,6"}, True, 1, {HIP: "6", CUDA: None}),
        ({CUDA: "4,6"}, True, 0, {HIP: "4", CUDA: None}),
    ],
)
def test_a_process_is_kept_to_one_of_its_cards(
    environment: dict[str, str], amd: bool, number: int, variables: dict[str, str | None]
) -> None:
    assert pinned(environment, number, amd) == variables


def test_a_worker_takes_its_card_before_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(tmp_path, monkeypatch, 4)
    monkeypatch.setenv(CUDA, "")  # so that it is put back
    monkeypatch.delenv(CUDA)
    prepare_process(card=6)
    assert os.environ[CUDA] == UUIDS[2]
    prepare_process()
    assert os.environ[CUDA] == UUIDS[2]
    for name in (HIP, ROCR):
        monkeypatch.setenv(name, "0")
    prepare_process(card="none")
    assert visible_cards(os.environ) == [] and {os.environ[name] for name in (CUDA, HIP, ROCR)} == {"-1"}
