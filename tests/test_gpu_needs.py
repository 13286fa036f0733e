"""What runs on a card needs none of the libraries that only the orchestrator needs, nor pytest's plugins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_house import ROOT

REFUSED = (
    "ray", "submitit", "typer", "rich", "jinja2", "matplotlib", "torchvision", "hypothesis", "jsonschema", "xdist",
    "pytest_timeout",
)  # fmt: skip
BLOCKER = f"""
import sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refuse())
"""


def without_the_orchestrators_libraries(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python program in which importing any of `REFUSED` fails."""
    (folder / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PDD_FIGURES": str(folder / "figures"),
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


PROGRAMS = "tests.gpu.__main__, tests.benchmarks.card.__main__, tests.benchmarks.card.cifar10"
WITHOUT_A_CARD = """
import sys
import pytest, torch
torch.cuda.is_available = lambda: False
sys.exit(pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "tests/gpu"]))
"""


@pytest.mark.slow
def test_the_programs_import_without_them(tmp_path: Path) -> None:
    run = without_the_orchestrators_libraries(tmp_path, "-c", f"import {PROGRAMS}")
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_the_tests_are_collected_without_them_and_skip_where_there_is_no_card(tmp_path: Path) -> None:
    run = without_the_orchestrators_libraries(tmp_path, "-c", WITHOUT_A_CARD)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" not in run.stdout and "skipped" in run.stdout and "needs a CUDA device" in run.stdout


def test_a_refused_library_is_refused_here(tmp_path: Path) -> None:
    run = without_the_orchestrators_libraries(tmp_path, "-c", "import orchestrator.cli.app")
    assert "ModuleNotFoundError" in run.stderr
