"""The compiled engine takes every kind of network, goes through batches in parts, and gives the exact gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from jobs.errors import BadInput
from tests.benchmarks.cases.case import distance
from workers.methods.trajectory import compiled
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, Student
from workers.training.augmentation import Augmentation
from workers.training.compute import SHAPES
from workers.training.networks import build, flatten

CLASSES, SIDE = 3, 16
FLIPS = Augmentation.parse("flip_color", align_corners=True)


def traced(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function in one graph of PyTorch's operators, as a compiler takes it, and without the compiler."""
    torch._dynamo.config.recompile_limit = SHAPES
    return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def network(architecture: str = "convnet", **more: Any) -> nn.Module:
    numbers = {"width": 4, "depth": 2, "norm": "instance"} | more
    return build(architecture, channels=1, size=SIDE, classes=CLASSES, generator=generator(1), **numbers).double()


def match(engine: Any, module: nn.Module, sizes: tuple[int, ...] = (5, 4)) -> Matched:
    """Two steps in float64 on batches of these sizes."""
    start = flatten(module)
    count = max(sizes)
    source = generator(2)
    batches = [
        InnerBatch(
            torch.randperm(count, generator=source)[:size], FLIPS.draw(size, (SIDE, SIDE), source, siamese=False)
        )
        for size in sizes
    ]
    target = start + 0.05 * normal(len(start), seed=3)
    labels, rate = torch.arange(count) % CLASSES, torch.tensor(0.1, dtype=torch.float64)
    return ENGINES[engine](
        Student(module, FLIPS), start, target, normal(count, 1, SIDE, SIDE, seed=4), labels, rate, batches
    )  # type: ignore[index]


def compared(module: nn.Module, sizes: tuple[int, ...] = (5, 4)) -> None:
    own, other = match("compiled", module, sizes), match("unrolled", module, sizes)
    torch.testing.assert_close(own.loss, other.loss, rtol=1e-11, atol=0)
    torch.testing.assert_close(own.images, other.images, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(own.step_size, other.step_size, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("sizes", [(25,), (26, 25), (51, 7)])
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "compiled_function", lambda function, device: function)
    compared(network(), sizes)


@pytest.mark.parametrize("count", [1, 7, 25, 26, 60, 101])
def test_parts_of_a_batch_have_one_size_of_which_the_compiler_has_to_know(count: int) -> None:
    images, shares = torch.ones(count, 1, 2, 2), torch.full((count, CLASSES), 0.25)
    parts = list(compiled._chunks(images, shares))
    assert len({len(part) for part, _ in parts}) == 1 and len(parts[0][0]) <= compiled.CHUNK
    together = torch.cat([own for _, own in parts])
    assert torch.equal(together[:count], shares) and not together[count:].any()


NETWORKS: dict[str, dict[str, Any]] = {
    **{f"{norm} norm": {"norm": norm} for norm in ("instance", "group", "layer", "none")},
    **{f"{pooling} pooling": {"pooling": pooling} for pooling in ("max", "none")},
    **{activation: {"activation": activation} for activation in ("leaky_relu", "sigmoid", "swish")},
    "resnet": {"architecture": "resnet10", "depth": None},
    "lenet": {"architecture": "lenet", "width": None, "depth": None},
    "mlp": {"architecture": "mlp", "width": 8, "depth": 2},
    "vit": {"architecture": "vit", "width": 64, "depth": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_compiler_can_take_each_kind_of_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiled_function", traced)
    compared(network(**NETWORKS[kind]), (5, 5))


def test_batch_norm_of_a_network_from_outside_is_refused() -> None:
    with pytest.raises(BadInput, match="batch norm"):
        match("compiled", network(norm="batch"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_code_gives_the_gradients_and_the_same_bits_again() -> None:
    module = network(activation="swish").float()  # smooth: no unit falls to the other side of zero
    start, images = flatten(module), torch.randn(12, 1, SIDE, SIDE, generator=generator(5))
    arguments = (start, start + 0.05 * torch.randn(len(start), generator=generator(6)), images)
    batches = [InnerBatch(torch.arange(12), None)] * 2
    rest = (torch.arange(12) % CLASSES, torch.tensor(0.1), batches)
    own, again, other = (
        ENGINES[engine](Student(module, None), *arguments, *rest)  # type: ignore[index]
        for engine in ("compiled", "compiled", "unrolled")
    )
    assert distance(own.images, other.images) < 1e-5 and distance(own.step_size, other.step_size) < 1e-5
    assert torch.equal(own.images, again.images) and torch.equal(own.step_size, again.step_size)
