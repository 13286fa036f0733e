"""HaBa: its images, losses and gradients against references written out, what its inner steps take, and its state."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from jobs.errors import Diverged
from jobs.learning import ImageOptimiserSpec
from jobs.methods import HabaSettings
from tests.workers.matched import resumed
from tests.workers.methods.trajectory import test_mtt
from tests.workers.methods.trajectory.test_mtt import ADAM, CLASSES, NUMBERS, SGD, generator, images
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.trajectory import haba
from workers.methods.trajectory.haba import FactorisedMatching, Hallucinator
from workers.methods.trajectory.trajectory_matching import InnerBatch
from workers.training.networks import Network, build, flatten, unflatten

Array = NDArray[np.float64]
IPC, COUNT, BASES = 5, 2, 3
"""Images of a class, hallucinators, and so bases of a class, the last of them with one image."""
EXTRACTOR = {"lr": 0.1, "momentum": 0.9, "classification": 1.0, "distance": 0.3, "contrast": 0.2}
HABA = {"hallucinators": COUNT, "lr_hallucinators": 0.05, "similarity": 0.4, "extractor": EXTRACTOR}


def settings(**changes: Any) -> HabaSettings:
    return HabaSettings(**{**NUMBERS, **HABA, **changes})


def extractor() -> Network:
    return build(
        "convnet", channels=1, size=4, classes=CLASSES, width=3, depth=1, norm="instance", generator=generator(9)
    )


def of_images(stage: Stage, ipc: int = IPC, **changes: Any) -> Stage:
    """The stage with so many images a class, and an extractor apart from the student."""
    starts = copy.copy(stage.start_networks)
    starts._random_network = lambda number: extractor()
    spec = stage.spec.model_copy(update={"method": "haba", "ipc_per_stage": ipc, **changes})
    return test_mtt._with(stage, spec=spec, start_networks=starts)


stage = test_mtt.stage


@pytest.fixture
def here(stage: Stage) -> Stage:
    return of_images(stage)


def canvas(ipc: int = IPC, optimiser: ImageOptimiserSpec = SGD, rate: float = 0.0, frozen: int = 3) -> LearnableImages:
    return LearnableImages(images(ipc, 11), images(frozen, 12), optimiser, 10, rate)


def shown(bases: Array, numbers: Array, shape: tuple[int, int, int]) -> Array:
    """The images [n, C, H, W] of a hallucinator, pixel by pixel."""
    channels, height, width = shape
    inner = (channels, height - 2, width - 2)
    sizes = [channels**2 * 9, channels, math.prod(inner), math.prod(inner), channels**2 * 9, channels]
    encoder, encoder_bias, scale, shift, decoder, decoder_bias = np.split(numbers, np.cumsum(sizes)[:-1])
    encoder, decoder = (weight.reshape(channels, channels, 3, 3) for weight in (encoder, decoder))
    made = np.zeros((len(bases), *shape)) + decoder_bias[:, None, None]
    for n, to, y, x in np.ndindex(len(bases), *inner):
        seen = (bases[n, :, y : y + 3, x : x + 3] * encoder[to]).sum() + encoder_bias[to]
        value = scale.reshape(inner)[to, y, x] * seen + shift.reshape(inner)[to, y, x]
        made[n, :, y : y + 3, x : x + 3] += value * decoder[to]
    return made


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 4, 5)])
def test_a_hallucinator_is_a_convolution_a_scale_and_shift_and_a_transposed_convolution(
    shape: tuple[int, int, int],
) -> None:
    form = Hallucinator(shape)
    numbers = torch.randn(sum(map(math.prod, form.shapes)), generator=generator(1), dtype=torch.float64)
    bases = torch.randn(2, *shape, generator=generator(2), dtype=torch.float64)
    np.testing.assert_allclose(form.images(bases, numbers).numpy(), shown(bases.numpy(), numbers.numpy(), shape))


def test_it_has_as_many_numbers_as_published() -> None:
    assert sum(map(math.prod, Hallucinator((3, 32, 32)).shapes)) == 5568


def test_its_first_convolutions_are_drawn_as_pytorch_s_and_its_scale_is_1() -> None:
    """Uniformly within 1 / sqrt(fan in), here of 27 numbers."""
    form, bound = Hallucinator((3, 8, 8)), 1 / math.sqrt(27)
    encoder, encoder_bias, scale, shift, decoder, decoder_bias = form.parts(form.first("random", generator()))
    assert bool((scale == 1).all()) and bool((shift == 0).all())
    for weight in (encoder, decoder):
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert 0.9 * bound < float(weight.abs().max()) <= bound
    assert 0 < float(encoder_bias.abs().max()) <= bound and not torch.equal(encoder_bias, decoder_bias)


def test_one_that_starts_as_the_identity_nearly_shows_the_basis_but_its_border() -> None:
    form, bases = Hallucinator((3, 8, 8)), torch.randn(4, 3, 8, 8, generator=generator(3))
    whole, part = (form.images(bases, form.first(start, generator(4))) for start in ("random", "identity"))  # type: ignore[arg-type]
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert float((part - bases)[inner].square().mean()) < 0.15 < float((whole - bases)[inner].square().mean())


def test_rows_of_a_basis_are_neighbours_of_one_class_and_one_set() -> None:
    labels = [0, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    assert haba.rows_by_basis(labels, 2) == [[0, 1], [2], [3, 4], [5], [6, 7], [8, 9]]


def cosines(features: Array) -> Array:
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(directions @ directions.T)


def test_similarity_is_the_mean_over_pairs_of_the_cosine_s_share() -> None:
    features = torch.randn(6, 7, generator=generator(5), dtype=torch.float64)
    expected = np.mean([(cosines(features.numpy())[row, row + 3] + 1) / 2 for row in range(3)])
    assert float(haba.similarity(features)) == pytest.approx(float(expected), rel=1e-12)


def contrast_written_out(features: Array, labels: list[int]) -> float:
    """Khosla et al. 2020, equation 2: for each row the mean over its class of minus its log-share among all others."""
    similar, losses = np.exp(cosines(features) / 0.07), []
    for row, label in enumerate(labels):
        others = [other for other in range(len(labels)) if other != row]
        total = sum(similar[row, other] for other in others)
        losses.append(np.mean([-np.log(similar[row, other] / total) for other in others if labels[other] == label]))
    return float(np.mean(losses))


def test_contrast_is_the_published_loss() -> None:
    features, labels = torch.randn(8, 5, generator=generator(6), dtype=torch.float64), [0, 1, 1, 2, 0, 1, 1, 2]
    expected = contrast_written_out(features.numpy(), labels)
    assert float(haba.contrast(features, torch.tensor(labels))) == pytest.approx(expected, rel=1e-12)


class Spy:
    """What a method draws and reads in an iteration: rows of each inner step, pairs, and experts' parameters."""

    def __init__(self, method: FactorisedMatching, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.pairs, self.read = list[list[int]](), list[InnerBatch](), list[Tensor]()
        next_rows, pairs, parameters = method._next_rows, method._pairs, method._experts.parameters
        monkeypatch.setattr(method, "_next_rows", lambda *a: self.rows.append(next_rows(*a)) or self.rows[-1])
        monkeypatch.setattr(method, "_pairs", lambda *a: self.pairs.append(pairs(*a)) or self.pairs[-1])
        monkeypatch.setattr(method._experts, "parameters", lambda *a: self.read.append(parameters(*a)) or self.read[-1])


class WrittenOut:
    """The published iteration in double precision: an inner step makes its images when it needs them."""

    def __init__(self, stage: Stage, bases: Tensor, numbers: Tensor, frozen: Tensor) -> None:
        self.student, self.extractor = copy.deepcopy(stage.network).double(), extractor().double()
        self.bases, self.numbers = (part.double().requires_grad_() for part in (bases, numbers))
        self.frozen = frozen.double()

    def images(self, rows: list[int]) -> Tensor:
        """By rows of the union: frozen ones, then class by class image k, basis k // 2 by hallucinator k % 2."""
        return torch.cat([self.image(row)[None] for row in rows])

    def image(self, row: int) -> Tensor:
        if row < len(self.frozen):
            return self.frozen[row]
        kind, k = divmod(row - len(self.frozen), IPC)
        basis, own = self.bases[kind * BASES + k // COUNT], self.numbers[k % COUNT]
        encoder, bias, scale, shift, decoder, last = torch.split(own, [9, 1, 4, 4, 9, 1])  # images of 4 x 4 pixels
        value = [
            (basis[0, y : y + 3, x : x + 3] * encoder.view(3, 3)).sum() * scale[2 * y + x] + bias * scale[2 * y + x]
            + shift[2 * y + x]
            for y, x in np.ndindex(2, 2)
        ]  # fmt: skip
        made = last.expand(1, 4, 4)
        for (y, x), one in zip(np.ndindex(2, 2), value, strict=True):
            made = made + nn.functional.pad(one * decoder.view(1, 3, 3), (x, 1 - x, y, 1 - y))
        return made

    def label(self, row: int) -> int:
        return row // 3 if row < len(self.frozen) else (row - len(self.frozen)) // IPC

    def matching(self, start: Tensor, target: Tensor, steps: list[list[int]]) -> Tensor:
        first, aim = start.double(), target.double()
        theta = first.clone().requires_grad_()
        for rows in steps:
            logits = functional_call(self.student, unflatten(theta, self.student), (self.images(rows),))
            loss = nn.functional.cross_entropy(logits, torch.tensor([self.label(row) for row in rows]))
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - 0.1 * slope
        return (theta - aim).square().sum() / (first - aim).square().sum()

    def alike(self, features: Tensor) -> Tensor:
        half = len(features) // 2
        dots = [a @ b / (a.norm() * b.norm()) for a, b in zip(features[:half], features[half:], strict=True)]
        return (torch.stack(dots).mean() + 1) / 2


def test_an_iteration_is_one_step_of_bases_and_hallucinators_along_a_reference_in_double_precision(
    here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, moved = FactorisedMatching(here, settings()), canvas()
    first = moved.new.view(CLASSES, IPC, 1, 4, 4)[:, ::COUNT].flatten(0, 1)
    spy = Spy(method, monkeypatch)
    method.begin(moved, draws := generator(2))
    numbers = method._hallucinators.values.clone()
    loss = method.iterate(moved, 0, draws)

    reference = WrittenOut(here, first, numbers, moved.union[: 3 * CLASSES])
    target, start = spy.read
    matching = reference.matching(start, target, spy.rows)
    pair = spy.pairs[0].index.tolist()
    alike = reference.alike(reference.extractor.embed(reference.images(pair)))
    total = matching + 0.4 * alike
    assert loss == pytest.approx(total.item(), rel=1e-4)
    to_bases, to_numbers = torch.autograd.grad(total, (reference.bases, reference.numbers))
    bases, hallucinators = method._bases.new.double(), method._hallucinators.values.double()
    torch.testing.assert_close(bases, first - 0.5 * to_bases, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(hallucinators, numbers - 0.05 * to_numbers, rtol=1e-4, atol=1e-6)
    assert float(to_bases.abs().max()) > 1e-3 < float(to_numbers.abs().max())


def test_the_extractor_learns_against_it_by_classes_distance_and_contrast(
    here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, moved = FactorisedMatching(here, settings()), canvas()
    spy = Spy(method, monkeypatch)
    method.begin(moved, draws := generator(2))
    method.iterate(moved, 0, draws)
    network, (_, pairs) = extractor().double(), spy.pairs
    features = network.embed(moved.union.double()[pairs.index])  # the images after their step
    labels = moved.labels[pairs.index]
    directions = nn.functional.normalize(features)
    half = len(features) // 2
    distance = ((1 - (directions[:half] * directions[half:]).sum(1)) / 2).mean()
    similar = (directions @ directions.T / 0.07).exp()
    others = similar * (1 - torch.eye(len(labels), dtype=torch.float64))
    mine = (labels[:, None] == labels) & ~torch.eye(len(labels), dtype=torch.bool)
    contrasts = [-(similar[row][mine[row]] / others[row].sum()).log().mean() for row in range(len(labels))]
    loss = nn.functional.cross_entropy(network.classifier(features), labels)
    loss = loss + 0.3 * distance + 0.2 * torch.stack(contrasts).mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = flatten(network) - 0.1 * torch.cat([gradient.flatten() for gradient in gradients])
    assert method._extractor is not None
    torch.testing.assert_close(method._extractor.weights.values.double(), expected, rtol=1e-4, atol=1e-6)


def test_the_new_images_are_always_those_of_bases_and_hallucinators(here: Stage) -> None:
    method, moved, draws = FactorisedMatching(here, settings()), canvas(), generator(3)
    real = moved.new.clone()
    seen = list[Tensor]()
    method.begin(moved, draws)
    for iteration in range(3):
        method.iterate(moved, iteration, draws)
        made = [
            shown(method._bases.new.double().numpy(), own.double().numpy(), (1, 4, 4))
            for own in method._hallucinators.values
        ]
        for kind, k in np.ndindex(CLASSES, IPC):
            image = moved.new[kind * IPC + k].numpy()
            np.testing.assert_allclose(image, made[k % COUNT][kind * BASES + k // COUNT], rtol=1e-4, atol=1e-5)
        seen.append(moved.new.clone())
    assert not any(torch.equal(one, other) for one, other in zip([real, *seen], seen, strict=False))


def test_an_inner_step_takes_one_image_of_each_new_basis_by_one_hallucinator(
    here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FactorisedMatching(here, settings(syn_steps=12))
    moved = LearnableImages(images(IPC, 11), None, SGD, 10)
    spy = Spy(method, monkeypatch)
    method.begin(moved, draws := generator(4))
    method.iterate(moved, 0, draws)
    used = set()
    for rows in spy.rows:
        assert len({(row // IPC, row % IPC // COUNT) for row in rows}) == len(rows) == CLASSES * BASES
        (number,) = {
            row % IPC % COUNT for row in rows if row % IPC < IPC - 1
        }  # the last basis of a class has one image
        used.add(number)
    assert used == {0, 1}
    for pairs in spy.pairs:
        first, second = pairs.index.chunk(2)
        assert torch.equal(first // IPC, second // IPC) and torch.equal(first % IPC // COUNT, second % IPC // COUNT)
        whole = first % IPC < IPC - 1
        assert bool((first != second)[whole].all())


def test_batch_syn_counts_bases(here: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    method = FactorisedMatching(here, settings(batch_syn=4, syn_steps=2))
    spy = Spy(method, monkeypatch)
    method.begin(moved := canvas(), draws := generator(4))
    method.iterate(moved, 0, draws)
    assert [len(rows) for rows in spy.rows] == [4, 4] and len(spy.pairs[0].index) == 8


@pytest.mark.parametrize("ipc", [1, 2, 5])
def test_a_class_of_few_images_has_as_many_hallucinators_and_one_image_no_extractor(stage: Stage, ipc: int) -> None:
    method, moved = FactorisedMatching(of_images(stage, ipc), settings(hallucinators=7)), canvas(ipc)
    method.begin(moved, draws := generator(5))
    method.iterate(moved, 0, draws)
    assert method._hallucinators.values.shape == (ipc, 28) and len(method._bases.new) == CLASSES
    assert (method._extractor is None) == (ipc == 1) == ("extractor/values" not in method.state()[0])


def test_frozen_images_stay_and_those_of_an_earlier_rate_learn_as_they_are(stage: Stage) -> None:
    for rate in (0.0, 0.5):
        moved = canvas(rate=rate)
        before = moved.union[: 3 * CLASSES]
        method = FactorisedMatching(of_images(stage, earlier_rate=rate), settings())
        method.begin(moved, generator())
        for iteration in range(2):
            method.iterate(moved, iteration, generator(iteration))
        assert torch.equal(moved.union[: 3 * CLASSES], before) == (rate == 0)
        assert torch.equal(moved.new, method._images(method._bases.new, method._hallucinators.values))


def test_every_engine_gives_the_same(here: Stage) -> None:
    ends = []
    for engine in ("unrolled", "adjoint"):
        spec = here.spec.model_copy(update={"settings": {**here.spec.settings, "engine": engine}})
        method, moved, draws = (
            FactorisedMatching(replace(here, spec=spec), settings(engine=engine)),
            canvas(),
            generator(6),
        )
        method.begin(moved, draws)
        losses = [method.iterate(moved, iteration, draws) for iteration in range(2)]
        ends.append((losses, moved.new))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_stage_goes_on_from_a_state_bit_for_bit(stage: Stage, optimiser: ImageOptimiserSpec, before: int) -> None:
    numbers = settings(augmentation="crop_flip", batch_syn=4)
    methods = [FactorisedMatching(of_images(stage, image=optimiser), numbers) for _ in range(2)]
    canvases = [canvas(optimiser=optimiser) for _ in range(2)]
    straight, again = resumed(*methods, *canvases, before=before)
    assert straight == again
    (arrays, _), (others, _) = (method.state() for method in methods)
    assert arrays.keys() == others.keys() >= {"bases/new", "hallucinators/values", "extractor/values"}
    assert all(np.array_equal(arrays[name], others[name]) for name in arrays)


def test_images_that_leave_the_finite_numbers_end_the_stage(here: Stage) -> None:
    method, moved = FactorisedMatching(here, settings(lr_hallucinators=1e30)), canvas()
    method.begin(moved, generator())
    with pytest.raises(Diverged, match=r"iteration [12]: .*lower distil\.image\.lr, lr_hallucinators or lr_step_size"):
        for iteration in range(3):
            method.iterate(moved, iteration, generator())


def test_it_is_found_by_its_name_takes_no_soft_labels_and_needs_its_numbers() -> None:
    assert method_named("haba") is FactorisedMatching and not FactorisedMatching.soft_labels
    with pytest.raises(ValidationError, match="hallucinators"):
        settings(hallucinators=0)
