"""The compiled engine takes every kind of network, goes through batches in parts, and gives the exact gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional as F

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


class Own(nn.Module):
    """A network of one's own whose maps [n, WIDTH, SIDE, SIDE] go through one more layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(1, WIDTH, 3, padding=1), layer
        self.last = nn.Linear(WIDTH * SIDE * SIDE, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.layer(self.first(images)).flatten(1))


class OverChannels(nn.LayerNorm):
    """A layer norm over the channels of a map, as ConvNeXt has it."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Formula(nn.Module):
    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, maps: Tensor) -> Tensor:
        return self.formula(maps)


class Unregistered(nn.Module):
    """A norm that is called from a list of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)
        self.steps = [self.norm]

    def forward(self, maps: Tensor) -> Tensor:
        return self.steps[0](maps)


class Groups(Unregistered):
    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(maps) * self.norm.num_groups


WIDTH = SIDE  # so that a norm over the wrong axis has the right number of weights
UNFIT: dict[str, Callable[[], nn.Module]] = {
    "batch norm as a function": lambda: Formula(lambda maps: F.batch_norm(maps, None, None, training=True)),
    "the mean of a batch": lambda: Formula(lambda maps: maps - maps.mean(0)),
    "the number of images": lambda: Formula(lambda maps: maps / len(maps)),
    "a norm in a list": Unregistered,
    "a number of the norm": Groups,
}
FIT: dict[str, Callable[[], nn.Module]] = {
    "a norm over channels": lambda: OverChannels(WIDTH),
    "a group norm without weights": lambda: nn.GroupNorm(2, WIDTH, affine=False),
    "a layer norm without a bias": lambda: nn.LayerNorm([WIDTH, SIDE, SIDE], bias=False),
    "division by an image's norm": lambda: Formula(
        lambda maps: maps / maps.flatten(1).norm(dim=1)[:, None, None, None]
    ),
}


def own(layer: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        module = Own(layer()).double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.1 * normal(*parameter.shape, seed=number))
    return module


@pytest.mark.parametrize("kind", UNFIT)
def test_a_network_of_ones_own_that_mixes_images_or_cannot_be_written_out_is_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="another engine"):
        match("compiled", own(UNFIT[kind]))


@pytest.mark.parametrize("kind", FIT)
def test_what_is_left_as_it_is_gives_the_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two parts of 14, of which one has a row that is filled up."""
    monkeypatch.setattr(compiled, "compiled_function", lambda function, device: function)
    compared(own(FIT[kind]), (27,))


def test_the_check_draws_nothing_and_leaves_the_network_alone() -> None:
    module = network()
    before = flatten(module)
    assert compiled.require_separate_images(module, (1, SIDE, SIDE)) == CLASSES
    assert torch.equal(flatten(module), before)


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
