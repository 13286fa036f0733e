"""What a job needs of a card, from the spec alone; how near that is to what is counted is in tests/workers."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.datasets import DATASETS
from jobs.expansion import expand
from jobs.experiment import Experiment
from jobs.graph import Graph, Job
from jobs.memory import CARD_SIZES, SPARE, WORKSPACE, chosen_engine, largest_by_card, needs_card, peak_bytes, room
from jobs.specs import DistilSpec


def stage_of(name: str, ipc: int, numbers: dict[str, Any] | None = None) -> tuple[Job, Graph]:
    """The first stage of MTT at the paper's scale, with this many images per class."""
    arm = {"method": "mtt", "ipc_per_stage": ipc, "set": numbers or {}}
    document = {"name": "test", "dataset": {"name": name, "path": "/data"}, "scale": "paper", "arms": [arm]}
    graph = expand(Experiment.model_validate(document), DATASETS[name], "test").graph
    (job, *_) = [job for job in graph if isinstance(job.spec, DistilSpec)]
    return job, graph


@pytest.mark.parametrize(
    ("name", "ipc", "gigabytes"),
    [("cifar10", 10, 10), ("cifar10", 50, 50), ("cifar100", 10, 67), ("tiny-imagenet", 1, 26)],
)
def test_the_whole_graph_takes_what_was_worked_out_by_hand_and_the_adjoint_a_few_gigabytes(
    name: str, ipc: int, gigabytes: int
) -> None:
    job, graph = stage_of(name, ipc)
    whole, one = (peak_bytes(job, graph, engine) / 1e9 for engine in ("unrolled", "adjoint"))
    assert whole == pytest.approx(gigabytes, rel=0.5), "with the data set and the last step"
    assert one < room(16) / 1e9, "its data set, 6 GB of Tiny ImageNet, and one step"


def test_the_adjoint_is_chosen_where_the_whole_graph_is_too_large() -> None:
    for name, ipc, engine in (
        ("cifar10", 1, "unrolled"),
        ("cifar100", 10, "adjoint"),
        ("tiny-imagenet", 50, "adjoint"),
    ):
        job, graph = stage_of(name, ipc)
        info = DATASETS[name]
        assert isinstance(job.spec, DistilSpec)
        assert chosen_engine(job.spec, info.channels, info.size, len(info.class_names)) == engine
        assert peak_bytes(job, graph) == peak_bytes(job, graph, engine)  # type: ignore[arg-type]


def test_a_recipe_that_asks_for_the_adjoint_gets_it() -> None:
    job, _ = stage_of("cifar10", 1, {"distil.settings.engine": "adjoint"})
    assert isinstance(job.spec, DistilSpec) and chosen_engine(job.spec, 3, 32, 10) == "adjoint"


def test_the_work_space_of_libraries_is_kept_free_on_every_card() -> None:
    assert room(16) == SPARE * 16e9 - WORKSPACE and room(0.1) == 0


def test_the_largest_job_that_fits_each_card() -> None:
    peaks = {"small": 10**9, "middle": 18 * 10**9, "large": 60 * 10**9}
    assert largest_by_card(peaks) == {16: "small", 24: "middle", 40: "middle", 80: "large"}
    assert largest_by_card({"large": 10**12}) == dict.fromkeys(CARD_SIZES)


def test_jobs_that_use_no_card_take_none_of_it() -> None:
    job, graph = stage_of("cifar10", 1)
    assert peak_bytes(graph[job.parents["dataset"][0]], graph) == 0


def test_recorded_steps_keep_the_memory_of_the_adjoint_while_candidates_are_judged() -> None:
    """Beside two more vectors of weights."""
    job, graph = stage_of("cifar10", 10, {"distil.settings.engine": "graphs"})
    adjoint, graphs = (peak_bytes(job, graph, engine) for engine in ("adjoint", "graphs"))
    weights = 4 * 320_010
    assert graphs - adjoint == pytest.approx(2 * weights, abs=8)
    assert peak_bytes(job, graph) > graphs + 10 * weights


def test_data_sets_and_what_looks_at_no_network_need_no_card() -> None:
    arms = [{"method": rule, "ipc_per_stage": 1} for rule in ("random", "herding", "forgetting", "mtt")]
    document = {"name": "test", "dataset": {"name": "cifar10", "path": "/data"}, "scale": "paper", "arms": arms}
    graph = expand(Experiment.model_validate(document), DATASETS["cifar10"], "test").graph
    without = {f"{job.kind} {getattr(job.spec, 'rule', '')}".strip() for job in graph if not needs_card(job)}
    assert without == {"dataset", "select random", "select forgetting"}
    needing = {f"{job.kind} {getattr(job.spec, 'rule', '')}".strip() for job in graph if needs_card(job)}
    assert {"select herding", "distil", "evaluate", "experts"} <= needing
    (counted,) = [job for job in graph if job.kind == "forgetting"]
    assert needs_card(counted) != bool(counted.parents.get("experts"))
