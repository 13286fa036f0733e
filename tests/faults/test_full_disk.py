"""A disk that fills up, or turns read-only, at each write of a run: nothing half, a sentence, and right afterwards.

The run is as small as a run gets. CI takes every so many of its writes; `PDD_EVERY_WRITE=1` takes all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.drill import Drill
from tests.faults.write_faults import Action
from workers.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

STEP = int(os.environ.get("PDD_EVERY_WRITE", "19"))
TINIEST = Path(__file__).with_name("tiniest.yaml")
SENTENCES = {errno.ENOSPC: "No space left on device", errno.EROFS: "Read-only file system", errno.EIO: "Input/output"}


@pytest.fixture(scope="module")
def tiniest(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Drill]:
    drill = Drill.open(tmp_path_factory.mktemp("tiniest"), library, TINIEST)
    yield drill
    drill.server.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_at_each_write_nothing_is_half_and_the_next_run_is_right(
    tiniest: Drill, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    points = range(1 + number % STEP, tiniest.points + 1, STEP)
    bad: list[str] = []
    exits: set[int | None] = set()
    for point in points:
        tiniest.begin(point)
        tiniest.faults.plan(Action.ERROR_ON, point, number)
        ended = tiniest.run()
        struck, where = tiniest.faults.struck, tiniest.faults.where
        exits.add(ended.exit)
        half = [key for key in Store(tiniest.store).keys() if Store(tiniest.store).verify(key)]
        said = SENTENCES[number] in ended.err + ended.out
        plain = "Traceback" not in ended.err and "Logging error" not in ended.err
        right = ended.exit in (2, 3) and said if struck else ended.exit == 0
        failings = tiniest.judge()
        if half or not plain or not right or failings.total():
            bad.append(
                f"{errno.errorcode[number]} at {point}, {where}: half {half}, {dict(+failings)}\n{tiniest.story()}"
            )
    with capsys.disabled():
        words = f"{errno.errorcode[number]} at {len(points)} of {tiniest.points} writes"
        print(f"\n{words}: {len(bad)} wrong; exit codes {sorted(map(str, exits))}")
    assert not bad, "\n".join(bad[:5])
