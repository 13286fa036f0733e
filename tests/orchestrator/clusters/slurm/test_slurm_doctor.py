"""What the doctor says of a SLURM cluster, from what the cluster says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.clusters.config import SlurmClusterSpec
from orchestrator.clusters.slurm import doctor

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
