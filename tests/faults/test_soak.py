"""The soak: run after run is disturbed, each in another way, and none may leave a trace.

`PDD_INJECTIONS=200` does more of them than CI does; `PDD_INJECTION_SEED` begins elsewhere. The table is printed and,
with `PDD_INJECTION_TABLE`, written to a file.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.faults.drill import FAILINGS, Drill
from tests.faults.injections import IN_ONE_PROCESS, ON_RAY, Injection

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

INJECTIONS = int(os.environ.get("PDD_INJECTIONS", "40"))
FIRST_SEED = int(os.environ.get("PDD_INJECTION_SEED", "0"))
RAY_EVERY = 6
"""One injection in so many is into a run on Ray, which takes ten times as long."""


def injections() -> Iterator[tuple[str, Injection]]:
    """All injections in turn, for ever."""
    plain, ray = cycle(IN_ONE_PROCESS.items()), cycle(ON_RAY.items())
    while True:
        yield from islice(plain, RAY_EVERY - 1)
        yield next(ray)


def table(counts: dict[str, Counter[str]]) -> str:
    """The counts in Markdown, a row for each injection."""
    total: Counter[str] = sum(counts.values(), Counter())
    rows = [*counts.items(), ("**all**", total)]
    head = ["injection", "times", *FAILINGS]
    lines = [head, ["---"] * len(head)]
    lines += [[name, str(row["times"]), *(str(row[failing]) for failing in FAILINGS)] for name, row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_no_injection_leaves_a_trace(drill: Drill, capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    stories: list[str] = []
    for seed, (name, inject) in enumerate(islice(injections(), FIRST_SEED, FIRST_SEED + INJECTIONS), FIRST_SEED):
        drill.begin(seed)
        inject(drill)
        where, failings = drill.faults.where, drill.judge()
        counts[name].update({"times": 1, **failings})
        if failings.total():
            stories.append(f"{name} (seed {seed}, {where}): {dict(+failings)}\n{drill.story()}")
    with capsys.disabled():
        print("", table(counts), *stories, sep="\n")
    if path := os.environ.get("PDD_INJECTION_TABLE"):
        Path(path).write_text(table(counts))
    assert not stories
