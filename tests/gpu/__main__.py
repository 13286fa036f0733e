"""`make gpu`: the tests of a card, then the benchmark on it, in one command and one JSON.

Needed are torch, numpy, pyarrow, pydantic, PyYAML, Pillow, scikit-learn and pytest, and neither Ray nor typer. Figures
are kept line by line while they come, so a command that is stopped has lost nothing; the JSON is made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.measure import machine

TESTS_SECONDS, BENCHMARK_SECONDS = 240, 210
"""After which the tests and the benchmark are stopped."""


def main() -> int:
    """Run both; 0 if all tests passed and the benchmark came to its end."""
    parser = argparse.ArgumentParser(prog="make gpu")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="a file for all figures")
    parser.add_argument("--only", choices=("tests", "benchmark"), help="one of the two")
    words = parser.parse_args()
    lines = words.json.with_suffix(".lines")
    lines.unlink(missing_ok=True)
    python = [sys.executable, "-u", "-m"]
    pytest = ["pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "--durations=5", "tests/gpu"]
    commands = {
        "tests": ([*python, *pytest], TESTS_SECONDS),
        "benchmark": ([*python, "tests.benchmarks.card"], BENCHMARK_SECONDS),
    }
    ended: dict[str, Any] = {}
    for name, (command, seconds) in commands.items():
        if words.only in (None, name):
            ended[name] = run(command, seconds, lines)
            words.json.write_text(json.dumps(document(ended, lines), indent=2) + "\n", encoding="utf-8")
    lines.unlink(missing_ok=True)
    print(json.dumps(ended))
    return max(end["exit"] for end in ended.values())


def run(command: list[str], seconds: float, lines: Path) -> dict[str, Any]:
    """Run a command for so many seconds at most; its exit code, and how long it took.

    Args:
        command: of a Python program.
        seconds: after which it is ended, with exit code 124.
        lines: the file to which it adds its figures.
    """
    environment = {**os.environ, "PDD_FIGURES": str(lines), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    began = time.monotonic()
    try:
        code = subprocess.run(command, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        print(f"{' '.join(command)}: stopped after {seconds:.0f} s", flush=True)
        code = 124
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
