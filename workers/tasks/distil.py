"""Stage i of progressive dataset distillation around any base method (paper section 4.1, Algorithm 1).

The loop is the same for all methods: new images start from real ones (or noise); each iteration the method
matches with the union of the earlier sets and the new images (*conditioning*) and only the new images descend
(in one ablation the earlier ones do too, more slowly; they are then stored with the stage, A3.2);
from time to time the current images are judged by networks trained on the union, and the best iterate by the
held-out split is the stage's result. The start networks have been through the earlier sets already
(*transition*, in the experts).

Everything the next iteration depends on is in the checkpoint, so a killed stage goes on bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from jobs.errors import Diverged, Yielded
from jobs.keys import seed_from
from jobs.outcomes import DistilOutcome
from jobs.specs import DistilSpec
from workers.data import dataset as datasets
from workers.data import multi_formation, synthetic_set
from workers.data.dataset import Split, rows_by_class
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named, settings_for
from workers.methods.base import Arrays, LearnableImages, Method, Stage, under
from workers.methods.matching.kmeans import representatives
from workers.runtime.context import JobContext
from workers.store import trajectories
from workers.tasks import forgetting
from workers.tasks.select import random_per_class
from workers.tasks.teachers import Teachers
from workers.training.networks import Network, load_flat
from workers.training.students import build_network, fit, trainer_for
from workers.training.trainer import accuracy
from workers.training.transition import StartNetworks

HISTORY = "history.parquet"


@dataclass
class BestCandidate:
    """The iterate kept so far: its images, step size, and mean accuracy (percent) on the deciding split."""

    accuracy: float = -math.inf
    iteration: int = 0
    images: Tensor | None = None
    logits: Tensor | None = None
    """The soft labels of the images, if they have any."""
    earlier: Tensor | None = None
    """The images of earlier stages as they were then, if they learn too."""
    step_size: float | None = None


@dataclass
class History:
    """The stage's curves: one row per iteration, one per candidate."""

    loss: list[float] = field(default_factory=list)
    step_size: list[float] = field(default_factory=list)
    candidates: list[tuple[int, float]] = field(default_factory=list)
    """(iteration, mean accuracy in percent) of each judged iterate."""


class StageRun:
    """One stage in progress: what `distil` loops over, and what a checkpoint holds."""

    def __init__(self, context: JobContext) -> None:
        assert isinstance(context.job.spec, DistilSpec)
        self.context, self.spec = context, context.job.spec
        whole = datasets.load(context.store, context.parent("dataset"), context.device)
        self.data = forgetting.partitioned(
            context, whole, self.spec.partition, least=self.spec.ipc_per_stage * self.spec.factor**2
        )
        self.earlier = synthetic_set.newest(context.store, context.parents("sets"))
        self.before = synthetic_set.union(self.earlier).to(context.device) if self.earlier else None
        self.start_networks = self._chains()
        paths = [context.store.path(key, trajectories.TRAJECTORIES) for key in context.parents("experts")]
        self.experts = trajectories.Trajectories(paths) if paths else None
        self.method = self._method()
        matched = self._learning(self.before) if self.before is not None and self.spec.conditioning else None
        new = self._learning(self._initial_images())
        labels, rate = self.spec.labels, self.spec.earlier_rate
        self.learnable = LearnableImages(
            new, matched, self.spec.image, self.spec.iterations, rate, labels.learning if labels else None
        )
        self.generator = context.generator("loop")
        self.iteration = 0
        self.best, self.history = BestCandidate(), History()

    def step(self) -> None:
        """One iteration, and the judging of the iterate when it is due."""
        choice = self.spec.choice
        if self.iteration == 0:
            self.method.begin(self.learnable, self.generator)
        if choice.initial_not_final and self.iteration % choice.every == 0:
            self._evaluate_candidate()
        loss = self.method.iterate(self.learnable, self.iteration, self.generator)
        self.iteration += 1
        self.history.loss.append(loss)
        self.history.step_size.append(self.method.step_size or math.nan)
        if self._judging_is_due():
            self._evaluate_candidate()

    def result(self) -> SyntheticSet:
        """The kept new images and the step size that was learned with them."""
        new = self.best.images if self.best.images is not None else self.learnable.new
        logits = self.best.logits if self.best.images is not None else self.learnable.new_logits
        kept = self._in_training_space(new.cpu(), self._new_labels().cpu(), self.best.step_size)
        return self._with_soft_labels(kept, logits)

    def earlier_result(self) -> SyntheticSet | None:
        """The images of the stages before as they were when the new ones were kept; None if they are frozen."""
        if self.best.earlier is None or self.before is None:
            return None
        return self._in_training_space(self.best.earlier.cpu(), self.before.labels.cpu(), None)

    def result_so_far(self) -> SyntheticSet:
        """The earlier sets and the new images as they are now, with the current step size."""
        hard = self._in_training_space(self.learnable.new, self._new_labels(), self.method.step_size)
        new = self._with_soft_labels(hard, self.learnable.new_logits)
        if self.before is None:
            return new
        earlier = self.before
        if self._moving is not None:
            earlier = replace(earlier, images=self._in_training_space(self._moving, earlier.labels, None).images)
        return synthetic_set.union([earlier, new])

    @property
    def _moving(self) -> Tensor | None:
        """The images of earlier stages if they learn too."""
        return self.learnable.earlier if self.spec.earlier_rate else None

    def save(self) -> None:
        """Write the checkpoint."""
        arrays, values = self.method.state()
        kept_images = {"kept": self.best.images, "kept_logits": self.best.logits, "kept_earlier": self.best.earlier}
        kept: Arrays = {name: images.cpu().numpy() for name, images in kept_images.items() if images is not None}
        self.context.checkpoints.save(
            self.context.job.key,
            {
                **{f"pixels/{name}": value for name, value in self.learnable.state().items()},
                **{f"method/{name}": value for name, value in arrays.items()},
                **kept,
                "generator": self.generator.get_state().numpy(),
                "loss": np.array(self.history.loss),
                "step_size": np.array(self.history.step_size),
            },
            {
                "iteration": self.iteration,
                "method": values,
                "kept_accuracy": self.best.accuracy if self.best.images is not None else None,
                "kept_iteration": self.best.iteration,
                "kept_step_size": self.best.step_size,
                "candidates": self.history.candidates,
            },
        )

    def resume(self) -> bool:
        """Go back to the last checkpoint, if there is one."""
        found = self.context.checkpoints.load(self.context.job.key)
        if found is None:
            return False
        arrays, values = found
        self.learnable.load_state(under("pixels/", arrays))
        self.method.load_state(under("method/", arrays), values["method"])
        self.generator.set_state(torch.from_numpy(arrays["generator"]))
        self.iteration = values["iteration"]
        self.history = History(
            arrays["loss"].tolist(),
            arrays["step_size"].tolist(),
            [(int(at), float(a)) for at, a in values["candidates"]],
        )
        if "kept" in arrays:
            images, logits, earlier = (
                torch.from_numpy(arrays[name]).to(self.context.device) if name in arrays else None
                for name in ("kept", "kept_logits", "kept_earlier")
            )
            self.best = BestCandidate(
                values["kept_accuracy"], values["kept_iteration"], images, logits, earlier, values["kept_step_size"]
            )
        return True

    def _judging_is_due(self) -> bool:
        choice = self.spec.choice
        if choice.initial_not_final:
            return False
        last = self.iteration == self.spec.iterations
        return last or (choice.by != "last" and self.iteration % choice.every == 0)

    def _evaluate_candidate(self) -> None:
        """Keep the current iterate if it is as good as the kept one; the last wins without a contest."""
        choice = self.spec.choice
        score = 0.0 if choice.by == "last" else self._candidate_accuracy()
        self.history.candidates.append((self.iteration, score))
        if score >= self.best.accuracy:
            images, logits, earlier = (
                None if part is None else part.clone()
                for part in (self.learnable.new, self.learnable.new_logits, self._moving)
            )
            self.best = BestCandidate(score, self.iteration, images, logits, earlier, self.method.step_size)

    def _candidate_accuracy(self) -> float:
        """Mean accuracy (percent) of networks trained on the union with the current step size (facts 5.4)."""
        choice = self.spec.choice
        split = self.data.test if choice.by == "test" else self.data.validation
        union = self.result_so_far()
        scores = [self._network_accuracy(union, split, number) for number in range(choice.networks)]
        return sum(scores) / len(scores)

    def _network_accuracy(self, union: SyntheticSet, split: Split, number: int) -> float:
        """Accuracy (percent) of one candidate network; 0 for one that diverges, which no better iterate loses to."""
        training = self.spec.choice.training
        assert training is not None
        seed = seed_from(self.context.job.key, "candidate", self.iteration, number)
        generator = torch.Generator().manual_seed(seed)
        network = build_network(self.spec.network, self.data.shape, self.data.classes, generator, self.context.device)
        start = self.method.start(number)
        if start is not None:
            load_flat(network, start.to(self.context.device))
        try:
            trainer = trainer_for(network, training, generator, lr=union.step_size)
            fit(trainer, *union.training_data(training.temperature), training)
        except Diverged:
            return 0.0
        return accuracy(network, split.images, split.labels)

    def _method(self) -> Method:
        stage = Stage(
            spec=self.spec,
            train=self.data.train,
            classes=self.data.classes,
            transform=self.data.transform,
            experts=self.experts,
            network=self._random_network("layout"),
            start_networks=self.start_networks,
            device=self.context.device,
            memory_level=self.context.memory_level,
        )
        return method_named(self.spec.method)(stage, settings_for(self.spec.method, self.spec.settings))

    def _random_network(self, *purpose: str | int) -> Network:
        generator = self.context.generator(*purpose)
        return build_network(self.spec.network, self.data.shape, self.data.classes, generator, self.context.device)

    def _chains(self) -> StartNetworks:
        return StartNetworks(
            lambda number: self._random_network("start", number),
            lambda number: self.context.generator("chain", number),
            self.earlier,
            self.spec.transition,
            self.spec.starts,
            lambda: self.context.yield_if_asked("during a transition"),
        )

    def _initial_images(self) -> SyntheticSet:
        generator = self.context.generator("images")
        labels = self._new_labels()
        if self.spec.init == "noise":
            images = torch.randn((len(labels), *self.data.shape), generator=generator).to(self.context.device)
        else:
            chosen = self._first_real(self.spec.ipc_per_stage * self.spec.factor**2, generator)
            images = multi_formation.compose(self.data.train.images[chosen.to(self.context.device)], self.spec.factor)
        hard = SyntheticSet(images, labels, None, self.spec.factor)
        if self.spec.labels is None:
            return hard
        return self._with_soft_labels(hard, self._teachers().first_labels(hard, self.data.classes, self.spec.labels))

    def _teachers(self) -> Teachers:
        return Teachers(self.experts, self._random_network("layout"))

    def _first_real(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of the real images from which new ones start, `count` of each class, class by class.

        Raises:
            ValueError: a class has fewer.
        """
        train = self.data.train
        if self.spec.init == "real":
            return random_per_class(train.labels, count, generator)
        if self.spec.init == "classified":
            return self._teachers().classified(train, count, generator)
        members = rows_by_class(train.labels, self.data.classes)
        if any(len(own) < count for own in members):
            raise ValueError(f"a class has {min(map(len, members))} images, fewer than {count} clusters")
        network, clustering = self.start_networks.network(0), self.spec.clustering
        return torch.cat(
            representatives(network, train.images, self.data.transform, members, count, generator, clustering)
        )

    def _learning(self, one: SyntheticSet) -> SyntheticSet:
        """A set of the training space as the method's pixels have it."""
        return replace(one, images=self.data.transform.inverse(one.images)) if self.method.space == "unit" else one

    def _in_training_space(self, new: Tensor, labels: Tensor, step_size: float | None) -> SyntheticSet:
        """The method's pixels as a set."""
        images = self.data.transform.normalise(new) if self.method.space == "unit" else new
        return SyntheticSet(images, labels, step_size, self.spec.factor)

    def _with_soft_labels(self, one: SyntheticSet, logits: Tensor | None) -> SyntheticSet:
        """The set with soft labels on the device of its images."""
        if logits is None or self.spec.labels is None:
            return one
        return replace(one, logits=logits.to(one.images.device), temperature=self.spec.labels.temperature)

    def _new_labels(self) -> Tensor:
        return torch.arange(self.data.classes, device=self.context.device).repeat_interleave(self.spec.ipc_per_stage)


def distil(context: JobContext, folder: Path) -> DistilOutcome:
    """Run a stage to its end, from its checkpoint if there is one, and write S_i.

    Raises:
        Diverged: the matching loss or the step size left its range; nothing is stored.
        Yielded: the run was asked to stop; the checkpoint is written.
    """
    run = StageRun(context)
    if run.resume():
        logging.info("%s: resumed at iteration %d", context.job.key, run.iteration)
    while run.iteration < run.spec.iterations:
        run.step()
        stopping = context.stopping
        if stopping or run.iteration % run.spec.checkpoint_every == 0:
            run.save()
        context.report(run.iteration / run.spec.iterations, _note(run))
        if stopping:
            raise Yielded(f"{context.job.key}: asked to stop at iteration {run.iteration}")
    synthetic_set.write(folder, run.result(), run.data.transform, run.data.class_names)
    if (earlier := run.earlier_result()) is not None:
        synthetic_set.write_exact(folder / synthetic_set.EARLIER, earlier)
    _write_history(folder / HISTORY, run.history)
    choice = run.spec.choice.by
    return DistilOutcome(
        iteration=run.best.iteration,
        step_size=run.best.step_size,
        loss=run.history.loss[-1],
        first_loss=run.history.loss[0],
        validation_accuracy=run.best.accuracy if choice == "validation" else None,
        test_accuracy=run.best.accuracy if choice == "test" else None,
        data_used=forgetting.share_below(context, run.spec.partition),
    )


def _note(run: StageRun) -> str:
    note = f"iteration {run.iteration}/{run.spec.iterations}, loss {run.history.loss[-1]:.3f}"
    held_out = run.spec.choice.by == "validation" and run.best.images is not None
    return f"{note}, held-out {run.best.accuracy:.1f}%" if held_out else note


def _write_history(path: Path, history: History) -> None:
    judged = dict(history.candidates)
    rows = range(1, len(history.loss) + 1)
    table = {
        "iteration": list(rows),
        "loss": history.loss,
        "step_size": history.step_size,
        "candidate_accuracy": [judged.get(row) for row in rows],
    }
    pq.write_table(pa.table(table), path)
