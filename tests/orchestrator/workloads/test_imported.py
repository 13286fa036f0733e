"""What others have computed takes part in runs: their experts are started from, their sets evaluated and built upon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs.errors import BadInput
from jobs.graph import Job
from jobs.keys import kind_of
from orchestrator import launch
from orchestrator.planning.requests import Request, resolve
from tests.workers.workshop import CPU, TWO_STAGES, Workshop
from workers.data import published, synthetic_set
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.store.store import Store
from workers.store.trajectories import TRAJECTORIES, Trajectories
from workers.tasks import experts as experts_task
from workers.training.networks import flatten
from workers.training.students import parameter_shapes

Type = Callable[..., int]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in the published format: three experts of the tiny experiment in two buffers, and its first set."""
    folder = tmp_path_factory.mktemp("others")
    workshop = Workshop.open(folder, TWO_STAGES, set={"experts.number": 3, "experts.expert_batch": 1})
    stage = workshop.job("distil", stage=1)
    workshop.make(stage)
    shapes = parameter_shapes(stage.spec.network, (1, 8, 8), 10)  # type: ignore[attr-defined]
    rows = [workshop.trajectories(job) for job in workshop.jobs("experts", stage=1)]
    for number, part in enumerate((rows[:2], rows[2:])):
        snapshots = [torch.stack([each.parameters(0, epoch) for epoch in range(each.epochs + 1)]) for each in part]
        (written,) = published.write_experts(folder / "store", iter(snapshots), shapes)
        written.rename(folder / f"replay_buffer_{number}.pt")
    made = workshop.synthetic(stage)
    published.write_set(folder, made.images, made.labels, made.step_size)
    (folder / "rate.txt").write_text(str(made.step_size))
    return folder


@pytest.fixture
def type_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Types a command in an empty folder: its exit code."""

    def type_in(*words: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["pdd", *words, "--store", "store"])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        return int(ended.value.code or 0)

    return type_in


@pytest.fixture
def imported(type_in: Type, others: Path, tmp_path: Path) -> dict[str, str]:
    """The keys of both imports in a store of their own."""
    buffers = sorted(map(str, others.glob("replay_buffer_*.pt")), reverse=True)
    rate = (others / "rate.txt").read_text()
    files = [str(others / f"{name}_best.pt") for name in ("images", "labels")]
    assert type_in("import", *buffers) == 0
    assert type_in("import", *files, "--step-size", rate, "--normalise", "measured") == 0
    keys = {key.split("-")[1]: key for key in Store(tmp_path / "store").keys("imported")}
    assert set(keys) == {"experts", "set"}
    return keys


def write_experiment(folder: Path, *arms: dict[str, Any], **more: Any) -> str:
    path = folder / "mine.yaml"
    raw = {"name": "mine", "dataset": "digits", "scale": "tiny", "networks": 1, "arms": list(arms), **more}
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def plan_of(folder: Path, *arms: dict[str, Any], **more: Any) -> list[Job]:
    request = Request(experiments=(write_experiment(folder, *arms, **more),), store=str(folder / "store"))
    return list(resolve(request).plan.graph)


def refusal(folder: Path, arm: dict[str, Any], **more: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        plan_of(folder, arm, **more)
    return caught.value


def test_a_run_starts_from_imported_experts_and_builds_on_an_imported_set(
    type_in: Type, imported: dict[str, str], tmp_path: Path, others: Path
) -> None:
    arms = (
        {"method": "mtt", "stages": 2, "ipc_per_stage": 1, "imported_experts": imported["experts"]},
        {"method": "mtt", "stages": 2, "ipc_per_stage": 1, "imported_set": imported["set"]},
        {"method": "mtt", "ipc_per_stage": 1, "imported_set": imported["set"], "name": "Theirs"},
    )
    file = write_experiment(tmp_path, *arms)
    assert type_in("run", file, "--workers", "0", "--json") == 0
    store = Store(tmp_path / "store")
    stages = [store.manifest(key) for key in store.keys("distil")]
    first = [stage for stage in stages if stage.spec["stage"] == 1]
    assert [list(stage.parents["experts"]) for stage in first] == [[imported["experts"]]]
    (adopted,) = store.keys("select")
    assert [stage.spec["stage"] for stage in stages if list(stage.parents.get("sets", ())) == [adopted]] == [2]
    theirs = synthetic_set.read(store.path(adopted, synthetic_set.EXACT))
    torch.testing.assert_close(theirs.images, torch.load(others / "images_best.pt"), rtol=0, atol=0)
    assert theirs.step_size == float((others / "rate.txt").read_text())
    assert type_in("export", file, "--arm", "Theirs", "--out", "exported") == 0
    assert "imported-set-10" in (tmp_path / "exported" / "README.md").read_text()


def test_each_expert_of_a_later_stage_goes_on_from_its_own_trajectory(
    imported: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = {"method": "mtt", "stages": 2, "ipc_per_stage": 1, "imported_experts": imported["experts"]}
    jobs = plan_of(tmp_path, arm, set={"experts.expert_batch": 1, "experts.number": 100})
    later = [job for job in jobs if job.kind == "experts"]
    assert [job.spec.stage for job in later] == [2, 2, 2]  # type: ignore[attr-defined]
    monkeypatch.setattr(experts_task, "link", lambda *_: None)
    monkeypatch.setattr(experts_task, "learned_from", lambda *_: [])
    monkeypatch.setattr(synthetic_set, "newest", lambda *_: [])
    store = Store.open(tmp_path / "store")
    dataset = next(job for job in jobs if job.kind == "dataset")
    perform(JobContext.alone(dataset, store))
    data = experts_task.datasets.load(store, dataset.key, CPU)
    rows = Trajectories([store.path(imported["experts"], TRAJECTORIES)])
    for number, job in enumerate(later):
        start = experts_task.start_of(JobContext.alone(job, store), data, 0)
        torch.testing.assert_close(flatten(start), rows.parameters(number, 0), rtol=0, atol=0)


def test_an_import_that_is_gone_is_refused_before_the_run(imported: dict[str, str], tmp_path: Path) -> None:
    arm = {"method": "mtt", "ipc_per_stage": 1, "imported_set": imported["set"]}
    job = next(job for job in plan_of(tmp_path, arm) if kind_of(job.key) == "imported")
    Store(tmp_path / "store").quarantine(imported["set"], "for this test")
    error = refusal(tmp_path, arm)
    assert (error.field, error.value) == ("arms.0.imported_set", imported["set"])
    assert "`pdd import`" in error.fix
    with pytest.raises(BadInput, match="import` its files again"):
        perform(JobContext.alone(job, Store.open(tmp_path / "store")))


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path, others: Path) -> None:
    spec = published.inspect([others / "images_best.pt", others / "labels_best.pt"])
    wrong = Job.make(spec.model_copy(update={"source": "0" * 64}), {})
    with pytest.raises(BadInput, match="changed while it was read"):
        perform(JobContext.alone(wrong, Store.open(tmp_path / "store")))


def test_what_does_not_suit_the_experiment_is_refused(imported: dict[str, str], tmp_path: Path) -> None:
    experts, theirs = imported["experts"], imported["set"]
    mtt = {"method": "mtt", "ipc_per_stage": 1}
    with_set, with_experts = mtt | {"imported_set": theirs}, mtt | {"imported_experts": experts}
    cases: list[tuple[dict[str, Any], str, str]] = [
        (with_set | {"ipc_per_stage": 2}, "arms.0.imported_set, images", "write ipc_per_stage: 1"),
        (with_set | {"set": {"dataset.normalise": "zca"}}, "arms.0.imported_set, normalise", "measured"),
        (mtt | {"imported_set": experts}, "arms.0.imported_set", "is experts, not set"),
        (mtt | {"imported_experts": theirs}, "arms.0.imported_experts", "is set, not experts"),
        (mtt | {"imported_experts": "imported-experts-0"}, "arms.0.imported_experts", "`pdd import`"),
        (with_experts | {"method": "dm"}, "arms.0.imported_experts, method", "has no experts"),
        (
            with_experts | {"set": {"network.width": 16}},
            "imported_experts, shape of a parameter",
            "must be (16, 1, 3, 3) as in convnet (width 16, instance norm)",
        ),
        (
            with_experts | {"set": {"network.depth": 1}},
            "imported_experts, shape of a parameter",
            "name the network that the experts have under set.network",
        ),
        (with_experts | {"set": {"distil.settings.expert_epochs": 50}}, "experts.real.epochs", "must be at least"),
    ]
    for arm, field, fix in cases:
        error = refusal(tmp_path, arm)
        assert error.field == field
        assert fix in error.fix, error.fix
    partition = refusal(tmp_path, with_experts | {"stages": 2, "partition": {"increment": 3}})
    assert "others knew no partition" in partition.fix
    selection = refusal(tmp_path, {"method": "random", "ipc_per_stage": 1, "imported_set": theirs})
    assert "leave imported_set out" in selection.fix


def test_a_set_with_soft_labels_is_evaluated_with_them_and_needs_stages_that_have_them(
    type_in: Type, others: Path, tmp_path: Path
) -> None:
    logits = torch.nn.functional.one_hot(torch.arange(10), 10).float() * 3
    torch.save(logits, tmp_path / "labels_best.pt")
    files = (str(others / "images_best.pt"), str(tmp_path / "labels_best.pt"))
    assert type_in("import", *files, "--step-size", "0.02") == 0
    (key,) = Store(tmp_path / "store").keys("imported")
    arm = {"method": "mtt", "ipc_per_stage": 1, "imported_set": key}
    assert refusal(tmp_path, arm | {"stages": 2}).field == "arms.0.imported_set, soft labels"
    assert len(plan_of(tmp_path, arm | {"method": "datm", "stages": 2})) > 0
    assert type_in("run", write_experiment(tmp_path, arm), "--workers", "0") == 0
    store = Store(tmp_path / "store")
    (adopted,) = store.keys("select")
    found = synthetic_set.read(store.path(adopted, synthetic_set.EXACT)).logits
    assert found is not None
    torch.testing.assert_close(found, logits, rtol=0, atol=0)
    assert type_in("export", "mine.yaml", "--for", "mtt", "--out", "exported") == 0
    torch.testing.assert_close(torch.load(tmp_path / "exported" / "labels_best.pt"), logits, rtol=0, atol=0)


def test_a_set_without_a_step_size_needs_a_learning_rate(type_in: Type, others: Path, tmp_path: Path) -> None:
    assert type_in("import", str(others / "images_best.pt"), str(others / "labels_best.pt")) == 0
    (key,) = Store(tmp_path / "store").keys("imported")
    arm = {"method": "mtt", "ipc_per_stage": 1, "imported_set": key}
    error = refusal(tmp_path, arm)
    assert (error.field, error.value) == ("arms.0.imported_set, step size", None)
    assert "--step-size, or give evaluate.lr" in error.fix
    assert len(plan_of(tmp_path, arm | {"set": {"evaluate.lr": 0.02}})) > 0
    error = refusal(tmp_path, arm | {"stages": 2, "set": {"evaluate.lr": 0.02}})
    assert "give transition.lr" in error.fix
