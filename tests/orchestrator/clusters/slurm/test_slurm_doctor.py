"""What the doctor says of a SLURM cluster, from what the cluster says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clusters.config import SlurmClusterSpec, Target
from orchestrator.clusters.slurm import doctor
from tests.orchestrator.clusters.slurm.test_jobs import Programs

PARTITIONS = {
    "cpu": {"MaxTime": "00:30:00", "State": "UP", "Default": "YES", "PreemptMode": "REQUEUE"},
    "gpu": {"MaxTime": "1-00:00:00", "State": "UP", "PreemptMode": "CANCEL"},
    "old": {"MaxTime": "UNLIMITED", "State": "DOWN", "PreemptMode": "OFF"},
}


def spec_of(**fields: Any) -> SlurmClusterSpec:
    return SlurmClusterSpec.model_validate({"kind": "slurm", **fields})


@pytest.mark.parametrize(
    ("fields", "found", "fix"),
    [
        ({}, "cpu allows 30 minutes and 240 are asked for", "set minutes to 30 or less"),  # the default partition
        ({"minutes": 30}, "", ""),
        ({"partition": "gpu"}, "", ""),
        ({"partition": "gpu,cpu"}, "", ""),  # one of them will do
        ({"partition": "none"}, "there is no partition none", "take one of cpu, gpu, old"),
        ({"partition": "old"}, "old is DOWN", "take another one"),
    ],
)
def test_a_partition_must_be_there_and_up_and_allow_the_walltime(fields: dict[str, Any], found: str, fix: str) -> None:
    workers, head = doctor.partition_findings(spec_of(**fields), PARTITIONS)
    assert workers.ok is head.ok is (not found)
    assert found in workers.found and (not found or fix in workers.fix)


def test_the_head_has_its_own_partition_and_walltime() -> None:
    spec = spec_of(partition="gpu", head={"partition": "cpu"})
    workers, head = doctor.partition_findings(spec, PARTITIONS)
    assert workers.ok and not head.ok and "head.minutes" in head.fix
    assert len(doctor.partition_findings(spec_of(mode="gang", partition="gpu"), PARTITIONS)) == 1
    assert all(one.ok for one in doctor.partition_findings(spec, {}))  # SLURM does not say
    assert doctor.partition_findings(spec_of(partition="old"), PARTITIONS, must_be_up=False)[0].ok


@pytest.mark.parametrize(
    ("config", "fields", "cancelled"),
    [
        ({"PreemptType": "preempt/none", "PreemptMode": "CANCEL"}, {"partition": "gpu"}, False),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}, {"partition": "gpu"}, True),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}, {}, False),
        ({"PreemptType": "preempt/partition_prio"}, {"partition": "gpu", "head": {"partition": "cpu"}}, False),
        ({"PreemptType": "preempt/qos", "PreemptMode": "CANCEL"}, {}, True),
        ({"PreemptType": "preempt/qos", "PreemptMode": "GANG,SUSPEND"}, {}, False),
        ({}, {"partition": "gpu"}, False),
    ],
)
def test_preemption_that_cancels_is_foreseen(config: dict[str, str], fields: dict[str, Any], cancelled: bool) -> None:
    assert doctor.may_be_cancelled(spec_of(**fields), config, PARTITIONS) is cancelled
    assert ("WARNING" in doctor._preemption(spec_of(**fields), config, PARTITIONS).found) is cancelled


OURS = {"python": "3.12.1", "torch": "2.7"}
PLAIN = {"sees": True, "temporary": "", "gpus": {}, "cards": []}
ANSWERS = (
    {"host": "n2", "address": "10.0.0.2", **PLAIN, "versions": {"python": "3.12.1"}},
    {"host": "n1", "address": "10.0.0.1", **PLAIN, "versions": OURS, "sees": False},
)
NODES = "\n".join(["loading modules", *map(json.dumps, ANSWERS), "{cut"])


def test_several_nodes_are_asked_at_once_and_each_finding_names_its_node() -> None:
    command = doctor.node_command(spec_of(setup=["module load x"]), Path("/shared/f"), 4)
    assert {"--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=0"} <= set(command)
    assert "set -e" in command[-1] and "module load x" in command[-1]
    answers, others = doctor.read_answers(NODES)
    assert [answer["host"] for answer in answers] == ["n1", "n2"] and others == ["loading modules", "{cut"]
    findings = [one for answer in answers for one in doctor.node_findings(spec_of(), "/shared", answer, OURS, True)]
    bad = {one.name: one.found for one in findings if not one.ok}
    assert bad == {"shared folder: n1": "/shared", "versions: n2": "torch None instead of 2.7"}
    assert len({one.name for one in findings}) == len(findings)


def test_nodes_that_do_not_answer_are_counted_with_what_srun_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = Programs(tmp_path / "bin", monkeypatch)
    programs.write("srun", f"echo '{NODES.splitlines()[1]}'; echo 'srun: error: n3: task 1: Exited with 3' >&2; exit 3")
    target = Target("slurm", spec_of(), str(tmp_path / "store"))
    *_, last = doctor._on_nodes(target, spec_of(), 2)
    assert not last.ok and last.found == "1 of 2 answered: srun: error: n3: task 1: Exited with 3"
    programs.write("srun", "exit 1")
    (only,) = doctor._on_nodes(target, spec_of(), 1)
    assert (only.name, only.ok) == ("a node", False)
