"""The benchmark of a card and the run of MTT on one, tried on a CPU at sizes of seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from jobs.specs import NetworkSpec
from tests.benchmarks.card import __main__ as bench
from tests.benchmarks.card import cifar10, limits, loops, measured
from tests.benchmarks.measure import Row, record
from tests.gpu import __main__ as make_gpu
from workers.data import sources
from workers.store.store import Store

CPU = torch.device("cpu")


def test_rows_are_kept_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures"
    record(Row(part="p", name="not kept", cpu_seconds=None))
    monkeypatch.setenv("PDD_FIGURES", str(file))
    for name in ("a", "b"):
        record(Row(part="p", name=name, cpu_seconds=None, kernels=3.0))
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["a", "b"]
    assert [row["kernels"] for row in make_gpu.document({}, file)["rows"]] == [3.0, 3.0]


def test_a_command_that_takes_too_long_is_stopped_and_what_it_kept_stays(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    program = "import os, time; open(os.environ['PDD_FIGURES'], 'w').write('{}\\n'); time.sleep(60)"
    commands = {"slow": [sys.executable, "-c", program], "quick": [sys.executable, "-c", "raise SystemExit(3)"]}
    ended = make_gpu.run(commands, 2.0, lines)
    assert ended["slow"]["exit"] == 124 and ended["slow"]["seconds"] < 20 and ended["quick"]["exit"] == 3
    assert make_gpu.document(ended, lines)["rows"] == [{}]


@pytest.mark.slow
def test_every_part_has_rows_and_a_part_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = next(iter(limits.SHAPES))
    pictures = loops.pictures
    monkeypatch.setenv("PDD_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(limits, "SHAPES", {shape: (2, 8, 8, 8)})
    monkeypatch.setattr(loops, "CONVNET", NetworkSpec(architecture="convnet", width=4, depth=3))
    monkeypatch.setattr(loops, "MATCHING", {1: (2, 10)})
    monkeypatch.setattr(loops, "TRAIN", 300)
    monkeypatch.setattr(loops, "TEST", 100)
    monkeypatch.setattr(loops, "METHODS", {"dm": {"batch_real": 4}, "idc": {"batch_real": 4, "classes_at_once": 10}})
    monkeypatch.setattr(loops, "TRAINING_ENGINES", {"eager": {}, "eager bfloat16": {"precision": "bfloat16"}})
    monkeypatch.setattr(loops, "pictures", lambda device, count: pictures(device, min(count, 300)))
    monkeypatch.setattr(measured, "ENOUGH", 0.0)
    monkeypatch.setattr(measured, "FEWEST", 1)
    monkeypatch.setitem(bench.PARTS, "clusters", lambda device: [][0])
    bench.main([], CPU)
    rows = [json.loads(line) for line in (tmp_path / "figures").read_text().splitlines()]
    names = " | ".join(row["name"] for row in rows)
    for name in (shape, "doctor", "adjoint", "dm, 10", "idc, 10", "expert", "evaluation, 50 a class", "test of 100"):
        assert name in names
    (failed,) = [row for row in rows if "failed" in row["note"]]
    assert failed["name"] == "clusters" and "IndexError" in failed["note"]
    assert all(row["wall_seconds"] > 0 for row in rows if row["part"] == "card loops")
    assert "TFLOP/s" in capsys.readouterr().out


@pytest.mark.slow
def test_the_run_of_mtt_fits_its_time_and_says_what_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = sources.inspect(sources.Source(layout="digits", place="test"))
    monkeypatch.setattr(cifar10, "MATCHING", {1: (2, 10), 10: (2, 10)})
    monkeypatch.setattr(cifar10, "EPOCHS", 4)
    monkeypatch.setattr(cifar10, "NETWORKS", 2)
    monkeypatch.setattr(cifar10, "MOST_EXPERTS", 3)
    monkeypatch.setattr(cifar10, "MOST_ITERATIONS", 4)
    file = tmp_path / "run.json"
    images = cifar10.Images({"name": "digits"}, facts, "tiny")
    protocol = cifar10.Protocol(images, 900.0, Store.open(tmp_path / "store"), file)
    protocol.run(1)
    document = json.loads(file.read_text())
    assert {row["networks"] for row in document["rows"]} == {2} and len(document["rows"]) == 4
    assert document["cut"]["experts"] == "3 of 3"
    assert all(job["status"] == "done" for job in document["jobs"])
    assert "MTT" in cifar10.table(protocol) and "experts: 3 of 3" in cifar10.table(protocol)
