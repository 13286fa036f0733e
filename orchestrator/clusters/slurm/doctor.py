"""The checks of `doctor --cluster slurm`: what `cluster.yaml` says against the live cluster, each with its fix.

The last group runs on a node, by `srun`: whether it sees the shared folder, has the same Python, packages and code,
and can make the folder for Ray's sockets. `python -m orchestrator.clusters.slurm.doctor FOLDER TEMPORARY` is what runs
there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import BadInput
from orchestrator.clusters.config import SlurmClusterSpec, Target
from orchestrator.clusters.finding import Finding
from orchestrator.clusters.slurm import parsers
from orchestrator.clusters.slurm.client import SlurmClient, allocation, outside_a_job
from orchestrator.clusters.slurm.ray_node import address_of, node_folder
from orchestrator.clusters.slurm.sbatch import step
from orchestrator.clusters.versions import CODE, package_versions, versions
from workers.runtime.visible_cards import CUDA, HIP, ROCR, visible_cards
from workers.store.files import replace_file

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
NODE_SECONDS = 120.0
"""How long a node may take to answer: it may have to be waited for."""


def examine(place: Target, nodes: int = 1, client: SlurmClient | None = None) -> list[Finding]:
    """All checks of a SLURM cluster; a job of seconds runs on so many of its nodes.

    Args:
        place: the cluster and the store.
        nodes: how many nodes are looked at, all at once.
        client: how SLURM is asked.
    """
    spec, client = place.cluster, client or SlurmClient()
    assert isinstance(spec, SlurmClusterSpec)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        fix = "run this on a login node of the cluster, or put SLURM's programs on PATH"
        return [Finding("slurm", False, f"not found: {', '.join(missing)}", fix)]
    config = client.config()
    if not config:
        return [Finding("slurm", False, "the controller does not answer", "ask again, or ask the site")]
    partitions = client.partitions() or {}
    found = [Finding("slurm", True, config.get("SLURM_VERSION", "version unknown"))]
    if spec.mode == "allocation":
        return [*found, *_on_nodes(place, spec, nodes)]
    found += [_accounting(config), *partition_findings(spec, partitions), _preemption(spec, config, partitions)]
    found += _gpus(spec, config)
    return [*found, *_on_nodes(place, spec, nodes)]


def _accounting(config: Mapping[str, str]) -> Finding:
    kind = config.get("AccountingStorageType", "")
    has = kind.endswith("slurmdbd")
    return Finding("accounting", True, "slurmdbd" if has else "none: `status` will not know queue times")


Partitions = Mapping[str, Mapping[str, str]]
"""What SLURM says of its partitions, by name."""


def partition_findings(spec: SlurmClusterSpec, partitions: Partitions, must_be_up: bool = True) -> list[Finding]:
    """Whether the partitions of workers and head are there, are up and allow the walltime.

    Args:
        spec: the cluster; where it names several partitions, SLURM takes one of them.
        partitions: what SLURM says of all partitions; nothing, if it is silent.
        must_be_up: whether one that is down is a fault.
    """
    asked = {"workers": (spec.partition, spec.minutes)}
    if spec.mode == "elastic":
        asked["head"] = (spec.head.partition or spec.partition, spec.head.minutes or spec.minutes)
    findings = []
    for role, (wanted, minutes) in asked.items():
        names = _names(wanted, partitions)
        each = [_partition_finding(role, name, minutes, partitions, must_be_up) for name in names if partitions]
        default = Finding(f"partition of {role}", True, wanted or "the site's default")
        findings.append(next((finding for finding in each if finding.ok), each[0] if each else default))
    return findings


def _names(wanted: str | None, partitions: Partitions) -> list[str]:
    """The partitions of a list with commas, or the site's default."""
    default = [name for name, fields in partitions.items() if fields.get("Default") == "YES"]
    return wanted.split(",") if wanted is not None else default


def may_be_cancelled(spec: SlurmClusterSpec, config: Mapping[str, str], partitions: Partitions) -> bool:
    """Whether preemption would cancel the job that drives the run, and not put it back into the queue."""
    if config.get("PreemptType", "preempt/none") == "preempt/none":
        return False
    wanted = (spec.head.partition if spec.mode == "elastic" else None) or spec.partition
    general = config.get("PreemptMode", "OFF")
    modes = [partitions.get(name, {}).get("PreemptMode", general) for name in _names(wanted, partitions)]
    by_qos = [general] if config["PreemptType"] == "preempt/qos" else []
    return any("CANCEL" in mode for mode in [*modes, *by_qos])


def _preemption(spec: SlurmClusterSpec, config: Mapping[str, str], partitions: Partitions) -> Finding:
    if not may_be_cancelled(spec, config, partitions):
        return Finding("preemption", True, "none, or jobs come back by themselves")
    found = (
        "WARNING: PreemptMode=CANCEL ends a preempted job for good: work since its last checkpoint is lost; "
        "a second head job waits in the queue and takes the run over, workers are replaced"
    )
    return Finding("preemption", True, found)


def _partition_finding(role: str, name: str, minutes: int, partitions: Partitions, must_be_up: bool) -> Finding:
    label, fields = f"partition of {role}", partitions.get(name)
    if fields is None:
        return Finding(label, False, f"there is no partition {name}", f"take one of {', '.join(sorted(partitions))}")
    if must_be_up and fields.get("State", "UP") != "UP":
        return Finding(label, False, f"{name} is {fields['State']}", "take another one, or wait for the site")
    limit = parsers.minutes_of(fields.get("MaxTime", ""))
    if limit is not None and minutes > limit:
        field = "head.minutes (or minutes)" if role == "head" else "minutes"
        found = f"{name} allows {limit:.0f} minutes and {minutes} are asked for"
        return Finding(label, False, found, f"set {field} to {limit:.0f} or less, or name another partition")
    return Finding(label, True, f"{name}, {minutes} of {f'{limit:.0f}' if limit else 'any number of'} minutes")


def _gpus(spec: SlurmClusterSpec, config: Mapping[str, str]) -> Iterator[Finding]:
    if spec.gpu_count and "gpu" not in config.get("GresTypes", ""):
        fix = "set gpus to 0, or ask the site for GresTypes=gpu"
        yield Finding("GPUs", False, f"{spec.gpu_count} a worker, but SLURM offers none", fix)
    elif spec.gpu_count:
        yield Finding("GPUs", True, f"{spec.gres or spec.gpus} a worker")


def _on_nodes(place: Target, spec: SlurmClusterSpec, nodes: int) -> list[Finding]:
    """What nodes say of themselves."""
    root = Path(spec.shared_folder or place.store).expanduser().resolve()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".pdd-doctor-") as folder:
            replace_file(Path(folder) / "mark", "login")
            answers, errors = _ask_nodes(node_command(spec, Path(folder), nodes))
    except OSError as error:
        return [Finding("shared folder", False, f"{root}: {error.strerror}", "name a folder you can write to")]
    ours = {**versions(), **package_versions()}
    findings = [finding for answer in answers for finding in node_findings(spec, str(root), answer, ours, nodes > 1)]
    if len(answers) < nodes:
        fix = "fix what it says, or leave the node out: `exclude` under `sbatch`; if no node was free, ask again later"
        label = "a node" if nodes == 1 else "nodes"
        findings.append(Finding(label, False, f"{len(answers)} of {nodes} answered: {errors}", fix))
    return findings


def node_command(spec: SlurmClusterSpec, folder: Path, nodes: int = 1) -> list[str]:
    """The `srun` that asks so many nodes; `folder` is the shared one, in which a mark lies."""
    options: dict[str, object] = {
        "partition": spec.partition,
        "account": spec.account,
        "qos": spec.qos,
        "constraint": spec.constraint,
        "mem": spec.memory,
        "time": 5,
        "job-name": "pdd-doctor",
    }
    if spec.mode == "allocation":
        options = {"jobid": allocation(), "overlap": True}
    words = ("orchestrator.clusters.slurm.doctor", str(folder), spec.temporary_folder, spec.interface or "")
    return step(spec, nodes, options, CODE, words)


def _ask_nodes(command: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The answers of the nodes, in order of their names, and what went wrong."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=NODE_SECONDS, env=outside_a_job(os.environ)
        )
    except subprocess.TimeoutExpired:
        return [], f"none in {NODE_SECONDS:.0f} s"
    answers, others = read_answers(done.stdout)
    errors = [line for line in [*others, *done.stderr.splitlines()] if line.strip()]
    return answers, " ".join(errors[-4:]) or "no answer"


def read_answers(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The answers of nodes among what `srun` prints, by host, and the other lines."""
    answers, others = [], []
    for line in text.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and "host" in answer:
            answers.append(answer)
        else:
            others.append(line)
    return sorted(answers, key=lambda answer: str(answer["host"])), others


def node_findings(
    spec: SlurmClusterSpec, root: str, answer: Mapping[str, Any], ours: Mapping[str, str], named: bool = False
) -> list[Finding]:
    """What a node's answer means.

    Args:
        spec: the cluster.
        root: the shared folder, for people.
        answer: of `node_answer`.
        ours: the versions on the login node.
        named: whether each finding names the node, because there are several.
    """
    theirs = answer["versions"]
    differing = [
        f"{name} {theirs.get(name)} instead of {ours[name]}" for name in ours if theirs.get(name) != ours[name]
    ]
    findings = [
        Finding("a node", True, f"{answer['host']} at {answer['address']}"),
        Finding("shared folder", answer["sees"], root, "set shared_folder to one that all nodes see and may write to"),
        Finding(
            "versions on a node",
            not differing,
            ", ".join(differing) or "as here",
            "use one environment for login and nodes: python and setup in cluster.yaml",
        ),
        Finding(
            "temporary folder on a node",
            not answer["temporary"],
            answer["temporary"] or spec.temporary_folder,
            "set temporary_folder to a short local folder such as /tmp",
        ),
        _node_gpus(spec, answer),
    ]
    if not named:
        return findings
    return [
        replace(finding, name=f"{finding.name.removesuffix(' on a node')}: {answer['host']}") for finding in findings
    ]


def _node_gpus(spec: SlurmClusterSpec, answer: Mapping[str, Any]) -> Finding:
    try:
        seen = parsers.visible_gpus(answer["gpus"], spec.gpu_count)
    except ValueError as error:
        return Finding("GPUs on a node", False, f"the environment says {answer['gpus'] or 'nothing'}", str(error))
    cards = ", ".join(answer["cards"]) or ", ".join(seen)
    return Finding("GPUs on a node", True, cards or "none, none asked for")


def node_answer(folder: Path, temporary: str, interface: str | None) -> dict[str, Any]:
    """What this node says of itself."""
    sees, trouble, address = False, "", ""
    with suppress(OSError):
        sees = (folder / "mark").read_text() == "login"
        replace_file(folder / "answer", "node")
    try:
        node_folder(temporary).rmdir()
        address = address_of(interface)
    except (BadInput, OSError) as error:
        trouble = str(error)
    return {
        "host": os.uname().nodename,
        "address": address,
        "sees": sees,
        "temporary": trouble,
        "versions": {**versions(), **package_versions()},
        "gpus": {name: os.environ[name] for name in (CUDA, ROCR, HIP) if name in os.environ},
        "cards": [str(card) for card in visible_cards(os.environ)],
    }


if __name__ == "__main__":
    print(json.dumps(node_answer(Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None)))
