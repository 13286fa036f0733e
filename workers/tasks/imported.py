"""Files of others become an artifact: their trajectories or their set, in the form in which ours are stored.

It is done by `pdd import`, before any run. A run whose import is gone cannot make it anew, since it does not know
where the files lie.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.errors import BadInput
from jobs.keys import kind_of
from jobs.kinds import ImportedSpec
from jobs.outcomes import ImportedOutcome
from workers.data import published, synthetic_set
from workers.runtime.context import JobContext
from workers.store import trajectories
from workers.store.store import Store


def convert(context: JobContext, folder: Path) -> ImportedOutcome:
    """Read the files once and write what they hold.

    Raises:
        BadInput: it is not known where they lie, they changed since they were looked at, or they are refused.
    """
    spec = context.job.spec
    assert isinstance(spec, ImportedSpec)
    if not spec.files:
        fix = "is not in the store any more; `pdd import` its files again"
        raise BadInput(str(context.store.root), "import", context.job.key, fix)
    paths = [Path(file) for file in spec.files]
    if spec.what == "experts":
        experts = published.open_experts(paths)
        trajectories.write_trajectories(folder / trajectories.TRAJECTORIES, experts.snapshots())
    else:
        found = replace(published.open_set(paths), step_size=spec.step_size)
        synthetic_set.write_exact(folder / synthetic_set.EXACT, found)
    if published.digest_of(paths) != spec.source:
        raise BadInput(spec.files[0], "content", "changed while it was read", "run `pdd import` again")
    return ImportedOutcome(count=spec.count)


def spec_of(store: Store, key: str) -> ImportedSpec | None:
    """What an import of the store holds; None if it is not there."""
    manifest = store.peek(key) if kind_of(key) == ImportedSpec.kind else None
    return None if manifest is None else ImportedSpec.model_validate(dict(manifest.spec))
