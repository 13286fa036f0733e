"""Every base method, alone and under PDD with two stages, through the command line on the bundled digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from jobs.recipe import Setting, methods, resolve
from tests.orchestrator.shell import Ended, shell_in

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

LABELS = {
    "cafe": "CAFE",
    "cafe_dsa": "CAFE+DSA",
    "datm": "DATM",
    "dc": "DC",
    "dd": "DD",
    "dm": "DM",
    "dream": "DREAM",
    "dsa": "DSA",
    "frepo": "FRePo",
    "haba": "HaBa",
    "idc": "IDC",
    "mtt": "MTT",
    "tesla": "TESLA",
    "rat_bptt": "RaT-BPTT",
    "rfad": "RFAD",
}


def arms(method: str) -> list[dict[str, Any]]:
    return [{"method": method, "ipc_per_stage": 2}, {"method": method, "stages": 2, "ipc_per_stage": 1}]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """One run of all of them, so that Ray starts once."""
    experiment = {
        "name": "methods",
        "dataset": "digits",
        "scale": "tiny",
        "networks": 2,
        "distil_at_once": 2,
        "arms": [arm for method in LABELS for arm in arms(method)],
    }
    with shell_in(tmp_path_factory.mktemp("methods")) as shell:
        file = shell.folder / "methods.yaml"
        file.write_text(yaml.safe_dump(experiment))
        yield shell.run("run", str(file), "--workers", "2", "--json")


@pytest.mark.parametrize("method", LABELS)
def test_a_base_method_fills_its_rows_alone_and_with_two_stages(method: str, ran: Ended) -> None:
    found = [one for one in ran.document["results"] if one["base_method"] == method]
    rows = [(one["method"], one["stage"], one["ipc_total"], one["n"]) for one in found]
    name = LABELS[method]
    assert rows == [(name, 1, 2, 2), (f"PDD+{name}", 1, 1, 2), (f"PDD+{name}", 2, 2, 2)], ran.err
    assert all(0 <= one["mean"] <= 100 for one in found)


def test_nothing_failed(ran: Ended) -> None:
    document = ran.document
    assert (ran.exit, document["failures"]) == (0, []), ran.err
    assert (document["jobs"]["failed"], document["jobs"]["skipped"]) == (0, 0)


def test_no_method_with_a_distillation_is_left_out() -> None:
    setting = Setting(scale="tiny", dataset="digits", size=8, ipc_per_stage=1)
    assert {one for one in methods() if resolve(one, setting, {}, "test").recipe.distil} == set(LABELS)
