"""DD-Ranking itself, the package `ddranking`, scores an exported set: its accuracy of the set is ours.

Its pins (numpy below 2) may contradict ours, so the test makes an environment of its own, which takes torch from this
one. Where the package cannot be had the test skips and says why.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from orchestrator.export import formats
from tests.orchestrator.cifar import FOLDER, write_cifar10
from tests.orchestrator.export.test_formats import ran, source_of

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]

SCORE = """
import runpy, torch, torchvision
torch.set_num_threads(1)
torchvision.datasets.cifar.check_integrity = lambda *_: True  # the images are no CIFAR-10, whose digests it knows
runpy.run_path("score.py", run_name="__main__")
"""
"""DD-Ranking's own code on the exported folder, by the program that lies in it."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has DD-Ranking."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "bin" / "python"
    for words in (["-m", "pip", "install", "--quiet", "ddranking>=0.2,<0.3"], ["-c", "import ddranking.metrics"]):
        done = subprocess.run([python, *words], capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"ddranking cannot be had here: {' '.join(done.stderr.split())[-300:]}")
    return python


def test_the_accuracy_of_dd_ranking_is_ours(python: Path, tmp_path: Path) -> None:
    path = write_cifar10(tmp_path, 10, 20)
    numbers = {"network.width": 128, "dataset.normalise": "cifar10", "distil.iterations": 3}
    numbers |= {"evaluate.epochs": 30, "evaluate.best_of": 3, "evaluate.lr": 0.005}
    arm = {"method": "dm", "ipc_per_stage": 1, "protocol": "dd_ranking", "set": numbers}
    ran(
        tmp_path,
        {"name": "ranked", "dataset": {"name": "cifar10", "path": str(path)}, "networks": 5, "arms": [arm]},
    )
    source, store = source_of(tmp_path, "ranked", "DM (DD-Ranking)")
    out = tmp_path / "out"
    assert formats.write_set(out, "ddranking", source, store).notes == ()
    (out / "dataset").mkdir()
    path.rename(out / "dataset" / FOLDER)
    scored = subprocess.run([python, "-c", SCORE], cwd=out, capture_output=True, text=True, timeout=1500)
    assert scored.returncode == 0, scored.stderr
    theirs = [float(number) for number in re.findall(r"Syn data hard label acc: ([\d.]+)%", scored.stdout)]
    ours = source.protocol.values
    assert len(theirs) == len(ours) == 5
    assert "label_robust_score_mean" in scored.stdout
    deviations = statistics.stdev(theirs) + statistics.stdev(ours)
    difference = abs(statistics.mean(theirs) - statistics.mean(ours))
    print(f"theirs {theirs}, ours {ours}, {torch.__version__}", file=sys.stderr)
    assert difference <= deviations, f"theirs {theirs}, ours {ours}"
