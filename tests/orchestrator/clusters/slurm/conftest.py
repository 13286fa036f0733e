"""One SLURM for all tests that need a real one, and what an undisturbed run makes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.minislurm import MiniSlurm, wait_until, why_not
from tests.orchestrator.slurm_site import Site, digests


@pytest.fixture(scope="session")
def slurm() -> Iterator[MiniSlurm]:
    if reason := why_not():
        pytest.skip(reason)
    with MiniSlurm() as cluster:
        yield cluster


@pytest.fixture
def site(slurm: MiniSlurm) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="pdd-live-", dir="/tmp") as folder:
        made = Site(slurm, Path(folder))
        made.cluster_file()
        yield made
        slurm.run("scancel", "--full", "--user", "root")
        wait_until(lambda: not made.queue(), 120)
        slurm.fix()


@pytest.fixture(scope="session")
def undisturbed(slurm: MiniSlurm) -> dict[str, str]:
    """What the experiment makes on this machine, by key."""
    return _alone(slurm, "LIVE")


@pytest.fixture(scope="session")
def wide(slurm: MiniSlurm) -> dict[str, str]:
    """The same of the experiment with many jobs at once."""
    return _alone(slurm, "WIDE")


def _alone(slurm: MiniSlurm, experiment: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="pdd-live-") as folder:
        here = Site(slurm, Path(folder))
        here.cluster_file()
        return digests(here.pdd("run", experiment, *here.here(), "--workers", "0"))
