"""What flows into a job, as its parents' specs say: the data set, and how many images the earlier sets have."""

from __future__ import annotations

from jobs.graph import Graph, Job
from jobs.specs import DatasetSpec, DistilSpec, SelectSpec


def dataset_of(job: Job, graph: Graph) -> DatasetSpec:
    """The data set among a job's parents."""
    (key,) = job.parents["dataset"]
    spec = graph[key].spec
    assert isinstance(spec, DatasetSpec)
    return spec


def set_sizes(job: Job, graph: Graph) -> list[int]:
    """Training images in each of the synthetic sets among a job's parents, as they are decoded."""
    sizes = []
    for parent in (graph[key] for key in job.parents.get("sets", ())):
        spec = parent.spec
        assert isinstance(spec, DistilSpec | SelectSpec)
        per_class = spec.ipc_per_stage * spec.factor**2 if isinstance(spec, DistilSpec) else spec.ipc_total
        sizes.append(dataset_of(parent, graph).classes * per_class)
    return sizes
