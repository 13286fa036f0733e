"""Two drivers of the same experiment on one store, from random offsets: each key is computed once.

`PDD_ROUNDS=50` does more rounds than CI does. In two rounds of five one of the two is killed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress

import pytest

from orchestrator.runs import journal
from tests.faults.drill import Drill

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("PDD_ROUNDS", "10"))
KILLED_OF_FIVE = 2


def made(drill: Drill) -> Counter[str]:
    """How often each key was made, by the journals of all runs."""
    records = [record for path in drill.store.glob(f"runs/*/{journal.NAME}") for record in journal.read(path)]
    return Counter(record["key"] for record in records if record["event"] == "job_done")


def dropped(drill: Drill) -> list[str]:
    """The lines of all logs that tell of an artifact that was made in vain."""
    lines = [line for path in drill.store.glob("runs/*/logs/*.log") for line in path.read_text().splitlines()]
    return [line for line in lines if "another writer was first" in line]


def test_each_key_is_computed_once_and_the_digests_are_those_of_one_driver(
    drill: Drill, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = drill.run().seconds
    killed = 0
    for number in range(ROUNDS):
        drill.begin(number)
        chance = random.Random(number)
        pids = [drill.start()]
        time.sleep(chance.uniform(0, alone))
        pids.append(drill.start())
        if number % 5 < KILLED_OF_FIVE:
            time.sleep(chance.uniform(0, alone))
            with suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
        ended = [drill.wait(pid) for pid in pids]
        killed += sum(run.exit == -signal.SIGKILL for run in ended)
        assert {run.exit for run in ended} <= {0, -signal.SIGKILL}, [run.err for run in ended]
        last = drill.run()
        assert last.exit == 0, last.err
        assert drill.found() == drill.digests
        assert set(made(drill).values()) == {1} and dropped(drill) == []
        assert drill.leftovers() == []
    with capsys.disabled():
        print(f"\n{ROUNDS} rounds of two drivers, one of them killed in {killed}: each key once, equal digests")
