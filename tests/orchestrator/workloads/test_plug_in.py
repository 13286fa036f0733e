"""A base method that lives outside of the package: one module, one recipe file, and the command line does the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.shell import Shell, shell_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODULE = '''
"""Pulls the mean image of each class towards the mean of the real ones."""

import torch

from jobs.specs import Frozen, Positive
from workers.methods.base import Method


class ToySettings(Frozen):
    """Its only number."""

    pull: Positive


class ToyMatching(Method):
    """Mean matching in pixels; it looks at the union, so that earlier images count."""

    Settings = ToySettings

    def iterate(self, learnable, iteration, generator):
        """One image step."""
        union = learnable.union.requires_grad_()
        loss = torch.zeros(())
        for label in range(self.stage.classes):
            real = self.stage.train.images[self.stage.train.labels == label].mean(0)
            loss = loss + self.settings.pull * (union[learnable.labels == label].mean(0) - real).square().sum()
        (gradient,) = torch.autograd.grad(loss, union)
        learnable.step(gradient, iteration)
        return float(loss.detach())
'''
RECIPE = """
method: toys.means:ToyMatching
base: random
layers:
  - when: {}
    set:
      transition: {epochs: [2, mine], lr: [0.01, mine]}
      distil:
        iterations: [5, mine]
        image: {lr: [0.5, mine]}
        choice: {by: [last, mine]}
        settings: {pull: [2.0, mine]}
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a folder with the toy's recipe; its module lies in another one."""
    module = tmp_path / "elsewhere" / "toys" / "means.py"
    module.parent.mkdir(parents=True)
    module.write_text(MODULE)
    (tmp_path / "shell").mkdir()
    (tmp_path / "shell" / "toy.yaml").write_text(RECIPE)
    arm = {"method": "./toy.yaml", "stages": 2, "ipc_per_stage": 1}
    experiment = {"name": "mine", "dataset": "digits", "scale": "tiny", "networks": 1, "arms": [arm]}
    (tmp_path / "shell" / "mine.yaml").write_text(yaml.safe_dump(experiment))
    with shell_in(tmp_path / "shell") as shell:
        yield shell


def test_a_toy_method_from_outside_runs_under_progressive_distillation(shell: Shell) -> None:
    shell.path.append(shell.folder.parent / "elsewhere")
    ended = shell.run("run", "mine.yaml", "--workers", "1", "--json")
    assert ended.exit == 0, ended.err
    document = ended.document
    assert (document["failures"], document["jobs"]["failed"]) == ([], 0)
    rows = [(one["method"], one["base_method"], one["stage"], one["n"]) for one in document["results"]]
    assert rows == [("PDD+TOY", "toy", 1, 1), ("PDD+TOY", "toy", 2, 1)]
    stages = [manifest for manifest in shell.manifests().values() if manifest.kind == "distil"]
    assert {manifest.spec["method"] for manifest in stages} == {"toys.means:ToyMatching"}
    assert all(manifest.extra["loss"] < manifest.extra["first_loss"] for manifest in stages)

    explained = shell.run("explain", "mine.yaml", "--recipe", "--key", "distil", "--json").document
    recipe = {path: (value, source) for path, value, source in explained["jobs"][0]["recipe"]}
    assert recipe["distil.settings.pull"] == ("2.0", "mine")
    assert recipe["network.width"] == ("8", "as mtt")


def test_a_toy_method_whose_module_cannot_be_imported_is_refused(shell: Shell) -> None:
    ended = shell.run("run", "mine.yaml")
    assert ended.exit == 2
    assert "method is 'toys.means:ToyMatching': must be one of cafe," in ended.err
    assert "or package.module:Class" in ended.err
