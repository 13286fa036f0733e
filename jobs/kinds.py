"""The kinds of jobs with their specs, among them that of what others have computed.

An *import* is a job without parents: expert trajectories or a synthetic set of somebody else's, which `pdd import` put
into the store. Its key holds the digest of the files that it was read from and what was found in them, not where they
lay, so the same files have the same key everywhere.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jobs.fields import Count, Index, Positive
from jobs.specs import (
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    ForgettingSpec,
    FullSpec,
    Kind,
    SelectSpec,
    Spec,
)

Shape = Annotated[tuple[Count, ...], Field(strict=False)]


class ImportedSpec(Spec):
    """Expert trajectories, or a synthetic set, as they were found in files of others.

    `source` is the digest of the files in their order. Experts have `count` trajectories of `epochs` epochs after the
    start, over parameters of these `shapes`, in order. A set has `count` images of the one shape in `shapes`, as many
    of each of the `classes`, perhaps with soft labels, and the step size that was learned with it, if it is known.
    `normalise` is what its images were brought into the training space with, as recipes call it; '' if it is not said.
    """

    kind: ClassVar[Kind] = "imported"
    version: ClassVar[int] = 1
    placement: ClassVar[frozenset[str]] = frozenset({"files"})

    what: Literal["experts", "set"]
    source: str
    count: Count
    shapes: Annotated[tuple[Shape, ...], Field(strict=False, min_length=1)]
    epochs: Index = 0
    classes: Index = 0
    soft_labels: bool = False
    step_size: Positive | None = None
    normalise: str = ""

    files: Annotated[tuple[str, ...], Field(strict=False)] = ()

    def title(self) -> str:
        """What it is, and how much of it."""
        return f"{self.what}-{self.count}"


SPECS: dict[Kind, type[Spec]] = {
    spec.kind: spec
    for spec in (
        DatasetSpec,
        ExpertsSpec,
        ForgettingSpec,
        SelectSpec,
        DistilSpec,
        EvaluateSpec,
        FullSpec,
        ImportedSpec,
    )
}
