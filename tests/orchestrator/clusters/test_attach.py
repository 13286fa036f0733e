"""A Ray cluster that is there already: attached to by address and token, and left as it was found."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.clusters.ray_cluster import ExternalCluster
from orchestrator.clusters.slurm.ray_node import Node, Offer, wait_for
from orchestrator.clusters.versions import versions

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def address(token: Path) -> Iterator[str]:
    node = Node("/tmp", token, "lo")
    try:
        found = node.start(Offer(slots=1), None)
        wait_for(lambda: node.settled(found), 300)
        assert node.listens(found), node.last_words()
        yield found
    finally:
        folder = node.folder
        node.close()
        assert not folder.exists()


def run(tmp_path: Path, address: str, token: Path, *words: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "cluster.yaml"
    cloud = {"kind": "ray", "address": address, "token_file": str(token)}
    file.write_text(yaml.safe_dump({"clusters": {"cloud": cloud, "local": {"kind": "local", "workers": 1}}}))
    common = ("--cluster-file", str(file), "--json")
    command = [sys.executable, "-m", "orchestrator.launch", "run", "tiny", *words, *common]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_the_same_graph_runs_there_with_the_same_results(tmp_path: Path, address: str, token: Path) -> None:
    there = run(tmp_path, address, token, "--cluster", "cloud", "--store", str(tmp_path / "there"))
    assert there.returncode == 0, there.stderr
    here = run(tmp_path, address, token, "--cluster", "local", "--workers", "0", "--store", str(tmp_path / "here"))
    digests = [{one["key"]: one["digest"] for one in json.loads(done.stdout)["artifacts"]} for done in (there, here)]
    assert digests[0] == digests[1] and digests[0]


@pytest.mark.long
def test_a_wrong_token_is_refused_in_one_sentence(tmp_path: Path, address: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    there = run(tmp_path, address, wrong, "--cluster", "cloud", "--store", str(tmp_path / "there"))
    assert there.returncode == 3
    assert "does not let us in" in there.stderr and "Traceback" not in there.stderr


def test_a_worker_with_other_versions_gets_no_job() -> None:
    cluster = ExternalCluster("head:1", None)
    assert cluster.version_mismatch(versions()) == ""
    assert "code is 0000" in cluster.version_mismatch({**versions(), "code": "0000"})


@pytest.mark.parametrize(
    ("resources", "slots", "offered"),
    [({"CPU": 8.0}, "auto", 8), ({"CPU": 8.0, "GPU": 2.0}, "auto", 2), ({"CPU": 8.0}, 3, 3), ({"memory": 1.0}, 3, 0)],
)
def test_slots_of_a_foreign_node(resources: dict[str, float], slots: int, offered: int) -> None:
    assert ExternalCluster("head:1", None, slots).offers(resources) == offered  # type: ignore[arg-type]
