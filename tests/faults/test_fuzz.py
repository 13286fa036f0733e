"""Mutated input ends in exit 0 or 2, in seconds, in a bounded memory, and never in a traceback.

`PDD_MUTATIONS=10` does ten times as many as CI does: then 2,000 YAML files and 500 data sets; `PDD_MUTATION_SEED`
begins elsewhere. Commands run in forked processes; one in a hundred is typed in a process of its own.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.faults.mutations import WRITERS, damage, mutated_yaml
from tests.faults.server import REPOSITORY, Ended, Server
from tests.orchestrator.shell import shell_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

FACTOR = int(os.environ.get("PDD_MUTATIONS", "1"))
FIRST = int(os.environ.get("PDD_MUTATION_SEED", "0"))
YAML_FILES, DATA_SETS = 200 * FACTOR, 50 * FACTOR
SECONDS, MIB = 10.0, 1024
TINIEST = Path(__file__).with_name("tiniest.yaml")

COMMANDS = {
    "jobs/experiments": ("plan", "{}", "--json"),
    "jobs/tables": ("plan", "{}", "--json", "--scale", "tiny", "--dataset", "digits"),
    "jobs/sweeps": ("sweep", "{}", "--json", "--workers", "0", "--scale", "tiny", "--dataset", "digits"),
    "jobs/recipes": ("plan", "arm.yaml", "--json"),
    "cluster.yaml": ("plan", str(TINIEST), "--cluster-file", "{}", "--json"),
}
"""By the kind of a YAML file, the command that reads it; a sweep is refused after it was read, as it needs Ray."""
AN_ARM = "name: fuzzed\ndataset: digits\nscale: tiny\narms:\n  - {method: ./fuzzed.yaml, ipc_per_stage: 1}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    server = Server(folder, {}, ("plan", str(TINIEST), "--json", "--store", str(folder / "warm")))
    yield server
    server.close()


def complaint(ended: Ended, allowed: tuple[int, ...] = (0, 2)) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    if ended.exit is None:
        return "hangs"
    if ended.exit not in allowed or "Traceback" in ended.err:
        return f"exit {ended.exit}: {ended.err[-1500:]}"
    if ended.cpu > SECONDS:
        return f"takes {ended.cpu:.0f} s"
    return f"takes {ended.mib} MiB" if ended.mib > MIB else ""


def yaml_sources() -> list[tuple[str, Path]]:
    """Every YAML file of the project that a user may write himself, with its kind."""
    shipped = [(kind, path) for kind in COMMANDS for path in sorted((REPOSITORY / kind).glob("*.yaml"))]
    small = [("jobs/experiments", path) for path in (TINIEST, TINIEST.with_name("small.yaml"))]
    return [*shipped, ("cluster.yaml", REPOSITORY / "cluster.yaml"), *small]


def mutated_files() -> Iterator[tuple[int, tuple[str, ...], bytes]]:
    """Seed, command and content of mutated YAML files, for ever; each kind as often as the others."""
    by_kind: dict[str, list[Path]] = {}
    for kind, path in yaml_sources():
        by_kind.setdefault(kind, []).append(path)
    seed = FIRST
    while True:
        chance = random.Random(seed)
        kind = sorted(by_kind)[seed % len(by_kind)]
        text = chance.choice(by_kind[kind]).read_text()
        if kind == "jobs/experiments" and chance.random() < 0.7:
            text = text.replace("cifar10", "digits").replace("scale: paper", "scale: tiny")
        yield seed, COMMANDS[kind], mutated_yaml(text, chance)
        seed += 1


def test_mutated_yaml_is_read_or_refused(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad: list[str] = []
    exits: Counter[int | None] = Counter()
    slowest = largest = 0.0
    (tmp_path / "arm.yaml").write_text(AN_ARM)
    path = tmp_path / "fuzzed.yaml"
    with shell_in(tmp_path) as shell:
        for seed, command, content in islice(mutated_files(), YAML_FILES):
            path.write_bytes(content)
            words = [word.format("fuzzed.yaml") for word in command]
            if seed % 100 == 99:
                typed = shell.run(*words)
                ended = Ended(typed.exit, typed.out, typed.err, 0, typed.seconds)
            else:
                ended = server.run(*words, "--store", str(tmp_path / "store"), seconds=60.0, cwd=tmp_path)
            exits[ended.exit] += 1
            slowest, largest = max(slowest, ended.cpu), max(largest, ended.mib)
            if wrong := complaint(ended):
                bad.append(f"seed {seed}, {' '.join(words)}: {wrong}\n{content[:3000]!r}")
    with capsys.disabled():
        counts = ", ".join(f"{count} with {code}" for code, count in sorted(exits.items(), key=str))
        print(
            f"\n{YAML_FILES} mutated YAML files: {counts}; at most {slowest:.1f} s, {largest:.0f} MiB; {len(bad)} wrong"
        )
    assert not bad, "\n\n".join(bad[:10])


def test_damaged_data_sets_are_read_or_refused(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad: list[str] = []
    exits: Counter[tuple[int | None, int | None]] = Counter()
    slowest = largest = 0.0
    sound = {name: tmp_path / f"sound {number}" for number, name in enumerate(WRITERS)}
    for name, folder in sound.items():
        folder.mkdir()
        WRITERS[name](folder)
        assert server.run("decode", str(folder)).exit == 0, name
    for seed in range(FIRST, FIRST + DATA_SETS):
        chance = random.Random(seed)
        name, folder = list(WRITERS)[seed % len(WRITERS)], tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound[name], folder)
        damage(folder, chance)
        words = ("plan", str(TINIEST), "--json", "--dataset", str(folder), "--store", str(tmp_path / "store"))
        planned, decoded = server.run(*words, seconds=60.0), server.run("decode", str(folder), seconds=60.0)
        exits[planned.exit, decoded.exit] += 1
        for how, ended in (("plan", planned), ("decode", decoded)):
            slowest, largest = max(slowest, ended.cpu), max(largest, ended.mib)
            if wrong := complaint(ended):
                bad.append(f"seed {seed}, {how} of {name}: {wrong}")
    with capsys.disabled():
        counts = ", ".join(f"{count} with {code}" for code, count in sorted(exits.items(), key=str))
        print(f"\n{DATA_SETS} damaged data sets, planned and decoded: {counts}")
        print(f"at most {slowest:.1f} s, {largest:.0f} MiB; {len(bad)} wrong")
    assert not bad, "\n\n".join(bad[:10])
