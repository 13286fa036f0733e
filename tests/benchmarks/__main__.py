"""The benchmark: `make bench`, or `make bench ONLY=driver`; a table, and with --json a file with the same rows.

A part is a module of this folder with one function, `rows() -> list[Row]`. Figures are CPU time where work is done in
this process, and ratios to a yardstick of the same run, so that neighbours and the machine count as little as can be.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import Row, machine

PARTS = ("driver", "planning", "images", "start", "round_trip", "prices", "limits", "loops", "roofline")


def main() -> None:
    """Run the parts named, or all."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    words = parser.parse_args()
    if unknown := set(words.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    here, rows = machine(), list[Row]()
    for part in words.parts or PARTS:
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"tests.benchmarks.{part}").rows()
        if words.json is not None:  # after each part, so that a run that is stopped leaves something
            document = {"machine": here, "rows": [{**asdict(row), "met": row.met} for row in rows]}
            words.json.write_text(json.dumps(document, indent=2) + "\n")
    Console(width=150).print(table(rows, ", ".join(f"{name} {value}" for name, value in here.items())))


def table(rows: list[Row], title: str) -> Table:
    """The rows for people."""
    shown = Table(title=title, title_justify="left")
    for column in ("part", "what", "CPU s", "wall s", "per", "ratio", "goal", "", "share", "MiB", "error", "note"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        numbers = (row.cpu_seconds, row.wall_seconds)
        times = ["" if number is None else f"{number:.3g}" for number in numbers]
        ratio, goal = ("" if number is None else f"{number:.3g}" for number in (row.ratio, row.goal))
        met = {None: "", True: "met", False: "MISSED"}[row.met]
        extra = ["" if number is None else f"{number:.2g}" for number in (row.share, row.error)]
        memory = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        shown.add_row(row.part, row.name, *times, row.per, ratio, goal, met, extra[0], memory, extra[1], row.note)
    return shown


if __name__ == "__main__":
    main()
