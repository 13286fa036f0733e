"""A store with the tiny experiment on digits in it, its jobs done when a test asks for them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.expansion import expand
from jobs.experiment import Experiment, Plan
from jobs.graph import Job
from workers.data import dataset, sources, synthetic_set
from workers.data.dataset import Dataset
from workers.data.synthetic_set import SyntheticSet
from workers.execute import perform, perform_missing
from workers.runtime.context import JobContext
from workers.store.store import Manifest, Store
from workers.store.trajectories import TRAJECTORIES, Trajectories

CPU = torch.device("cpu")
ONE_STAGE = {"method": "mtt", "ipc_per_stage": 1}
TWO_STAGES = {"method": "mtt", "stages": 2, "ipc_per_stage": 1}
THREE_STAGES = {"method": "mtt", "stages": 3, "ipc_per_stage": 1}
PUBLISHED = {
    "distil.image": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
    "distil.settings.step_size_form": "linear",
    "distil.settings.step_size_momentum": 0.5,
    "distil.settings.lr_step_size": 1e-6,
    "distil.settings.augmentation": "color_crop_cutout_flip_scale_rotate",
}
"""The published optimisers and augmentation, at a scale of seconds."""


def plan_of(*arms: dict[str, Any], set: dict[str, Any] | None = None, **more: Any) -> Plan:
    """The jobs of the tiny experiment with these arms; `set` are numbers of the recipes, `more` fields.

    Step sizes learn slowly enough to stay clear of their clamp, so that every stage has another one.
    """
    slow = {"distil.settings.lr_step_size": 0.01}
    numbers = [{**(slow if arm["method"] == "mtt" else {}), **(set or {})} for arm in arms]
    experiment = Experiment.model_validate(
        {
            "name": "test",
            "dataset": "digits",
            "scale": "tiny",
            "networks": 2,
            "arms": [{**arm, "set": one} for arm, one in zip(arms, numbers, strict=True)],
            **more,
        }
    )
    facts = sources.inspect(sources.Source(layout="digits", place="test"))
    return expand(experiment, facts, "test")


@dataclass
class Workshop:
    """A store and the jobs that may be done in it."""

    store: Store
    plan: Plan

    @classmethod
    def open(cls, folder: Path, *arms: dict[str, Any], **more: Any) -> Workshop:
        return cls(Store.open(folder / "store"), plan_of(*arms, **more))

    def copy(self, folder: Path) -> Workshop:
        """The same in a store of its own, free to be damaged."""
        shutil.copytree(self.store.root, folder / "copy")
        return Workshop(Store.open(folder / "copy"), self.plan)

    def job(self, kind: str, **fields: Any) -> Job:
        """The first job of a kind whose spec has these fields."""
        return self.jobs(kind, **fields)[0]

    def jobs(self, kind: str, **fields: Any) -> list[Job]:
        """All jobs of a kind whose specs have these fields, in the order of the graph."""
        return [
            job
            for job in self.plan.graph
            if job.kind == kind and all(getattr(job.spec, name) == value for name, value in fields.items())
        ]

    def context(self, job: Job) -> JobContext:
        """A context for the job, its ancestors being made as far as they are in the plan."""
        perform_missing(self.plan.graph, self.store, (key for key in job.parent_keys() if key in self.plan.graph.jobs))
        return JobContext.alone(job, self.store)

    def make(self, job: Job) -> Manifest:
        """Do a job with all it needs, unless it is done."""
        if not self.store.has(job.key):
            perform(self.context(job))
        return self.store.manifest(job.key)

    def data(self) -> Dataset:
        """The dataset artifact, made if need be."""
        job = self.job("dataset")
        self.make(job)
        return dataset.load(self.store, job.key, CPU)

    def synthetic(self, job: Job) -> SyntheticSet:
        """What a `distil` or `select` job makes."""
        self.make(job)
        return synthetic_set.read(self.store.path(job.key, synthetic_set.EXACT))

    def trajectories(self, job: Job) -> Trajectories:
        """What an `experts` job makes."""
        self.make(job)
        return Trajectories([self.store.path(job.key, TRAJECTORIES)])


def changed(job: Job, parents: dict[str, tuple[str, ...]] | None = None, **fields: Any) -> Job:
    """The job with other numbers in its spec, and other parents if they are given."""
    spec = type(job.spec).model_validate({**job.spec.model_dump(), **fields})
    return Job.make(spec, job.parents if parents is None else parents)
