"""The files of docs/extending.md, written as they stand there and run: the page works as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.shell import Shell, shell_in
from tests.test_house import ROOT

PAGE = ROOT / "docs" / "extending.md"
MLP = "mine.nets:Mlp"


def files_of(page: str) -> dict[str, str]:
    """The code blocks that stand below the name of a file, by that name."""
    return dict(re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with shell_in(tmp_path_factory.mktemp("user")) as shell:
        for name, text in files_of(PAGE.read_text(encoding="utf-8")).items():
            (shell.folder / name).parent.mkdir(exist_ok=True)
            (shell.folder / name).write_text(text)
        shell.path.append(shell.folder)
        yield shell


def test_the_page_has_a_file_for_each_thing_that_needs_none_of_ours() -> None:
    assert {"mine/nets.py", "mine/stripes.py", "mine/means.py", "mytable.yaml"} <= files_of(PAGE.read_text()).keys()


@pytest.mark.slow
def test_an_architecture_and_a_data_set_of_ones_own_run(shell: Shell) -> None:
    subprocess.run([sys.executable, "make_stripes.py"], cwd=shell.folder, check=True)
    ended = shell.run("run", "stripes.yaml", "--workers", "0", "--json")
    assert ended.exit == 0, ended.err
    rows = {(row["dataset"], row["architecture"]) for row in ended.document["results"]}
    assert rows == {("stripes", "convnet"), ("stripes", "mine.nets:Mlp")}


@pytest.mark.slow
def test_a_base_method_of_ones_own_runs_and_its_loss_falls(shell: Shell) -> None:
    ended = shell.run("run", "matching.yaml", "--workers", "0", "--json")
    assert ended.exit == 0, ended.err
    assert {row["method"] for row in ended.document["results"]} == {"MEANS", "PDD+MEANS"}
    stages = [manifest for manifest in shell.manifests().values() if "means" in manifest.spec.get("method", "")]
    assert len(stages) == 2 and all(stage.extra["loss"] < stage.extra["first_loss"] for stage in stages)


@pytest.mark.slow
def test_a_data_set_an_architecture_and_a_method_of_ones_own_run_in_one_experiment(shell: Shell) -> None:
    subprocess.run([sys.executable, "make_stripes.py"], cwd=shell.folder, check=True)
    mine = {
        "name": "all-mine",
        "dataset": {"name": "mine.stripes:STRIPES", "path": "."},
        "scale": "tiny",
        "networks": 1,
        "architectures": ["convnet", "mine.nets:Mlp"],
        "arms": [{"method": "./means.yaml", "stages": 2, "ipc_per_stage": 1, "set": {"network.architecture": MLP}}],
    }
    (shell.folder / "all-mine.yaml").write_text(yaml.safe_dump(mine))
    ended = shell.run("run", "all-mine.yaml", "--workers", "0", "--json")
    assert ended.exit == 0, ended.err
    rows = {(row["dataset"], row["architecture"], row["base_method"]) for row in ended.document["results"]}
    assert rows == {("stripes", "convnet", "means"), ("stripes", MLP, "means")}
    networks = [manifest.spec["network"] for manifest in shell.manifests().values() if manifest.kind == "distil"]
    assert MLP in {network["architecture"] for network in networks}


@pytest.mark.slow
def test_a_table_of_ones_own_is_filled(shell: Shell) -> None:
    ended = shell.run("reproduce", "mytable.yaml", "--scale", "tiny", "--workers", "0", "--json")
    assert ended.exit == 0, ended.err
    assert "My table" in (Path(ended.document["report"]).read_text())
