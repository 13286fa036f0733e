"""What a command imports before it knows what there is to do: neither torch nor Ray nor matplotlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOUND_DONE = """
import sys
from pathlib import Path
from orchestrator.clusters.config import choose_target
from orchestrator.launch import main
from orchestrator.planning.requests import Request
from orchestrator.runs import driver
from orchestrator.runs.journal import Journal
from orchestrator.workloads import launcher
from orchestrator.workloads.experiments import ExperimentWorkload
from workers.store.store import Audit, Store

class Everything:
    def audit(self, keys):
        return Audit(frozenset(keys), {})

class Idle:
    def start(self):
        raise AssertionError("no worker is needed")
    def close(self, grace_seconds):
        pass

workload = ExperimentWorkload.of(Request(experiments=("quickstart",)))
store = Store.open(sys.argv[1])
options = launcher.LaunchOptions(command="", quiet=True)
target = choose_target(None, None, sys.argv[1], 2)
run = launcher.Run(name="r", store=store, target=target, options=options, cluster=None)
with Journal.open(Path(sys.argv[1]) / "runs/r") as journal, workload.session(run, journal) as session:
    info = driver.RunInfo("r")
    end = driver.run(session.schedule, session.graph, Idle(), journal, Everything(), about=info)
assert end.why.endswith("56 cached"), end.why
"""
PLANNED = """
import sys
from orchestrator.cli.app import app
app(["plan", "--all", "--scale", "paper", "--store", sys.argv[1]], standalone_mode=False)
"""


@pytest.mark.parametrize("program", [FOUND_DONE, PLANNED], ids=["a cached run", "a plan"])
def test_what_is_not_needed_is_not_imported(program: str, tmp_path: Path) -> None:
    slow = "{'torch', 'ray', 'matplotlib', 'sklearn', 'pandas'}"
    text = f"{program}\nbrought = {slow} & sys.modules.keys()\nassert not brought, brought"
    end = subprocess.run([sys.executable, "-c", text, str(tmp_path)], capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr


LEAVES = """
import atexit, sys, threading, time, types
from orchestrator import launch

def main():
    print("the document")
    atexit.register(print, "put away")
    threading.Thread(target=time.sleep, args=(60,)).start()  # what the interpreter's own end would wait for
    sys.exit(130)

launch.main = main
sys.modules["ray"] = types.ModuleType("ray")
launch.program()
"""


def test_a_command_that_used_ray_ends_without_taking_its_library_down() -> None:
    end = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False, timeout=30)
    assert (end.returncode, end.stdout.split("\n")) == (130, ["the document", "put away", ""])
