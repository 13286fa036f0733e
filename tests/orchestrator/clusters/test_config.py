"""`cluster.yaml`: the three kinds, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import BadInput
from orchestrator.clusters.config import LocalClusterSpec, RayClusterSpec, SlurmClusterSpec, choose_target, usable_cores

ROOT = Path(__file__).resolve().parents[3]


def written(folder: Path, clusters: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text("clusters:\n  local: {kind: local, workers: 3}\n" + clusters)
    return path


def test_each_kind_is_read_as_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, "  s: {kind: slurm, gpus: 2, cpus: 8}\n  r: {kind: ray, address: 'head:6379'}\n")
    local, slurm, ray = (choose_target(path, name, None, None).cluster for name in ("local", "s", "r"))
    assert isinstance(local, LocalClusterSpec) and local.count() == 3
    assert isinstance(slurm, SlurmClusterSpec) and (slurm.slots_per_worker, slurm.count()) == (2, 8)
    assert isinstance(ray, RayClusterSpec) and ray.address == "head:6379"


def test_slots_are_gpus_else_cores_else_what_is_said() -> None:
    slots = [{}, {"cpus": 6}, {"cpus": 6, "gpus": 2}, {"cpus": 6, "gpus": 2, "slots": 5}]
    found = [SlurmClusterSpec.model_validate({"kind": "slurm", **each}).slots_per_worker for each in slots]
    assert found == [1, 6, 2, 5]


@pytest.mark.parametrize(
    ("fields", "count"),
    [({"gpus": 2}, 2), ({"gpus": "a100:2"}, 2), ({"gres": "gpu:3"}, 3), ({"gres": "gpu:a100:4"}, 4), ({}, 0)],
)
def test_gpus_are_counted_with_and_without_their_type(fields: dict[str, Any], count: int) -> None:
    spec = SlurmClusterSpec.model_validate({"kind": "slurm", **fields})
    assert spec.gpu_count == count and spec.slots_per_worker == max(1, count)


def test_workers_here_are_no_more_than_affinity_slurm_and_quotas_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    own = tmp_path / "cgroup"
    own.write_text("0::/jobs/7\n")
    (tmp_path / "jobs" / "7").mkdir(parents=True)
    assert usable_cores(tmp_path, own) == usable_cores(tmp_path, tmp_path / "none") == 16
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "jobs" / "7" / "cpu.max").write_text("1050000 100000\n")
    assert usable_cores(tmp_path, own) == 10
    (tmp_path / "jobs" / "cpu.max").write_text("350000 100000\n")
    assert usable_cores(tmp_path, own) == 3
    (tmp_path / "jobs" / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path, own) == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert usable_cores(tmp_path, tmp_path / "none") == 5


@pytest.mark.parametrize(
    ("entry", "field", "fix"),
    [
        ("{kind: slurm, partitoin: gpu}", "clusters.s.partitoin", "known here: account, array_throttle, "),
        ("{kind: slurm, head: {gpus: 1}}", "clusters.s.head.gpus", "known here: cpus, memory, minutes, "),
        ("{kind: pbs}", "clusters.s.kind", "must be one of local, slurm, ray"),
        ("{kind: ray}", "clusters.s.address", "required"),
        ("{kind: ray, address: nowhere}", "clusters.s.address", "write HOST:PORT"),
        ("{kind: slurm, mode: swarm}", "clusters.s.mode", "'elastic', 'gang' or 'allocation'"),
        ("{kind: slurm, gpus: 'a100'}", "clusters.s.gpus", "such as a100:2"),
        ("{kind: slurm, gpus: 1, gres: 'gpu:1'}", "clusters.s", "gpus and gres both ask for GPUs"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(tmp_path: Path, entry: str, field: str, fix: str) -> None:
    with pytest.raises(BadInput) as refused:
        choose_target(written(tmp_path, f"  s: {entry}\n"), "s", None, None)
    assert refused.value.field == field
    assert fix in refused.value.fix


def test_workers_of_the_command_line_limit_the_workers_of_slurm(tmp_path: Path) -> None:
    cluster = choose_target(written(tmp_path, "  s: {kind: slurm, cpus: 4}\n"), "s", None, 7).cluster
    assert isinstance(cluster, SlurmClusterSpec) and (cluster.max_workers, cluster.count()) == (7, 28)


def test_the_file_of_the_repository_has_a_slurm_cluster() -> None:
    assert isinstance(choose_target(ROOT / "cluster.yaml", "slurm", None, None).cluster, SlurmClusterSpec)


def test_the_data_map_names_folders_and_leaves_out_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("data: {cifar10: /data/cifar10, cifar100: null}\n")
    assert choose_target(path, None, None, None).data == {"cifar10": "/data/cifar10"}
    assert choose_target(ROOT / "cluster.yaml", None, None, None).data == {}


def test_a_store_can_be_for_a_group_and_one_on_the_command_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("store: {folder: /shared/store, shared: group}\n")
    target = choose_target(path, None, None, None)
    assert (target.store, target.shared) == ("/shared/store", True)
    assert not choose_target(path, None, "mine", None).shared
    path.write_text("store: here\n")
    assert (choose_target(path, None, None, None).store, choose_target(path, None, None, None).shared) == (
        "here",
        False,
    )
    path.write_text("store: {shared: everybody}\n")
    with pytest.raises(BadInput, match=r"store\.shared.*group"):
        choose_target(path, None, None, None)
