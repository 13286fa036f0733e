"""Looking after a store: is every byte what its manifest says, and what does nobody refer to any more?

An artifact is in use if a run's journal names it, if it is an ancestor of one that is in use, if somebody is computing
it now, or if the user names an experiment that wants it. Whoever wants space therefore deletes the folders of old runs
first; then the artifacts that only these runs used are free. Nothing is removed while a run is going on, nor while
a journal may not tell all that a run used: one that lacks a line or its end, or that was changed.

Left out: quarantined artifacts, checkpoints and logs, which a person should look at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from jobs.errors import BadInput, Damaged
from orchestrator.runs import journal
from orchestrator.runs.status import RunStatus, runs
from workers.store.claims import Claims
from workers.store.files import is_plain, names_in
from workers.store.manifest import Manifest, outdated
from workers.store.store import Store


@dataclass(frozen=True)
class Unused:
    """An artifact that nobody refers to, and the bytes it holds."""

    key: str
    size: int


@dataclass(frozen=True)
class Verification:
    """What a comparison of all bytes found.

    Attributes:
        damaged: the complaints by key, children before their parents; empty for a sound artifact.
        uncovered: the sound artifacts whose manifests have no digest of their own, since an earlier version wrote
            them: a flipped bit in a number there would not be noticed.
    """

    damaged: dict[str, list[str]]
    uncovered: list[str]


def verify(store: Store, text: str = "") -> Verification:
    """Compare all bytes of the artifacts whose key holds `text` with what their manifests say.

    An artifact that was made from other bytes than its parent has now counts as damaged, and so does what was made
    from it.

    Raises:
        BadInput: there is no such artifact.
    """
    keys = [key for key in store.keys() if text in key]
    if text and not keys:
        raise BadInput("command line", "key", text, "no artifact's key holds this; leave it out to check all")
    damaged = {place: [why] for place, why in store.odd_places().items() if text in place}
    damaged |= {key: _complaints(store, key) for key in keys}
    sound = {key: manifest for key in store.keys() if not damaged.get(key) and (manifest := _peek(store, key))}
    late = {key: [why] for key, why in outdated(sound).items() if key in damaged}
    uncovered = [key for key in keys if not damaged[key] and not store.is_covered(key)]
    return Verification(late | {key: found for key, found in damaged.items() if key not in late}, uncovered)


def unused(store: Store, wanted: Collection[str] = ()) -> list[Unused]:
    """The artifacts that no run, no claim and none of the `wanted` keys needs."""
    manifests = {key: manifest for key in store.keys() if (manifest := _peek(store, key)) is not None}
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


def obstacles(store: Store, status_of: Callable[[Store, str], RunStatus]) -> dict[str, str]:
    """Why nothing may be removed now, by run or artifact: what one of them needs is not known for sure.

    A run that goes on or waits in a queue has not all it needs in its journal yet; a journal that was changed or cut
    short, or is gone, may have named anything; and of an artifact whose manifest cannot be read the parents are not
    known. `status_of` says where a run stands, in its queue as well.
    """
    folder, moves = store.root / "runs", "`verify --quarantine` moves it away, then collect"
    if not folder.is_dir():
        return {"runs": f"{folder} is not there, so nobody knows what runs used: bring it back, or make it anew"}
    by_run = {name: _doubt(store, name, status_of) for name in names_in(folder)}
    odd = {place: f"is no folder ({why}): {moves}" for place, why in store.odd_places().items()}
    unread = {key: f"cannot be read: {moves}" for key in store.keys() if _peek(store, key) is None}
    return {name: why for name, why in by_run.items() if why} | odd | unread


def _doubt(store: Store, name: str, status_of: Callable[[Store, str], RunStatus]) -> str:
    """Why it is not known what a run in `runs/` uses, and what to do; empty if it is."""
    folder = store.root / "runs" / name
    if not folder.is_dir() or not is_plain(name):
        return f"{folder} is no folder of a run: bring the folder back, or remove this"
    remove = f"or remove {folder} if nothing of this run is needed any more"
    if why := journal.unreadable(folder / journal.NAME):
        return f"its {journal.NAME} {why}: repair it, {remove}"
    match status_of(store, name).state:
        case "running" | "queued" as state:
            return f"is {state}: wait for its end, or cancel it, then collect"
        case "dead":
            return f"has no end in its {journal.NAME}, so that more may be missing: run its command again, {remove}"
    return ""


def remove(store: Store, artifacts: Iterable[Unused], status_of: Callable[[Store, str], RunStatus]) -> None:
    """Remove what was found to be unused.

    Raises:
        BadInput: one of the `obstacles`.
    """
    if found := obstacles(store, status_of):
        name, why = next(iter(found.items()))
        kind = "run" if name in names_in(store.root / "runs") else "artifact"
        raise BadInput(str(store.root), kind, name, why)
    for artifact in artifacts:
        store.remove(artifact.key)


def _complaints(store: Store, key: str) -> list[str]:
    """What is wrong with an artifact, or that it cannot be read."""
    try:
        return store.verify(key)
    except OSError as error:
        return [f"cannot be read: {error}"]


def _peek(store: Store, key: str) -> Manifest | None:
    """The manifest of an artifact; None if it is damaged or cannot be read, and then it stays where it is."""
    try:
        return store.peek(key)
    except (Damaged, OSError):
        return None


def _named_by_runs(store: Store) -> set[str]:
    """Every key in any record of any run, and of which a run has a log."""
    folders = [store.run_folder(run) for run in runs(store)]
    records = (record for folder in folders for record in journal.read(folder / journal.NAME))
    logs = (name for folder in folders for name in names_in(folder / "logs"))
    return {record["key"] for record in records if "key" in record} | {name.removesuffix(".log") for name in logs}
