"""The reason why each job would run: it was never done, or differs from every job that was.

A missing job is compared with the nearest finished one of its kind; the fields in which they differ are the reason
it is not found. The numbers of its recipe are printed with their sources on request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs import cost
from jobs.experiment import Plan
from jobs.graph import Job
from jobs.keys import differences
from jobs.specs import EvaluateSpec
from workers.store.store import Store


@dataclass(frozen=True)
class Explanation:
    """One job's standing: `cached`, or the reason why it must run."""

    key: str
    kind: str
    cached: bool
    reason: str
    changed: tuple[str, ...] = ()
    """`field: old -> new` against the nearest finished job."""

    def to_json(self) -> dict[str, Any]:
        """As `explain --json` prints it."""
        return {
            "key": self.key,
            "kind": self.kind,
            "cached": self.cached,
            "reason": self.reason,
            "changed": list(self.changed),
        }


@dataclass(frozen=True)
class CellVisits:
    """How many training images each network of a cell sees, counted once for every pass over them."""

    method: str
    stage: int
    mode: str
    visits: int


def image_visits(plan: Plan) -> list[CellVisits]:
    """The image visits of every cell whose networks are trained on sets: what its mode of training costs them."""
    rows = []
    for cell in plan.cells:
        job = plan.graph[cell.jobs[0]]
        if isinstance(job.spec, EvaluateSpec):
            rows.append(CellVisits(cell.method, cell.stage, cell.mode, cost.image_visits(job, plan.graph)))
    return list(dict.fromkeys(rows))


def explain(plan: Plan, store: Store) -> list[Explanation]:
    """Every job of the plan, in its order."""
    finished = {key: _plain(store, key) for key in store.keys() if store.has(key)}
    return [_explain(job, finished) for job in plan.graph]


def sources_of(plan: Plan, key: str) -> list[tuple[str, str, str]]:
    """(field, value, source) of every number in the recipe a job was made from."""
    resolved = plan.sources[key]
    values = resolved.recipe.model_dump(mode="json")
    return [(path, str(_at(values, path)), source) for path, source in sorted(resolved.sources.items())]


def _explain(job: Job, finished: Mapping[str, dict[str, Any]]) -> Explanation:
    if job.key in finished:
        return Explanation(job.key, job.kind, True, "cached")
    mine = _comparable(job.canonical())
    candidates = [(differences(plain, mine), key) for key, plain in finished.items() if plain["kind"] == job.kind]
    if not candidates:
        return Explanation(job.key, job.kind, False, f"no {job.kind} job was ever finished in this store")
    changed, nearest = min(candidates, key=lambda candidate: (len(candidate[0]), candidate[1]))
    if not changed:
        return Explanation(job.key, job.kind, False, f"the algorithm's version differs from that of {nearest}")
    return Explanation(job.key, job.kind, False, f"differs from {nearest}", tuple(changed))


def _plain(store: Store, key: str) -> dict[str, Any]:
    manifest = store.manifest(key)
    return {"kind": manifest.kind, "spec": manifest.spec, "parents": manifest.parents}


def _comparable(canonical: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": canonical["kind"], "spec": canonical["spec"], "parents": canonical["parents"]}


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return None
        values = values[name]
    return values
