"""Every kind of job and every method goes through on a card that is not there, and makes the bytes of the CPU.

For the bytes the layouts and the norm of a card are taken back to those of a CPU; with them the same jobs only have to
go through.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.errors import Yielded
from jobs.graph import Job
from jobs.learning import ImageOptimiserSpec
from jobs.specs import ChoiceSpec, DistilSpec, NetworkSpec
from tests.pretended import DEVICE, Card, Event, card
from tests.workers.short_jobs import ARMS, GRADIENTS, ONE, TWO, matched, trained, trained_weights
from tests.workers.workshop import Workshop
from workers.data.dataset import Split
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet
from workers.execute import perform
from workers.methods import method_named, settings_for
from workers.methods.base import LearnableImages, Stage
from workers.methods.trajectory import compiled, graphs
from workers.methods.trajectory.recorder import Work
from workers.methods.trajectory.trajectory_matching import InnerBatch, Student
from workers.runtime.context import JobContext
from workers.tasks.distil import StageRun
from workers.training.instance_norm import InstanceNorm
from workers.training.networks import ConvNet, Network
from workers.training.students import build_network
from workers.training.transition import StartNetworks

EVENTS: tuple[Event, ...] = ("kernel", "upload", "download", "wait")


@pytest.fixture
def as_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the card the layout, the layers and the slope of the loss of a CPU."""
    to = nn.Module.to

    def without_layout(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return module if "memory_format" in kwargs else to(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", without_layout)
    monkeypatch.setattr(InstanceNorm, "forward", nn.GroupNorm.forward)
    monkeypatch.setattr(ConvNet, "embed", lambda network, x: network.blocks(x).flatten(1))
    monkeypatch.setattr(Student, "gradient", _by_the_loss)


def _by_the_loss(student: Student, theta: Any, rows: Any, labels: Any, draw: Any, *, create_graph: bool = False) -> Any:
    loss = student.loss(theta, rows, labels, InnerBatch(torch.arange(len(rows), device=rows.device), draw))
    return torch.autograd.grad(loss, theta, create_graph=create_graph)[0]


def _both(workshop: Workshop, other: Workshop, watch: Callable[[Job, Card], None] = lambda job, card: None) -> None:
    """Do each job on the CPU in one store and on the card in the other; the digests are equal."""
    for job in workshop.plan.graph:
        perform(JobContext.alone(job, workshop.store))
        with card() as there:
            perform(JobContext.alone(job, other.store))
        watch(job, there)
        made = other.store.manifest(job.key)
        assert made.device == "cuda"
        assert made.digest == workshop.store.manifest(job.key).digest, job.kind


def _shops(folder: Path, arm: dict[str, Any], **more: Any) -> tuple[Workshop, Workshop]:
    return (
        Workshop.open(folder / "cpu", arm, networks=1, **more),
        Workshop.open(folder / "card", arm, networks=1, **more),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ARMS)
def test_jobs_of_a_method_make_the_bytes_of_the_cpu(method: str, tmp_path: Path, as_on_a_cpu: None) -> None:
    _both(*_shops(tmp_path, {"method": method, **ARMS[method]}, set=GRADIENTS.get(method)))


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "mtt", **ONE, "partition": {"increment": 9}},
        {"method": "random", **TWO, "class_incremental": {"phases": 5, "orders": 1}},
    ],
    ids=["partitions", "class-incremental"],
)
def test_jobs_of_the_other_tables_make_the_bytes_of_the_cpu(
    arm: dict[str, Any], tmp_path: Path, as_on_a_cpu: None
) -> None:
    _both(*_shops(tmp_path, arm))


@pytest.mark.parametrize("method", ["mtt", "dm"])
def test_a_stage_goes_on_from_its_checkpoint_on_the_card(
    method: str, tmp_path: Path, as_on_a_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runtime.context._LOOK_SECONDS", 0.0)
    here, there = _shops(tmp_path, {"method": method, **ONE})
    job = here.job("distil")
    whole = here.make(job)
    context = there.context(job)
    stop = context.stop_file = tmp_path / "stop"
    context.report = lambda done, note: stop.touch() if done > 0.3 else None
    with card():
        context.device = DEVICE
        with pytest.raises(Yielded, match="asked to stop"):
            perform(context)
        perform(JobContext.alone(job, there.store))
    assert there.store.manifest(job.key).digest == whole.digest


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mtt", "cafe", "dsa", "idc"])
def test_jobs_go_through_in_the_layout_and_with_the_norm_of_a_card(method: str, tmp_path: Path) -> None:
    there = Workshop.open(tmp_path, {"method": method, **ARMS[method]}, networks=1, set=GRADIENTS.get(method))
    with card():
        for job in there.plan.graph:
            perform(JobContext.alone(job, there.store))
    assert all(there.store.manifest(job.key).device == "cuda" for job in there.plan.graph)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("architecture", ["convnet", "resnet18", "idc_resnet18"])
def test_networks_train_on_the_card_as_on_the_cpu(architecture: Any, norm: Any, as_on_a_cpu: None) -> None:
    spec = NetworkSpec(architecture=architecture, width=4, depth=2 if architecture == "convnet" else None, norm=norm)
    here = trained_weights(spec, torch.device("cpu"))
    with card():
        there = trained_weights(spec, DEVICE)
    assert torch.equal(there, here)


@pytest.mark.parametrize(("norm", "kept"), [("batch", True), ("none", True), ("instance", False), ("group", False)])
def test_weights_are_channels_last_only_where_the_norm_keeps_it(norm: Any, kept: bool) -> None:
    spec = NetworkSpec(architecture="convnet", width=4, depth=2, norm=norm)
    with card():
        network = build_network(spec, (3, 8, 8), 4, torch.Generator(), DEVICE)
        convolution = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last) == kept
    on_cpu = build_network(spec, (3, 8, 8), 4, torch.Generator(), torch.device("cpu"))
    assert all(parameter.is_contiguous() for parameter in on_cpu.parameters())


def test_a_card_refuses_what_a_real_one_refuses() -> None:
    with card():
        x = torch.ones(4, 3).to(torch.device("cuda"))
        assert x.device == DEVICE and (x + 1).device == DEVICE and x.is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="indices"):
            torch.ones(5)[torch.tensor([1], device="cuda")]
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=torch.device("cuda"), generator=torch.Generator())


@pytest.mark.parametrize("engine", ["unrolled", "adjoint"])
def test_the_norm_of_a_card_gives_the_gradients_of_the_cpu(engine: str) -> None:
    here = matched(torch.device("cpu"), engine)
    with card():
        there = matched(DEVICE, engine)
        images, step_size = there.images.cpu(), there.step_size.cpu()
    torch.testing.assert_close(images, here.images, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(step_size, here.step_size, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("engine", "most"), [("unrolled", 163), ("adjoint", 200)])
def test_an_inner_step_launches_few_kernels_and_never_waits(engine: str, most: int) -> None:
    """The figures of docs/performance.md; a step more costs the same again, so constant work drops out."""
    counts = {}
    for steps in (2, 12):
        with card() as there:
            matched(DEVICE, engine, steps)
            counts[steps] = {event: there.total(event) for event in EVENTS}
    _assert_few(counts, most)


class _Watched:
    """A recorder that does the work again, and counts what of it a card could not record."""

    def __init__(self, there: Card) -> None:
        self.card, self.replays, self.outside = there, 0, 0

    def record(self, work: Work) -> Work:
        def again() -> None:
            before = [self.card.total(event) for event in ("upload", "download", "wait")]
            work()
            self.replays += 1
            self.outside += sum(self.card.total(event) for event in ("upload", "download", "wait")) - sum(before)

        again()
        return again


def test_what_is_recorded_of_an_inner_step_neither_waits_nor_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 12
    with card() as there:
        adjoint = matched(DEVICE, "adjoint", steps)
        recorder = _Watched(there)
        monkeypatch.setattr(graphs, "recorder_for", lambda device: recorder)
        recorded = matched(DEVICE, "graphs", steps)
        assert torch.equal(recorded.images.cpu(), adjoint.images.cpu())
    assert recorder.outside == 0 and recorder.replays >= 2 * steps


def test_a_card_that_is_asked_for_compiled_code_takes_the_adjoint_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    compiled._warn_of_a_card.cache_clear()
    with card():
        own, adjoint = (matched(DEVICE, engine, 3).images.cpu() for engine in ("compiled", "adjoint"))
    assert torch.equal(own, adjoint)
    assert "a card goes on with engine adjoint" in caplog.text


WAITS = {
    "mtt": 1, "tesla": 1, "datm": 1, "haba": 1, "dm": 1, "frepo": 1, "rfad": 1,
    "dd": 2, "rat_bptt": 2, "dc": 2, "dsa": 2, "idc": 2,
}  # fmt: skip
"""Of an iteration: for its loss, which comes with the rest that is looked at; for the mean of DD's and RaT-BPTT's step
sizes; and once for a training between two image steps (`GRADIENTS`)."""


@pytest.mark.parametrize(("method", "most"), WAITS.items())
def test_an_iteration_waits_for_its_loss(method: str, most: int, tmp_path: Path) -> None:
    """Whatever the number of its classes, inner steps and random numbers."""
    images = ARMS[method]["ipc_per_stage"]
    shop = Workshop.open(tmp_path, {"method": method, "ipc_per_stage": images}, networks=1, set=GRADIENTS.get(method))
    context = shop.context(shop.job("distil"))
    with card() as there:
        context.device = DEVICE
        run = StageRun(context)
        run.method.begin(run.learnable, run.generator)
        run.method.iterate(run.learnable, 0, run.generator)
        there.reset()
        run.method.iterate(run.learnable, 1, run.generator)
    assert there.total("wait") <= most


def _pass_counts(epochs: int, batches: int) -> dict[str, int]:
    """What a training with DSA's augmentation costs in so many passes over so many batches."""
    with card() as there:
        run = trained(DEVICE, batches, epochs)
        there.reset()
        run()
        return {event: there.total(event) for event in EVENTS}


def test_a_training_step_launches_few_kernels_and_never_waits() -> None:
    _assert_few({batches: _pass_counts(1, batches) for batches in (2, 12)}, most=40)


def test_a_pass_of_a_single_step_waits_for_nothing_either() -> None:
    """As evaluations of small sets have them: the random numbers come along, the losses are read later."""
    few, many = _pass_counts(2, 1), _pass_counts(22, 1)
    assert many["wait"] == few["wait"] and many["download"] == few["download"]
    assert (many["kernel"] - few["kernel"]) / 20 <= 45


CLASSES = 10
AUGMENTATION = "color_crop_cutout_flip_scale_rotate"
TRAINING = {"epochs": 2, "lr": 0.01, "batch_size": 8, "augmentation": AUGMENTATION}
ALIGNED = {"layers": [0.1, 0.1, 1.0, 1.0], "pooled": 1.0, "discrimination": 0.01}
MATCHES: dict[str, dict[str, Any]] = {
    "dc": {"outer": 1, "batch_real": 6, "training": TRAINING},
    "dsa": {"outer": 1, "batch_real": 6, "augmentation": AUGMENTATION, "training": TRAINING},
    "idc": {"rounds": 1, "batch_real": 6, "augmentation": "color_crop_cutout", "n_data": 8, "training": TRAINING},
    "dm": {"batch_real": 6, "augmentation": AUGMENTATION},
    "cafe": {
        "batch_real": 6, "augmentation": AUGMENTATION, "weights": ALIGNED, "lr_network": 0.01, "batch_train": 8,
        "probe": 2, "window": 2, "settled": 0.0, "moved": 1.0, "most_steps": 1, "most_epochs": 2,
    },
}  # fmt: skip
"""Iterations of one match a class, without training between."""


def _class_match(name: str, classes: int = CLASSES, **numbers: int) -> Card:
    """What an iteration costs: by `MATCHES` one match of each class, the image steps included."""
    draws = torch.Generator().manual_seed(3)
    factor = 2 if name == "idc" else 1

    def labelled(each: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(classes * each, 3, 16, 16, generator=draws)
        return images.to(DEVICE), torch.arange(classes).repeat_interleave(each).to(DEVICE)

    def network(number: int) -> Network:
        spec = NetworkSpec(architecture="convnet", width=8, depth=3)
        return build_network(spec, (3, 16, 16), classes, torch.Generator().manual_seed(number), DEVICE)

    settings = settings_for(name, {**MATCHES[name], **numbers})
    with card() as there:
        image = ImageOptimiserSpec(lr=0.1)
        spec = DistilSpec(
            method=name, stage=1, ipc_per_stage=2, factor=factor, network=NetworkSpec(), iterations=3, image=image,
            choice=ChoiceSpec(by="last"), settings={},
        )  # fmt: skip
        starts = StartNetworks(network, lambda number: draws, (), None, None)
        transform = Affine(torch.tensor([0.5] * 3).to(DEVICE), torch.tensor([0.25] * 3).to(DEVICE))
        stage = Stage(spec, Split(*labelled(8)), classes, transform, None, network(0), starts, DEVICE, 0)
        method = method_named(name)(stage, settings)
        learnable = LearnableImages(SyntheticSet(*labelled(2), None, factor), None, image, 3)
        method.iterate(learnable, 0, draws)  # what happens once is over
        there.reset()
        method.iterate(learnable, 1, draws)
    return there


@pytest.mark.parametrize("name", ["dsa", "idc"])
def test_a_class_match_launches_few_kernels_with_ten_classes_at_once(name: str) -> None:
    """The figures of docs/performance.md."""
    alone, together = _class_match(name), _class_match(name, classes_at_once=CLASSES)
    assert alone.total("kernel") / CLASSES > 200
    assert together.total("kernel") / CLASSES <= 50
    assert together.total("upload") < alone.total("upload")


@pytest.mark.parametrize(
    ("name", "most", "steps"),
    [("dc", 1, "outer"), ("dsa", 1, "outer"), ("idc", 1, "rounds"), ("dm", 1, ""), ("cafe", 2, "most_steps")],
)
def test_a_class_match_never_waits(name: str, most: int, steps: str) -> None:
    """An iteration waits for its losses, and for what each training, and CAFE's tests, let it know."""
    few, many = _class_match(name, 4), _class_match(name, 12)
    assert few.total("wait") == many.total("wait") <= most
    assert many.total("download") == 0
    if steps:
        trained = _class_match(name, 4, **{steps: 3})
        assert trained.total("wait") <= most + 2 * (6 if name == "cafe" else 1)


def _assert_few(counts: dict[int, dict[str, int]], most: int) -> None:
    """At most `most` kernels a step; waits and copies as many for 12 steps as for 2, two dtypes of numbers apart."""
    more = {event: counts[12][event] - counts[2][event] for event in counts[2]}
    assert more["kernel"] / 10 <= most
    assert more["download"] == more["wait"] == 0 and more["upload"] <= 2


def _leaves_a_tensor_behind(x: torch.Tensor) -> torch.Tensor:
    return x * torch.ones(3)


def _asks_numpy(x: torch.Tensor) -> Any:
    return x.numpy()


def _draws_from_a_cpu_generator(x: torch.Tensor) -> torch.Tensor:
    return x.bernoulli_(0.5, generator=torch.Generator())


def _indexes_the_cpu(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(4, 3)[x.argmax(0)]


@pytest.mark.parametrize(
    "fault",
    [_leaves_a_tensor_behind, _asks_numpy, _draws_from_a_cpu_generator, _indexes_the_cpu],
    ids=lambda f: f.__name__,
)
def test_a_seeded_fault_in_a_job_is_caught(
    fault: Callable[[torch.Tensor], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same fault, put into the network of an evaluation, passes on the CPU and ends the job on the card."""
    workshop = Workshop.open(tmp_path, {"method": "random", **ONE}, networks=1)
    job = workshop.job("evaluate")
    context = workshop.context(job)
    embed = ConvNet.embed

    def faulty(network: ConvNet, x: torch.Tensor) -> torch.Tensor:
        fault(torch.zeros(4, 3, device=x.device))
        return embed(network, x)

    monkeypatch.setattr(ConvNet, "embed", faulty)
    with card():
        context.device = DEVICE
        with pytest.raises((RuntimeError, TypeError)):
            perform(context)
    perform(JobContext.alone(job, workshop.store))
