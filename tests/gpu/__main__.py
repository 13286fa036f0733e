"""`make gpu`: the tests of a card, then the benchmark on it, in one command and one JSON.

The files of tests run side by side, each in a process of its own: one that spoils its process spoils no other.
Needed are torch, numpy, pyarrow, pydantic, PyYAML, Pillow, scikit-learn and pytest, and neither Ray nor typer. Figures
are kept line by line while they come, so a command that is stopped has lost nothing; the JSON is made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.measure import machine

SECONDS, TESTS = 460.0, 0.55
"""After which all is stopped, and the share of the tests in it."""
FOLDER = Path(__file__).parent


def main() -> int:
    """Run both; 0 if all tests passed and the benchmark came to its end."""
    parser = argparse.ArgumentParser(prog="make gpu")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="a file for all figures")
    parser.add_argument("--only", choices=("tests", "benchmark"), help="one of the two")
    parser.add_argument("--parts", nargs="+", default=[], help="of the benchmark, instead of all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which all is stopped")
    words = parser.parse_args()
    until = time.monotonic() + words.seconds
    lines = words.json.with_suffix(".lines")
    lines.unlink(missing_ok=True)
    python = [sys.executable, "-u", "-m"]
    pytest = [*python, "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "--durations=3"]
    steps = {
        "tests": ({file.stem: [*pytest, str(file)] for file in sorted(FOLDER.glob("test_*.py"))}, TESTS),
        "benchmark": ({"benchmark": [*python, "tests.benchmarks.card", *words.parts]}, 1.0),
    }
    ended: dict[str, Any] = {}
    for name, (commands, share) in steps.items():
        if words.only in (None, name):
            ended |= run(commands, share * (until - time.monotonic()), lines)
            words.json.write_text(json.dumps(document(ended, lines), indent=2) + "\n", encoding="utf-8")
    lines.unlink(missing_ok=True)
    print(json.dumps(ended))
    return max(end["exit"] for end in ended.values())


def run(commands: dict[str, list[str]], seconds: float, lines: Path) -> dict[str, Any]:
    """Run commands side by side; by name the exit code of each, and how long it took.

    What they say is shown as it comes if there is one, else command after command at their ends.

    Args:
        commands: of Python programs, by name.
        seconds: after which they are ended, with exit code 124.
        lines: the file to which they add their figures.
    """
    environment = {**os.environ, "PDD_FIGURES": str(lines), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with ThreadPoolExecutor(len(commands)) as threads:
        alone = len(commands) == 1
        waiting = {
            name: threads.submit(_ended, command, seconds, environment, alone) for name, command in commands.items()
        }
        return {name: each.result() for name, each in waiting.items()}


def _ended(command: list[str], seconds: float, environment: dict[str, str], alone: bool) -> dict[str, Any]:
    """Run one command to its end, and say then what it said unless it could speak all along."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        outputs: dict[str, Any] = {} if alone else {"stdout": said, "stderr": subprocess.STDOUT}
        try:
            code = subprocess.run(command, env=environment, timeout=seconds, **outputs).returncode
        except subprocess.TimeoutExpired:
            code = 124
        said.seek(0)
        print(said.read().decode(errors="replace"), f"{' '.join(command[3:])}: exit {code}", flush=True)
    return {"exit": code, "seconds": round(time.monotonic() - began, 1)}


def document(ended: dict[str, Any], lines: Path) -> dict[str, Any]:
    """What the JSON holds: the machine, how the commands ended, and the figures so far."""
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []
    return {"machine": machine(), "card": card(), "ended": ended, "rows": rows}


def card() -> dict[str, Any] | None:
    """The card and the libraries on it; None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


if __name__ == "__main__":
    sys.exit(main())
