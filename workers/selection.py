"""Selection baselines: synthetic sets made of real images.

Random takes n images of each class without replacement; Forgetting takes the n with the highest counts (Table
1 of the paper; ties by position). The chosen images are stored as any synthetic set, without a step size,
together with their indices into the training split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.specs import SelectSpec
from workers import dataset as datasets
from workers import forgetting, synthetic
from workers.bench import Bench
from workers.synthetic import SyntheticSet

INDICES = "indices.parquet"


def random_per_class(labels: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """Indices int64 [classes * ipc], class by class, drawn without replacement inside each class.

    Raises:
        ValueError: a class has fewer than `ipc` images.
    """
    labels = labels.cpu()
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        if len(members) < ipc:
            raise ValueError(f"class {label} has {len(members)} images, fewer than {ipc=}")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
    return torch.cat(chosen)


def most_forgotten_per_class(labels: Tensor, counts: NDArray[np.int64], ipc: int) -> Tensor:
    """Indices int64 [classes * ipc] of the images with the highest forgetting counts of each class."""
    known = labels.cpu().numpy()
    chosen = []
    for label in range(int(known.max()) + 1):
        members = np.flatnonzero(known == label)
        chosen.append(members[np.argsort(-counts[members], kind="stable")[:ipc]])
    return torch.from_numpy(np.concatenate(chosen))


def select(bench: Bench, folder: Path) -> dict[str, Any]:
    """Choose the images by the spec's rule and write them as a synthetic set."""
    spec = bench.job.spec
    assert isinstance(spec, SelectSpec)
    data = datasets.load(bench.store, bench.parent("dataset"), bench.device)
    if spec.rule == "random":
        index = random_per_class(data.train.labels, spec.ipc, bench.generator("select"))
    else:
        counts = forgetting.read_counts(bench.store.path(bench.parent("forgetting"), forgetting.COUNTS))
        index = most_forgotten_per_class(data.train.labels, counts, spec.ipc)
    where = index.to(bench.device)
    chosen = SyntheticSet(data.train.images[where].cpu(), data.train.labels[where].cpu(), None)
    synthetic.write(folder, chosen, data.transform, data.class_names)
    pq.write_table(pa.table({"index": index.numpy()}), folder / INDICES)
    return {"images": len(index)}
