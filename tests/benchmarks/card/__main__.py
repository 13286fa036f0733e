"""The benchmark on a card: `python -m tests.benchmarks.card [part ...]`; each row is printed as soon as it is there.

With `PDD_FIGURES=FILE` the rows are added to that file, too. A part that fails says so in a row, and the others go on.
"""

from __future__ import annotations

import sys
import traceback

import torch

from tests.benchmarks.card import limits, loops
from tests.benchmarks.measure import Row, record
from workers.runtime.process import device_of_choice, prepare_process

PARTS = {"limits": limits.rows, **loops.PARTS}


def main(chosen: list[str], device: torch.device) -> None:
    """Run the parts named, or all."""
    prepare_process()
    for name in chosen or PARTS:
        try:
            for row in PARTS[name](device):
                record(row)
                print(line(row), flush=True)
        except Exception as error:
            traceback.print_exc()
            record(Row(part="card", name=name, cpu_seconds=None, note=f"failed: {type(error).__name__}: {error}"[:300]))


def line(row: Row) -> str:
    """A row for people."""
    numbers = {
        f"s/{row.per}": row.wall_seconds,
        "kernels": row.kernels,
        "MiB": row.peak_mib,
        "share": row.share,
        "ratio": row.ratio,
        "error": row.error,
    }
    shown = "  ".join(f"{value:.4g} {name}" for name, value in numbers.items() if value is not None)
    return f"{row.part}: {row.name}: {shown}  {row.note}"


if __name__ == "__main__":
    if torch.cuda.is_available():
        main(sys.argv[1:], device_of_choice())
    else:
        print("no CUDA device: nothing was measured")
