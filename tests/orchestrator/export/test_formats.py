"""Sets and experts in the files of other programs: what stands in them, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from jobs.datasets import NORMALISATIONS
from jobs.documents import validate
from jobs.errors import BadInput
from jobs.experiment import Experiment
from orchestrator import launch
from orchestrator.clusters.config import choose_target
from orchestrator.export import chain as chains
from orchestrator.export import formats
from orchestrator.export.chain import ExportSource
from orchestrator.planning.requests import Request
from orchestrator.workloads import launcher
from orchestrator.workloads.base import LaunchOptions
from orchestrator.workloads.experiments import ExperimentWorkload
from tests.documents import check
from tests.orchestrator.cifar import write_cifar10
from tests.workers.workshop import TWO_STAGES, Workshop
from workers.data import published, synthetic_set
from workers.store.store import Store
from workers.store.trajectories import TRAJECTORIES, Trajectories


def ran(folder: Path, raw: dict[str, Any]) -> Store:
    """The store of an experiment that was run in this process."""
    file = folder / f"{raw['name']}.yaml"
    file.write_text(yaml.safe_dump({"scale": "tiny", "networks": 1, **raw}))
    store = Store.open(folder / "store")
    workload = ExperimentWorkload.of(Request(experiments=(str(file),), store=str(store.root)))
    options = LaunchOptions(command="test", quiet=True)
    result = launcher.launch(workload, choose_target(None, "local", str(store.root), 0), store, options)
    assert not isinstance(result, str) and result.exit == 0
    return store


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of two stages on digits."""
    folder = tmp_path_factory.mktemp("digits")
    arms = [{"method": "mtt", "stages": 2, "ipc_per_stage": 1}]
    ran(folder, {"name": "digits", "dataset": "digits", "arms": arms})
    return folder


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store of two stages on a stand-in for CIFAR-10, as DD-Ranking measures them and as PDD does."""
    folder = tmp_path_factory.mktemp("cifar")
    path = str(write_cifar10(folder, 10, 5))
    stages = {"method": "dm", "stages": 2, "ipc_per_stage": 1, "set": {"distil.iterations": 2}}
    arms = [stages, stages | {"name": "Ranked", "modes": ["union"], "protocol": "dd_ranking"}]
    ran(folder, {"name": "ranked", "dataset": {"name": "cifar10", "path": path}, "arms": arms})
    return folder


def type_in(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["pdd", *words])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    return int(ended.value.code or 0)


def source_of(folder: Path, name: str, arm: str) -> tuple[ExportSource, Store]:
    store = Store(folder / "store")
    request = Request(experiments=(str(folder / f"{name}.yaml"),), store=str(store.root))
    return chains.gather(chains.of_experiment(ExperimentWorkload.of(request).resolved.plan, arm), store), store


@pytest.fixture(scope="module")
def softly(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportSource, Store]:
    """Two stages with soft labels that were tested, made without Ray."""
    numbers = {"distil.labels": {"source": "classes", "scale": 4.0, "temperature": 2.0}}
    workshop = Workshop.open(tmp_path_factory.mktemp("soft"), TWO_STAGES, set=numbers, networks=1)
    for job in workshop.jobs("evaluate"):
        workshop.make(job)
    return chains.gather(chains.of_experiment(workshop.plan, "PDD+MTT"), workshop.store), workshop.store


def test_soft_labels_leave_as_logits_in_the_files_of_mtt_and_are_said(
    softly: tuple[ExportSource, Store], tmp_path: Path
) -> None:
    source, store = softly
    done = formats.write_set(tmp_path / "out", "mtt", source, store)
    union = synthetic_set.union(synthetic_set.newest(store, list(done.keys)))
    labels = torch.load(done.folder / "labels_best.pt", weights_only=True)
    assert union.logits is not None and torch.equal(labels, union.logits / 2)
    torch.testing.assert_close(torch.softmax(labels, 1), union.probabilities())
    assert done.notes == ("labels_best.pt holds logits, as DATM's does: networks are trained towards their softmax",)
    assert formats._ABOUT_SOFT_LABELS.keys() == set(formats.FORMATS)


def test_the_files_of_mtt_are_the_union_and_come_back_as_an_import(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", "digits.yaml", "--for", "mtt", "--out", str(tmp_path / "out"), "--json")
    assert type_in(monkeypatch, digits, *words, "--store", str(digits / "store")) == 0
    document = json.loads(capsys.readouterr().out)
    check("export_for", document)
    assert set(document["files"]) == {"images_best.pt", "labels_best.pt", "lr_best.pt"}
    store = Store(digits / "store")
    sets = synthetic_set.newest(store, document["keys"])
    images, labels, rate = (torch.load(tmp_path / "out" / name) for name in sorted(document["files"]))
    torch.testing.assert_close(images, torch.cat([each.images for each in sets]), rtol=0, atol=0)
    assert labels.tolist() == [*range(10)] * 2
    assert rate == sets[-1].step_size
    spec = published.inspect([tmp_path / "out" / "images_best.pt", tmp_path / "out" / "labels_best.pt"], rate)
    assert (spec.count, spec.classes) == (20, 10)


def test_experts_come_back_bit_for_bit(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(digits / "store")
    key = next(key for key in store.keys("experts") if "stage1" in key)
    words = ("export", "--key", key, "--for", "mtt", "--out", str(tmp_path / "out"), "--store", str(store.root))
    assert type_in(monkeypatch, digits, *words) == 0
    rows = Trajectories([store.path(key, TRAJECTORIES)])
    for expert, snapshots in enumerate(published.open_experts(sorted((tmp_path / "out").iterdir())).snapshots()):
        for epoch, snapshot in enumerate(snapshots):
            np.testing.assert_array_equal(snapshot, rows.parameters(expert, epoch).numpy())


def test_what_dd_ranking_takes_says_the_protocol_that_was_measured(cifar: Path, tmp_path: Path) -> None:
    source, store = source_of(cifar, "ranked", "Ranked")
    written = formats.write_set(tmp_path / "out", "ddranking", source, store)
    assert set(written.files) == {"images.pt", "labels.pt", "lr.pt", "config.yaml", "score.py"}
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    wanted = {"dataset": "CIFAR10", "ipc": 2, "model_name": "ConvNet-3", "data_aug_func": "dsa", "use_zca": False}
    wanted |= {"num_epochs": 20, "step_size": 12, "momentum": 0.9, "weight_decay": 0.0005, "num_eval": 1}
    assert {name: config[name] for name in wanted} == wanted
    assert torch.load(tmp_path / "out" / "lr.pt") == source.protocol.spec.training.lr
    assert [note.partition(";")[0] for note in written.notes] == ["measured on convnet of width 8 with instance norm"]
    compile((tmp_path / "out" / "score.py").read_text(), "score.py", "exec")


def test_pixels_are_normalised_with_the_constants_of_dd_ranking(cifar: Path, tmp_path: Path) -> None:
    source, store = source_of(cifar, "ranked", "Ranked")
    formats.write_set(tmp_path / "out", "ddranking", source, store)
    images = torch.load(tmp_path / "out" / "images.pt")
    sets = synthetic_set.newest(store, source.keys.sets)
    transform = formats.datasets.read_transform(store.path(source.dataset.key, formats.datasets.TRANSFORM))
    pixels = transform.inverse(torch.cat([each.images for each in sets]))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in NORMALISATIONS["cifar10"])
    torch.testing.assert_close(images * std + mean, pixels)
    assert not torch.allclose(images, torch.cat([each.images for each in sets]))  # measured constants are others


def test_what_dd_ranking_does_otherwise_is_said(cifar: Path, tmp_path: Path) -> None:
    source, store = source_of(cifar, "ranked", "PDD+DM")
    notes = " ".join(formats.write_set(tmp_path / "out", "ddranking", source, store).notes)
    assert "measured by progressive training over 2 stages" in notes
    assert "the best of its tests" in notes


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("digits.yaml --for ddranking", "DD-Ranking knows cifar10, cifar100, tiny-imagenet only"),
        ("digits.yaml --for torch", "must be mtt or ddranking"),
        ("digits.yaml --for mtt --folders", "there are no pictures"),
        ("--key experts-0 --for mtt", "no experts have this key"),
        ("--key experts-0 --for ddranking", "experts are written --for mtt"),
    ],
)
def test_what_a_program_cannot_take_is_refused(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    fix: str,
) -> None:
    out = tmp_path / "out"
    places = ("--out", str(out), "--store", str(digits / "store"))
    assert type_in(monkeypatch, digits, "export", *words.split(), *places) == 2
    assert fix in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_stages_under_the_protocol_of_dd_ranking_are_trained_on_at_once() -> None:
    arm = {"method": "mtt", "stages": 2, "ipc_per_stage": 1, "protocol": "dd_ranking"}
    with pytest.raises(BadInput, match="write modes"):
        validate(Experiment, {"name": "x", "arms": [arm]}, "x.yaml")
