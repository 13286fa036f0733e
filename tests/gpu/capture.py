"""What of an inner step a card can record as a CUDA graph, stage by stage, and what it gains.

    python -m tests.gpu.capture        about a minute on a card; needs torch alone

Every stage is tried even if one before it fails: then the rest goes on in a fresh process, since a broken recording may
leave this one in a bad state. Of a failure the traceback and the last operators are printed.
"""

from __future__ import annotations

import gc
import logging
import os
import statistics
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.methods import Engine
from tests.workers.short_jobs import CARD_ENGINES
from workers.methods.trajectory import graphs
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.graphs import RECORDED, REFUSED
from workers.methods.trajectory.recorder import CudaRecorder
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, Student, batches_on
from workers.runtime.process import prepare_process
from workers.training.augmentation import OPERATIONS, Augmentation
from workers.training.instance_norm import InstanceNorm
from workers.training.networks import build, flatten

CUDA = torch.device("cuda")
NEAR, FAR = 1e-5, 0.2
"""Relative distance of two float32 results, TF32 in both, whose sums may be taken in another order: in most iterations,
and in one where an input of a ReLU within rounding of zero is on its other side."""
SIZES = {"IPC 1": (10, 50), "two images a class": (20, 50), "IPC 10": (100, 30)}
"""Images of a batch and inner steps, as in the recipes for CIFAR-10."""


@dataclass
class Problem:
    """Matching problems of one student; `seed` makes another of the same sizes."""

    student: Student
    side: int = 32
    classes: int = 10

    def match(self, engine: Engine, seed: int, sizes: tuple[int, ...], images: int) -> Matched:
        """One iteration with batches of these sizes out of so many images."""
        draws = torch.Generator().manual_seed(seed)
        shape, start = (self.side, self.side), flatten(self.student.module)
        moved = [0.01 * torch.randn(start.shape, generator=draws).to(CUDA) for _ in range(2)]
        union, labels = torch.randn(images, 3, *shape, generator=draws), torch.arange(images) % self.classes
        augmentation = self.student.augmentation
        batches = [
            InnerBatch(
                torch.randperm(images, generator=draws)[:size],
                augmentation and augmentation.draw(size, shape, draws, siamese=False),
            )
            for size in sizes
        ]
        step_size = torch.tensor(0.01 * (seed + 1), device=CUDA)
        begin, end = start + moved[0], start + moved[1]
        rest = (union.to(CUDA), labels.to(CUDA), step_size, batches_on(CUDA, batches))
        return ENGINES[engine](self.student, begin, end, *rest)


def problem(
    strategy: str = "none", *, width: int = 32, norm: str = "instance", architecture: str = "convnet"
) -> Problem:
    """A problem on images of CIFAR's size."""
    generator = torch.Generator().manual_seed(1)
    depth = 3 if architecture == "convnet" else None
    network = build(
        architecture, channels=3, size=32, classes=10, width=width, depth=depth, norm=norm, generator=generator
    )
    return Problem(Student(network.to(CUDA), Augmentation.parse(strategy, align_corners=True)))


def agreeing(case: Problem, iterations: int, sizes: tuple[int, ...], images: int) -> str:
    """Compare recorded steps with the adjoint over iterations that differ in everything.

    Raises:
        AssertionError: they differ, or nothing was recorded.
    """
    distances, same = [], True
    for seed in range(iterations):
        recorded, eager = (case.match(engine, seed, sizes, images) for engine in ("graphs", "adjoint"))  # type: ignore[arg-type]
        refused = case.student.kept.get(REFUSED)
        assert refused is None, f"the engine went back to the adjoint: {refused}"
        pairs = [(getattr(recorded, name), getattr(eager, name)) for name in ("loss", "images", "step_size")]
        distances.append(max(float((own - other).norm() / other.norm()) for own, other in pairs))
        same = same and all(torch.equal(own, other) for own, other in pairs)
    middle, worst = statistics.median(distances), max(distances)
    text = f"{middle:.1e} from the adjoint, at most {worst:.1e}"
    assert middle <= NEAR and worst <= FAR, text
    kinds = len(case.student.kept[RECORDED]._recordings)
    return f"{kinds} kinds of batches, {text}{', the same bits' if same else ''}"


def card() -> str:
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.total_memory >> 20} MiB, torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


def addition() -> str:
    total, one = torch.zeros(4, device=CUDA), torch.ones(4, device=CUDA)
    again = CudaRecorder(CUDA).record(lambda: total.add_(one))
    before = float(total[0])
    for _ in range(3):
        again()
    assert float(total[0]) == before + 3, f"{before} became {float(total[0])}"
    return f"three replays after {before:g} runs"


def refusal() -> str:
    """Work that waits for the card is refused, and streams, memory and random numbers are as before."""
    x, recorder = torch.ones(4, device=CUDA), CudaRecorder(CUDA)
    stream = torch.cuda.current_stream()
    try:
        recorder.record(lambda: x.mul_(float(x.sum())))
    except RuntimeError as error:
        text = str(error)
    else:
        raise AssertionError("it was recorded")
    assert torch.cuda.current_stream() == stream, "another stream is current"
    torch.cuda.empty_cache()
    torch.rand(4, device=CUDA)
    total = torch.zeros(4, device=CUDA)
    recorder.record(lambda: total.add_(x))()
    torch.cuda.synchronize()
    limit = 2 * torch.cuda.get_device_properties(0).total_memory
    try:
        torch.empty(limit, dtype=torch.uint8, device=CUDA)
    except torch.OutOfMemoryError:
        return text
    raise AssertionError("an allocation of twice the card succeeded")


def layer(module: nn.Module, *shape: int) -> Callable[[], str]:
    """A stage: a layer's gradient and the gradient of that."""

    def work() -> str:
        own = module.to(CUDA)
        x, sink = torch.randn(*shape, device=CUDA), torch.zeros((), device=CUDA)

        def twice() -> None:
            leaf = x.detach().requires_grad_()
            (first,) = torch.autograd.grad(own(leaf).square().sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), leaf)
            sink.copy_(second.norm())

        again = CudaRecorder(CUDA).record(twice)
        for _ in range(2):
            x.copy_(torch.randn(*shape, device=CUDA))
            again()
            recorded = float(sink)
            twice()
            assert abs(recorded - float(sink)) <= 1e-3 * abs(float(sink)), f"{recorded} for {float(sink)}"
        return ""

    return work


def operation(name: str) -> Callable[[], str]:
    """A stage: inner steps with one operation of the augmentation."""
    return lambda: agreeing(problem(name), 5, (10, 10, 10), 10)


def all_operations() -> str:
    return agreeing(problem("_".join(OPERATIONS)), 5, (16,) * 12, 40)


def short_batches() -> str:
    return agreeing(problem("color_flip"), 5, (16, 16, 8), 40)


def other_network(architecture: str, norm: str) -> Callable[[], str]:
    """A stage: inner steps of another network."""
    return lambda: agreeing(problem("flip", width=16, norm=norm, architecture=architecture), 5, (8, 8), 16)


def memory() -> str:
    """What recordings keep is given back with their student."""
    kept, first = _kept_and_left()
    kept, second = _kept_and_left()
    assert second <= first + kept / 10, f"{(second - first) >> 20} MiB of {kept >> 20} stay"
    return f"recordings keep {kept >> 20} MiB, {(second - first) >> 20} stay without them"


def _kept_and_left() -> tuple[int, int]:
    """Bytes that a student's recordings keep, and all that is reserved when it is gone."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    case = problem("_".join(OPERATIONS), width=128)
    case.match("graphs", 0, (20,) * 20, 20)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_reserved() - before
    del case  # no collection of cycles: there should be none
    torch.cuda.empty_cache()
    return kept, torch.cuda.memory_reserved()


def block_kernels() -> str:
    """Own kernels of a ConvNet's block agree with the operators; the time of both with two derivatives."""
    from workers.methods.trajectory import block_kernels as kernels

    kernels.require_agreement(CUDA)
    x, norm = torch.randn(100, 128, 32, 32, device=CUDA), InstanceNorm(128).to(CUDA)
    figures = []
    for by in (kernels.block, kernels.by_operators):
        for _ in range(3):
            kernels._derivatives(by, x, norm)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            kernels._derivatives(by, x, norm)
        torch.cuda.synchronize()
        figures.append(f"{100 * (time.perf_counter() - began):.2f} ms")
    return f"100 maps of 128 channels: {figures[0]}, by operators {figures[1]}"


def timing(name: str) -> Callable[[], str]:
    """A stage: an iteration of width 128 by every engine."""
    batch, steps = SIZES[name]

    def work() -> str:
        figures = []
        for engine in CARD_ENGINES:
            case = problem("_".join(OPERATIONS), width=128)
            began = time.perf_counter()
            for seed in range(3):
                float(case.match(engine, seed, (batch,) * steps, batch).loss)
            warm = time.perf_counter() - began
            seconds = statistics.median(_iteration(case, engine, batch, steps) for _ in range(5))
            figures.append(f"{engine} {1e3 * seconds:.1f} ms (first three {warm:.1f} s)")
            assert REFUSED not in case.student.kept, case.student.kept
        return f"{steps} steps of {batch} images: " + ", ".join(figures)

    return work


def without_tf32(name: str) -> Callable[[], str]:
    """The same where convolutions keep all bits of float32, for which cuDNN leaves maps in their layout."""

    def work() -> str:
        torch.backends.cudnn.allow_tf32 = False
        try:
            return timing(name)()
        finally:
            torch.backends.cudnn.allow_tf32 = True

    return work


def _iteration(case: Problem, engine: Engine, batch: int, steps: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    float(case.match(engine, 3, (batch,) * steps, batch).loss)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def kernels() -> str:
    """Kernels of an inner step as the card counts them, and the time that it is busy in one."""
    batch, figures = 10, []
    for engine in CARD_ENGINES:
        case, counts = problem("_".join(OPERATIONS), width=128), []
        for steps in (6, 12, 12):
            case.match(engine, 3, (batch,) * steps, batch)
        for steps in (6, 12):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                case.match(engine, 3, (batch,) * steps, batch)
                torch.cuda.synchronize()
            events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
            counts.append((len(events), sum(event.time_range.elapsed_us() for event in events)))
        (few, short), (many, long) = counts
        figures.append(f"{engine} {(many - few) / 6:.0f} and {(long - short) / 6:.0f} us")
    return ", ".join(figures)


STAGES: dict[str, Callable[[], str]] = {
    "card": card,
    "addition": addition,
    "convolution": layer(nn.Conv2d(8, 8, 3, padding=1), 4, 8, 16, 16),
    "linear layer": layer(nn.Linear(32, 8), 4, 32),
    "instance norm": layer(InstanceNorm(8), 4, 8, 16, 16),
    "relu": layer(nn.ReLU(), 4, 8, 16, 16),
    "pooling": layer(nn.AvgPool2d(2), 4, 8, 16, 16),
    "kernels of a block": block_kernels,
    "steps without augmentation": operation("none"),
    **{f"steps with {name}": operation(name) for name in OPERATIONS},
    "steps with all": all_operations,
    "short last batch": short_batches,
    "batch norm": other_network("convnet", "batch"),
    "group norm": other_network("convnet", "group"),
    "resnet10": other_network("resnet10", "instance"),
    "memory": memory,
    "refusal": refusal,
    "kernels": kernels,
    **{f"time of {name}": timing(name) for name in SIZES},
    **{f"time of {name} without TF32": without_tf32(name) for name in SIZES},
}


class _LastOperators(TorchDispatchMode):
    """Keeps the names of the last operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: deque[str] = deque(maxlen=4)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class _Failures(logging.Handler):
    """Prints why a recording failed, from which the engine goes back to the adjoint."""

    def __init__(self, last: _LastOperators) -> None:
        super().__init__()
        self._last = last

    def emit(self, record: logging.LogRecord) -> None:
        print("    the last operators:", ", ".join(self._last.names))
        if record.exc_info:
            print("".join(traceback.format_exception(*record.exc_info)), flush=True)


def tried(name: str) -> bool:
    """Run a stage and print how it ended, a second time with all that can be seen if it failed."""
    began = time.perf_counter()
    try:
        text = STAGES[name]()
    except Exception as error:
        print(f"FAILED {name}: {type(error).__name__}: {error}\n    again:", flush=True)
        _shown(STAGES[name])
        return False
    print(f"ok     {name} ({time.perf_counter() - began:.1f} s) {text}", flush=True)
    return True


def _shown(work: Callable[[], str]) -> None:
    last = _LastOperators()
    handler, log = _Failures(last), logging.getLogger(graphs.__name__)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with last:
            work()
        print("    no failure", flush=True)
    except Exception:
        print(f"    the last operators: {', '.join(last.names)}\n{traceback.format_exc()}", flush=True)
    finally:
        log.removeHandler(handler)


def main(first: int = 0, failures: int = 0) -> None:
    """Try the stages from this one on; after a failure go on in a new process."""
    if not torch.cuda.is_available():
        sys.exit("tests.gpu.capture: there is no CUDA here")
    prepare_process()
    for number, name in enumerate(STAGES):
        if number >= first and not tried(name):
            following = [str(number + 1), str(failures + 1)]
            os.execv(sys.executable, [sys.executable, "-m", "tests.gpu.capture", *following])
    sys.exit(f"{failures} stages failed" if failures else 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
