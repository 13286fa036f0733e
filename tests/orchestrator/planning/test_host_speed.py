from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs import machines
from jobs.machines import Slowness
from orchestrator.planning import host_speed as module
from orchestrator.planning.durations import machine_of
from orchestrator.planning.host_speed import KEPT_BUSY_SECONDS, KEPT_SECONDS, begin_timing, host_speed, remember_card
from workers.runtime.card_speed import CardSpeed
from workers.training import speed


@pytest.fixture
def timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of workers for which the host was timed; each measurement is slower than the last by one."""
    taken: list[int] = []

    class Timing:
        def __init__(self, workers: int) -> None:
            self.workers = workers

        def slowness(self) -> Slowness:
            taken.append(self.workers)
            return Slowness(float(len(taken)), 0.5)

    monkeypatch.setenv("PDD_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 0.2, 0.2))
    monkeypatch.setattr(speed, "Timing", Timing)
    return taken


def test_a_host_is_timed_once_for_as_many_workers_as_it_has_cores(
    timings: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [host_speed(workers).slowness.calls for workers in (1, 2, 1, 2, 3, 256)] == [1.0, 2.0, 1.0, 2.0, 2.0, 2.0]
    assert timings == [1, 2]
    assert capsys.readouterr().err.count("timing the cores of this machine") == 2


def test_processes_that_loaded_the_code_meanwhile_time_the_host(timings: list[int]) -> None:
    begin_timing(2)
    assert list(module._begun) == [2] and timings == []
    assert host_speed(2).slowness.calls == 1.0 and timings == [2] and module._begun == {}
    begin_timing(2)
    assert module._begun == {}  # since it is known


def test_it_is_timed_anew_after_a_week_and_by_another_torch_or_host(
    timings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = host_speed(2)
    monkeypatch.setattr(module.time, "time", lambda: first.at + KEPT_SECONDS - 1)
    assert host_speed(2) == first
    monkeypatch.setattr(module.time, "time", lambda: first.at + KEPT_SECONDS + 1)
    assert host_speed(2).slowness.calls == 2.0
    monkeypatch.setattr(module, "installed_versions", lambda packages: {"torch": "99"})
    assert host_speed(2).slowness.calls == 3.0
    monkeypatch.setattr(module.platform, "node", lambda: "elsewhere")
    assert host_speed(2).slowness.calls == 4.0


def test_what_was_timed_beside_other_work_is_soon_timed_anew(
    timings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.2, 0.2))
    first = host_speed(2)
    monkeypatch.setattr(module.time, "time", lambda: first.at + KEPT_BUSY_SECONDS - 1)
    assert host_speed(2) == first
    monkeypatch.setattr(module.time, "time", lambda: first.at + KEPT_BUSY_SECONDS + 1)
    assert host_speed(2).slowness.calls == 2.0


def test_a_damaged_memory_is_no_memory(timings: list[int], tmp_path: Path) -> None:
    host_speed(2)
    (file,) = tmp_path.rglob("speed-*.json")
    file.write_text(file.read_text().replace("1.0", "9.0"))
    assert host_speed(2).slowness.calls == 2.0


def test_a_card_that_was_timed_prices_the_published_scale(timings: list[int]) -> None:
    assert machine_of("paper", 4) == machines.GPU
    remember_card(CardSpeed(convolution=1e13, bandwidth=1e12, launch=1e-5))
    machine = machine_of("paper", 4)
    assert (machine.name, machine.host, machine.overlaps) == (machines.GPU.name, machines.GPU.host, True)
    assert (machine.rate, machine.call, machine.inner_call) == pytest.approx((1.8e12, 1.45e-3, 3.45e-3))


def test_an_h200_as_doctor_timed_it_is_priced_as_its_loops_were_measured(timings: list[int]) -> None:
    remember_card(CardSpeed(convolution=1.136e14, bandwidth=3.86e12, launch=6.94e-6))
    machine = machine_of("paper", 4)
    for name in ("rate", "call", "inner_call"):
        assert getattr(machine, name) == pytest.approx(getattr(machines.GPU, name), rel=0.05)
    assert timings == []
