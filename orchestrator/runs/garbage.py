"""Looking after a store: is every byte what its manifest says, and what does nobody refer to any more?

An artifact is in use if a run's journal names it, if it is an ancestor of one that is in use, if somebody is computing
it now, or if the user names an experiment that wants it. Whoever wants space therefore deletes the folders of old runs
first; then the artifacts that only these runs used are free. Nothing is removed while a run is going on.

Left out: quarantined artifacts, checkpoints and logs, which a person should look at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from jobs.errors import BadInput
from orchestrator.results.cells import manifest_of
from orchestrator.runs import journal
from orchestrator.runs.status import runs, status
from workers.store.claims import Claims
from workers.store.store import Store


@dataclass(frozen=True)
class Unused:
    """An artifact that nobody refers to, and the bytes it holds."""

    key: str
    size: int


def complaints(store: Store, text: str = "") -> dict[str, list[str]]:
    """What is wrong with each artifact whose key holds `text`, all bytes read; sound ones have no complaint.

    Raises:
        BadInput: there is no such artifact.
    """
    keys = [key for key in store.keys() if text in key]
    if text and not keys:
        raise BadInput("command line", "key", text, "no artifact's key holds this; leave it out to check all")
    return {key: store.verify(key) for key in keys}


def unused(store: Store, wanted: Collection[str] = ()) -> list[Unused]:
    """The artifacts that no run, no claim and none of the `wanted` keys needs."""
    manifests = {key: manifest for key in store.keys() if (manifest := manifest_of(store, key)) is not None}
    waiting = [*wanted, *_named_by_runs(store), *(claim.key for claim in Claims(store.root).all())]
    used: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key in manifests and key not in used:
            waiting += [parent for keys in manifests[key].parents.values() for parent in keys]
        used.add(key)
    return [
        Unused(key, sum(file.size for file in manifest.files.values()))
        for key, manifest in manifests.items()
        if key not in used
    ]


def remove(store: Store, found: Iterable[Unused]) -> None:
    """Remove what was found to be unused.

    Raises:
        BadInput: a run is going on, or waits in a queue; what it needs is not all in its journal yet.
    """
    for run in runs(store):
        if (state := status(store, run).state) in ("running", "queued"):
            raise BadInput(str(store.root), "run", run, f"is {state}: wait for its end, or cancel it, then collect")
    for one in found:
        store.remove(one.key)


def _named_by_runs(store: Store) -> set[str]:
    """Every key in any record of any run."""
    folders = [store.run_folder(run) for run in runs(store)]
    return {record["key"] for folder in folders for record in journal.read(folder / journal.NAME) if "key" in record}
