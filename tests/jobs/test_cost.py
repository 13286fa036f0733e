"""`jobs.cost`: FLOPs counted by hand and by torch, and estimates that order jobs as their work does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from jobs.architectures import ARCHITECTURES, architecture_named
from jobs.cost import (
    ADJOINT,
    CENTROID_CALLS,
    CLUSTERING_CALLS,
    CLUSTERING_PASSES,
    COMPILED,
    DECODING,
    ITERATIONS,
    LIBRARY,
    LIGHT,
    MATCHED_CALL,
    READING,
    RECORDED,
    Match,
    effort,
    fit,
    forward_flops,
    signature,
    sizes,
    work,
)
from jobs.graph import Graph
from jobs.learning import ImageOptimiserSpec
from jobs.machines import (
    APART,
    CALL,
    CORE,
    GPU,
    INNER_CALL,
    INNER_NUMBER,
    NUMBER,
    RATE,
    START,
    WEIGHT,
    Effort,
    estimate,
    slowness,
)
from jobs.methods import Engine
from jobs.specs import (
    ChoiceSpec,
    DatasetSpec,
    DistilSpec,
    EvaluateSpec,
    ExpertsSpec,
    ForgettingSpec,
    FullSpec,
    Mode,
    NetworkSpec,
    SelectSpec,
    SgdSpec,
    TransitionSpec,
)

NETWORK = NetworkSpec(width=4, depth=2)
FORWARD = 2.0 * (8 * 8 * 9 * 1 * 4 + 4 * 4 * 9 * 4 * 4 + 2 * 2 * 4 * 5)
"""FLOPs of NETWORK on one 8x8 grey image of 5 classes: two convolutions and the classifier."""
LAYERS = 3
NUMBERS = 8 * 8 * 4 + 4 * 4 * 4 + 5
"""What the layers of NETWORK give for one image."""
WEIGHTS = (9 * 4 + 4 + 2 * 4) + (9 * 4 * 4 + 4 + 2 * 4) + (16 * 5 + 5)
"""Those of NETWORK, with biases and norms."""
DISTANCES = 2.0 * 100 * 8 * 16
"""FLOPs of the distances of 100 real images from 8 centroids, by the 16 features of NETWORK."""


def dataset(channels: int = 1, size: int = 8, classes: int = 5) -> DatasetSpec:
    return DatasetSpec(
        name="d",
        fingerprint="f",
        channels=channels,
        height=size,
        width=size,
        classes=classes,
        train_images=100,
        normalise="measured",
        validation_per_class=1,
    )


def sgd(epochs: int, **more: Any) -> SgdSpec:
    return SgdSpec(epochs=epochs, lr=0.1, batch_size=32, **more)


def distil(stage: int = 1, ipc: int = 2, **more: Any) -> DistilSpec:
    fields: dict[str, Any] = {
        "method": "mtt",
        "stage": stage,
        "ipc": ipc,
        "network": NETWORK,
        "iterations": 10,
        "image": ImageOptimiserSpec(lr=1.0),
        "choice": ChoiceSpec(every=4, networks=2, training=sgd(7)),
        "settings": {"syn_steps": 3},
    }
    return DistilSpec(**{**fields, **more})


class Chain:
    """A dataset of 100 images in 5 classes, and the sets S_1 and S_2 of 10 and 15 images."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.data = self.graph.add(dataset())
        self.sets = [self.graph.add(distil(1, ipc=2), {"dataset": [self.data]})]
        self.sets.append(self.graph.add(distil(2, ipc=3), {"dataset": [self.data], "sets": self.sets}))

    def work(self, spec: Any, **parents: list[str]) -> float:
        key = self.graph.add(spec, {"dataset": [self.data], **parents})
        return work(self.graph[key], self.graph)

    def effort(self, spec: Any, **parents: list[str]) -> Effort:
        return effort(self.graph[self.graph.add(spec, {"dataset": [self.data], **parents})], self.graph)

    def seconds(self, spec: Any, **parents: list[str]) -> float:
        return estimate(self.effort(spec, **parents))


@pytest.fixture
def chain() -> Chain:
    return Chain()


# -------------------------------------------------------------------------------------- forward pass


@pytest.mark.parametrize(
    ("width", "mega"),
    [(128, 101.5), (32, 7.7)],
)
def test_the_published_convnet_takes_101_million_flops_for_a_cifar_image(width: int, mega: float) -> None:
    flops = forward_flops(NetworkSpec(width=width), dataset(3, 32, 10))
    assert round(flops / 1e6, 1) == mega
    blocks = 32 * 32 * 27 * width + (16 * 16 + 8 * 8) * 9 * width * width
    assert flops == 2 * (blocks + 4 * 4 * width * 10)


def test_a_grey_image_of_28_pixels_costs_as_much_as_one_of_32() -> None:
    assert forward_flops(NetworkSpec(), dataset(1, 28)) == forward_flops(NetworkSpec(), dataset(1, 32))
    assert forward_flops(NetworkSpec(), dataset(3, 28)) < forward_flops(NetworkSpec(), dataset(3, 32))


def test_a_small_resnet_counted_by_hand() -> None:
    network = NetworkSpec(architecture="resnet10", width=2)
    stem = 8 * 8 * 9 * 1 * 2
    first = 8 * 8 * 9 * (2 * 2 + 2 * 2)
    second = 4 * 4 * (9 * (2 * 4 + 4 * 4) + 2 * 4)
    third = 2 * 2 * (9 * (4 * 8 + 8 * 8) + 4 * 8)
    fourth = 2 * 2 * (9 * (8 * 16 + 16 * 16) + 8 * 16)  # 2x2 maps are not halved
    assert forward_flops(network, dataset()) == 2 * (stem + first + second + third + fourth + 16 * 5)


@pytest.mark.slow  # for importing torch, which nothing else here does
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 9), (3, 32), (3, 64)])
def test_torch_counts_the_same_flops_for_the_networks_that_are_trained(
    architecture: str, channels: int, size: int
) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from workers.training.networks import build

    width = 4 * architecture_named(architecture).width_multiple
    spec = NetworkSpec.model_validate({"architecture": architecture, "width": width})
    network = build(
        architecture,
        channels=channels,
        size=size,
        classes=5,
        width=width,
        depth=None,
        norm="instance",
        generator=torch.Generator(),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, channels, size, size))
    assert forward_flops(spec, dataset(channels, size)) == counter.get_total_flops()


# -------------------------------------------------------------------------------------- work by kind


def test_full_data_is_three_forward_passes_an_image_and_epoch(chain: Chain) -> None:
    assert chain.work(FullSpec(network=NETWORK, training=sgd(6), index=0)) == 3 * FORWARD * 100 * 6
    again = FullSpec(network=NETWORK, training=sgd(6, extra_epoch=True), index=0)
    assert chain.work(again) == 3 * FORWARD * 100 * 7


def test_experts_are_counted_each_with_their_transition_on_the_union(chain: Chain) -> None:
    first = ExpertsSpec(stage=1, first=0, count=4, network=NETWORK, real=sgd(6))
    assert chain.work(first) == 4 * 3 * FORWARD * 100 * 6
    later = ExpertsSpec(stage=3, first=0, count=4, network=NETWORK, real=sgd(6), transition=TransitionSpec(epochs=20))
    assert chain.work(later, sets=chain.sets) == 4 * 3 * FORWARD * (100 * 6 + (10 + 15) * 20)


@pytest.mark.parametrize(
    ("mode", "images"), [("progressive", 10 + (10 + 15)), ("union", 10 + 15), ("sequential", 10 + 15)]
)
def test_an_evaluation_trains_on_what_its_mode_says(chain: Chain, mode: Mode, images: int) -> None:
    spec = EvaluateSpec(mode=mode, network=NETWORK, training=sgd(6), index=0)
    assert chain.work(spec, sets=chain.sets) == 3 * FORWARD * images * 6


def test_an_evaluation_of_selected_images_counts_them_too(chain: Chain) -> None:
    chosen = chain.graph.add(SelectSpec(rule="random", ipc_total=4), {"dataset": [chain.data]})
    spec = EvaluateSpec(network=NETWORK, training=sgd(6), index=0)
    assert chain.work(spec, sets=[chosen]) == 3 * FORWARD * 5 * 4 * 6


def test_a_stage_is_its_inner_steps_and_the_networks_that_judge_it(chain: Chain) -> None:
    """Iterates 4, 8 and the last are judged, each by 2 networks of 7 epochs on the union."""
    matching = 9 * FORWARD * 3 * 10 * 10
    assert work(chain.graph[chain.sets[0]], chain.graph) == matching + 3 * 2 * 7 * 10 * 3 * FORWARD
    matching = 9 * FORWARD * 3 * 15 * 10
    assert work(chain.graph[chain.sets[1]], chain.graph) == matching + 3 * 2 * 7 * 25 * 3 * FORWARD


def test_a_stage_that_keeps_its_last_iterate_judges_none(chain: Chain) -> None:
    spec = distil(choice=ChoiceSpec(by="last", training=sgd(7)))
    assert chain.work(spec) == 9 * FORWARD * 3 * 10 * 10


@pytest.mark.parametrize(
    ("settings", "conditioning", "steps", "batch"),
    [
        ({"syn_steps": 3, "batch_syn": 8}, True, 3, 8),
        ({"syn_steps": 3, "batch_syn": 20}, True, 3, 20),
        ({"syn_steps": 3, "batch_syn": 20}, False, 3, 15),
        ({"syn_steps": 3, "batch_syn": 900}, True, 3, 25),
        ({"syn_steps": 3, "batch_syn": None}, True, 3, 15),
        ({}, True, 10, 15),
    ],
)
def test_an_inner_batch_is_what_the_settings_say_or_the_new_images_and_never_more_than_there_are(
    chain: Chain, settings: dict[str, Any], conditioning: bool, steps: int, batch: int
) -> None:
    last = ChoiceSpec(by="last", training=sgd(7))
    spec = distil(2, ipc=3, settings=settings, conditioning=conditioning, choice=last)
    assert chain.work(spec, sets=chain.sets[:1]) == 9 * FORWARD * steps * batch * 10


def test_forgetting_trains_its_runs_or_only_counts_what_experts_kept(chain: Chain) -> None:
    spec = ForgettingSpec(network=NETWORK, training=sgd(6), runs=2)
    assert chain.work(spec) == 2 * 3 * FORWARD * 100 * 6
    experts = chain.graph.add(
        ExpertsSpec(stage=1, first=0, count=1, network=NETWORK, real=sgd(6)), {"dataset": [chain.data]}
    )
    assert chain.work(spec, experts=[experts]) == LIGHT


def test_a_data_set_costs_the_reading_of_its_bytes_and_the_decoding_of_what_is_kept(chain: Chain) -> None:
    whole = chain.graph[chain.data]
    pixels = whole.spec.channels * whole.spec.height * whole.spec.width
    assert effort(whole, chain.graph) == Effort(LIGHT, seconds=READING * pixels * 100 + DECODING * 100)
    reduced = chain.graph.add(whole.spec.model_copy(update={"train_per_class": 2, "name": "digits"}), {})
    taken = READING * pixels * 100 + DECODING * 10 + LIBRARY
    assert effort(chain.graph[reduced], chain.graph).seconds == pytest.approx(taken)


def test_random_selections_cost_next_to_nothing(chain: Chain) -> None:
    assert chain.work(SelectSpec(rule="random", ipc_total=1)) == LIGHT


def test_herding_and_k_center_look_at_the_features_of_all_training_images(chain: Chain) -> None:
    spec = ExpertsSpec(stage=1, first=0, count=1, network=NETWORK, real=sgd(6))
    experts = [chain.graph.add(spec, {"dataset": [chain.data]})]
    for rule in ("herding", "k_center"):
        chosen = SelectSpec.model_validate({"rule": rule, "ipc": 1})
        assert chain.work(chosen, experts=experts) == LIGHT + FORWARD * 100


def test_without_conditioning_a_link_is_trained_on_the_newest_set_alone(chain: Chain) -> None:
    def link(on: str) -> float:
        transition = TransitionSpec.model_validate({"epochs": 4, "lr": 0.1, "batch_size": 32, "on": on})
        spec = ExpertsSpec(stage=3, first=0, count=1, network=NETWORK, real=sgd(6), transition=transition)
        return chain.work(spec, sets=chain.sets) - chain.work(spec.model_copy(update={"transition": None}))

    assert link("union") == pytest.approx(3 * FORWARD * 4 * 25)
    assert link("newest") == pytest.approx(3 * FORWARD * 4 * 15)


def test_in_class_incremental_learning_a_link_has_the_sets_of_all_phases() -> None:
    """Two phases of two stages: a link on 10 + 10 images, then one on 25 + 25."""
    chain = Chain()
    spec = EvaluateSpec(network=NETWORK, training=sgd(6), index=0, phases=((0, 1, 2), (3, 4)))
    assert chain.work(spec, sets=chain.sets * 2) == pytest.approx(3 * FORWARD * 6 * (20 + 50))


# ----------------------------------------------------------------------------------------- by method


def iteration(method: str, settings: dict[str, Any], **more: Any) -> Effort:
    """What one iteration costs with 20 real images and, in stage 1, 2 synthetic ones in each of 5 classes."""
    chain = Chain()
    spec = distil(method=method, settings=settings, iterations=1, choice=ChoiceSpec(by="last"), **more)
    key = chain.graph.add(spec, {"dataset": [chain.data], "sets": chain.sets[: spec.stage - 1]})
    return effort(chain.graph[key], chain.graph)


TRAINING = {"epochs": 3, "batch_size": 4}


@pytest.mark.parametrize(
    ("method", "settings", "forward_passes", "calls", "inner_calls"),
    [
        # 7 steps of 6 of the 10 images, each differentiated twice
        ("mtt", {"syn_steps": 7, "batch_syn": 6}, 7 * 9 * 6, 0, 7),
        # 4 times 5 classes: 8 real images (3 passes each), 2 synthetic (9); between them 3 epochs of 10 in 3 batches
        (
            "dc",
            {"outer": 4, "batch_real": 8, "training": TRAINING},
            4 * 5 * (3 * 8 + 9 * 2) + 3 * 3 * 3 * 10,
            4 * 5 + 3 * 3 * 3,
            MATCHED_CALL * 4 * 5,
        ),
        # a class has no more than 20 real images
        ("dsa", {"outer": 1, "batch_real": 256, "training": TRAINING}, 5 * (3 * 20 + 9 * 2), 5, MATCHED_CALL * 5),
        # as dc, but training on 12 real images in 3 batches, and with one synthetic image of a class
        (
            "idc",
            {"rounds": 4, "batch_real": 8, "max_synthetic": 1, "n_data": 12, "training": TRAINING},
            4 * 5 * (3 * 8 + 9) + 3 * 3 * 3 * 12,
            4 * 5 + 3 * 3 * 3,
            MATCHED_CALL * 4 * 5,
        ),
        # as idc, and the 100 real images are embedded and clustered, class by class, in rounds 0 and 3
        (
            "dream",
            {
                "rounds": 4,
                "batch_real": 8,
                "max_synthetic": 1,
                "n_data": 12,
                "training": TRAINING,
                "recluster_every": 3,
            },
            4 * 5 * (3 * 8 + 9) + 3 * 3 * 3 * 12 + 2 * (100 + CLUSTERING_PASSES["sklearn"] * DISTANCES / FORWARD),
            4 * 5 + 3 * 3 * 3 + 2 * 5 * (CLUSTERING_CALLS + 8 * CENTROID_CALLS) / LAYERS,
            MATCHED_CALL * 4 * 5,
        ),
        # 5 classes: 8 real images once, 2 synthetic ones there and back
        ("dm", {"batch_real": 8}, 5 * (8 + 3 * 2), 5, 0),
        # 4 image steps, each followed by a look at 5 * 6 images; after three of them 2 epochs of 10 synthetic images in
        # 2 batches, with a look each
        (
            "cafe",
            {"batch_real": 8, "probe": 6, "window": 2, "most_steps": 4, "most_epochs": 8, "batch_train": 5},
            4 * (5 * (8 + 3 * 2) + 30) + 3 * 2 * (3 * 10 + 30),
            4 * 5 + 3 * 2 * 2,
            0,
        ),
        # 3 steps of all 10 images, each differentiated twice, and a gradient of 40 real ones
        ("dd", {"syn_steps": 3, "batch": 40}, 3 * 9 * 10 + 3 * 40, 1, 3),
        # 2 steps of 6 images differentiated, and 0 to 4 before them that are not: 2 in the mean
        (
            "rat_bptt",
            {"syn_steps": 6, "window": 2, "ends": "random", "batch_syn": 6, "batch": 40},
            2 * 9 * 6 + 2 * 3 * 6 + 3 * 40,
            2 + 1,
            2,
        ),
        # a look at 40 real images and a gradient of all 10 synthetic ones, by each of 4 networks
        ("rfad", {"batch": 40, "networks": 4}, 4 * (40 + 3 * 10), 4, 0),
        # a look at 40 real images, a gradient of all 10 synthetic ones, a training step on 6 of them
        # 4 steps on 10 images, each once forward and once more to be differentiated by its images
        ("tesla", {"syn_steps": 4}, 4 * (3 + 9) * 10, 4, MATCHED_CALL * 4),
        # 4 steps of which a graph is kept, on batches of 6
        ("datm", {"syn_steps": 4, "batch_syn": 6}, 4 * 9 * 6, 0, 4),
        # 4 steps on one image of each of 5 bases; two of each, once for a gradient and once for a training step
        ("haba", {"syn_steps": 4, "hallucinators": 3}, 4 * 9 * 5 + 2 * 3 * 10, 2, 4),
        ("haba", {"syn_steps": 4, "hallucinators": 1}, 4 * 9 * 10, 0, 4),
        ("frepo", {"batch": 40, "batch_train": 6}, 40 + 3 * 10 + 3 * 6, 2, 0),
    ],
)
def test_an_iteration_of_each_method_counted_by_hand(
    method: str, settings: dict[str, Any], forward_passes: int, calls: float, inner_calls: float
) -> None:
    one = iteration(method, settings)
    assert one.flops == pytest.approx(FORWARD * forward_passes)
    assert (one.calls, one.inner_calls) == pytest.approx((LAYERS * calls, LAYERS * inner_calls))


def test_the_adjoint_costs_a_quarter_more_compiled_code_less_and_recorded_steps_hardly_any_calls() -> None:
    engines = {name: iteration("mtt", {"syn_steps": 7, "engine": name}) for name in get_args(Engine)}
    whole, recorded = engines["unrolled"], engines["graphs"]
    assert engines["adjoint"] == whole.times(ADJOINT)
    calls, moved = COMPILED
    assert engines["compiled"] == replace(
        whole, inner_calls=calls * whole.inner_calls, inner_numbers=moved * whole.inner_numbers
    )
    assert 0.7 < (estimate(engines["compiled"]) - START) / (estimate(whole) - START) < 0.9
    flops, calls = RECORDED
    assert recorded == replace(whole.times(flops), inner_calls=calls * whole.inner_calls)


@pytest.mark.parametrize(
    ("needed", "seconds"), [(Effort(4e13, calls=1e3), 2.0), (Effort(2e13, calls=500, inner_calls=1000), 2.9)]
)
def test_a_card_computes_while_later_calls_are_made(needed: Effort, seconds: float) -> None:
    assert estimate(needed, GPU) - START == pytest.approx(seconds)
    assert estimate(needed, replace(GPU, overlaps=False)) > 1.3 * seconds


@pytest.mark.parametrize(
    ("engine", "steps", "images", "measured"),
    [
        ("unrolled", 50, 10, 0.492),
        ("graphs", 50, 10, 0.063),
        ("graphs", 30, 100, 0.115),
        ("unrolled", 30, 500, 0.659),
        ("adjoint", 30, 500, 0.837),
    ],
)
def test_matching_on_an_h200_is_priced_as_it_was_measured(
    engine: str, steps: int, images: int, measured: float
) -> None:
    """An iteration of MTT at width 128 on images of CIFAR's size (docs/performance.md)."""
    match = Match(1.0143e8, 4, 2048, classes=10, real=5000, new=images, union=images)
    needed = ITERATIONS["mtt"](match, {"syn_steps": steps, "engine": engine})
    assert 0.8 <= (estimate(needed, GPU) - START) / measured <= 1.25


def test_a_clustering_at_paper_scale_is_priced_as_it_was_measured() -> None:
    """One core, 4,500 images with 2,048 features to 128 clusters: 3.1 and 0.35 s, 450 images 0.29 and 0.08 s."""
    for real, measured in ((4500, {"sklearn": 3.1, "torch": 0.35}), (450, {"sklearn": 0.29, "torch": 0.08})):
        for clustering, measured_seconds in measured.items():
            match = Match(0.0, 3, 2048, classes=1, real=real, new=1, union=1, clustering=clustering)  # type: ignore[arg-type]
            assert 0.5 <= estimate(match.clustered(128)) / (measured_seconds + START) <= 2


@pytest.mark.slow  # for importing torch
def test_every_built_in_method_has_a_count_of_its_own() -> None:
    pytest.importorskip("torch")
    from workers.methods import _BUILT_IN

    assert set(ITERATIONS) == set(_BUILT_IN)


def test_cafe_with_an_augmentation_costs_as_much_and_an_unknown_method_counts_as_mtt() -> None:
    numbers = {"batch_real": 8, "probe": 6, "window": 2, "most_steps": 4, "most_epochs": 8, "batch_train": 5}
    assert iteration("cafe_dsa", numbers) == iteration("cafe", numbers)
    assert iteration("toy.module:Class", {"syn_steps": 7}) == iteration("mtt", {"syn_steps": 7})


def test_the_class_s_frozen_images_are_matched_too_unless_there_is_no_conditioning() -> None:
    alone, conditioned = (iteration("dm", {"batch_real": 8}, stage=2, conditioning=given) for given in (False, True))
    assert conditioned.flops - alone.flops == pytest.approx(FORWARD * 3 * 10)


def test_chains_cost_a_training_on_every_union_for_each_network_of_the_pool() -> None:
    link = TransitionSpec(epochs=4, lr=0.1, batch_size=32)

    def chains(iterations: int, starts: int | None) -> float:
        def total(transition: TransitionSpec | None) -> float:
            chain = Chain()
            spec = distil(
                3,
                method="dm",
                settings={"batch_real": 8},
                choice=ChoiceSpec(by="last"),
                transition=transition,
                iterations=iterations,
                starts=starts,
            )
            return chain.work(spec, sets=chain.sets)

        return total(link) - total(None)

    one_chain = 3 * FORWARD * 4 * (10 + 25)
    assert chains(6, None) == pytest.approx(6 * one_chain)
    assert chains(6, 2) == pytest.approx(2 * one_chain)
    assert chains(6, 50) == pytest.approx(6 * one_chain)


def test_a_stored_image_counts_as_the_images_that_are_decoded_from_it() -> None:
    assert iteration("dm", {"batch_real": 8}, factor=2).flops == pytest.approx(FORWARD * 5 * (8 + 3 * 8))
    chain = Chain()
    formation = distil(method="idc", factor=2, settings={"rounds": 1})
    sets = [chain.graph.add(formation, {"dataset": [chain.data]})]
    spec = EvaluateSpec(network=NETWORK, training=sgd(6), index=0)
    assert chain.work(spec, sets=sets) == pytest.approx(3 * FORWARD * 4 * 10 * 6)


# ------------------------------------------------------------------------------------------- seconds


def test_seconds_are_the_calls_of_layers_their_flops_and_the_memory_that_they_move(chain: Chain) -> None:
    """Of 100 images in batches of 32 there are 4 steps an epoch; of 10 or 25 one."""
    full = FullSpec(network=NETWORK, training=sgd(6), index=0)
    moved = NUMBER * NUMBERS * 100 * 6 + WEIGHT * WEIGHTS * 4 * 6
    assert chain.seconds(full) == pytest.approx(START + CALL * LAYERS * 4 * 6 + 3 * FORWARD * 100 * 6 / RATE + moved)
    stage = chain.graph[chain.sets[1]]
    calls = INNER_CALL * LAYERS * 3 * 10 + CALL * LAYERS * 3 * 2 * 7
    moved = INNER_NUMBER * NUMBERS * 3 * 10 * 15 + NUMBER * NUMBERS * 3 * 2 * 7 * 25 + WEIGHT * WEIGHTS * 3 * 2 * 7
    assert estimate(effort(stage, chain.graph)) == pytest.approx(
        START + calls + work(stage, chain.graph) / RATE + moved
    )


def test_a_tiny_network_is_not_estimated_at_zero(chain: Chain) -> None:
    spec = FullSpec(network=NetworkSpec(width=1, depth=1), training=sgd(1000), index=0)
    assert work(chain.graph[chain.graph.add(spec, {"dataset": [chain.data]})], chain.graph) / RATE < 0.1
    assert chain.seconds(spec) > 1.9


def test_a_look_moves_a_third_of_a_step_s_numbers_and_no_weights() -> None:
    match = Match(FORWARD, LAYERS, 16, classes=5, real=100, new=10, union=10, numbers=NUMBERS, weights=WEIGHTS)
    step, look = match.step(10), match.seen(10)
    assert (step.numbers, step.weights) == (10 * NUMBERS, WEIGHTS)
    assert (look.numbers, look.weights) == (pytest.approx(10 * NUMBERS / 3), 0)


def test_weights_count_in_every_step_and_numbers_for_every_image() -> None:
    size = sizes(NETWORK, 1, 8, 5)
    assert (size.numbers, size.weights, size.forward) == (NUMBERS, WEIGHTS, FORWARD)
    few, many = fit(size, sgd(1).model_copy(update={"batch_size": 50}), 100), fit(size, sgd(1), 100)
    assert (few.numbers, few.weights, many.weights) == (many.numbers, 2 * WEIGHTS, 4 * WEIGHTS)


# Seconds on one core of an AMD EPYC with AVX-512, idle, 27 November 2026: SGD steps and inner steps of `unrolled`.
STEPS = [
    ("convnet", 4, 2, (1, 8), 16, 6.3e-4),
    ("convnet", 32, 2, (1, 8), 64, 1.8e-3),
    ("convnet", 16, 3, (1, 28), 256, 3.46e-2),
    ("convnet", 32, 3, (3, 32), 64, 2.0e-2),
    ("convnet", 128, 3, (3, 32), 16, 3.44e-2),
    ("resnet18", 64, None, (1, 8), 16, 7.3e-2),
]
INNER_STEPS = [(4, 2, 8, 10, 2.26e-3), (32, 2, 8, 100, 8.9e-3), (32, 3, 32, 50, 5.76e-2), (128, 3, 32, 10, 7.5e-2)]


@pytest.mark.parametrize(("architecture", "width", "depth", "image", "batch", "measured"), STEPS)
def test_a_step_of_any_size_is_priced_as_it_was_measured(
    architecture: str, width: int, depth: int | None, image: tuple[int, int], batch: int, measured: float
) -> None:
    network = NetworkSpec.model_validate({"architecture": architecture, "width": width, "depth": depth})
    epoch = SgdSpec(epochs=1, lr=0.01, batch_size=batch)
    priced = estimate(fit(sizes(network, *image, 10), epoch, batch)) - START
    assert 1 / 1.35 <= priced / measured <= 1.35


@pytest.mark.parametrize(("width", "depth", "side", "images", "measured"), INNER_STEPS)
def test_an_inner_step_of_any_size_is_priced_as_it_was_measured(
    width: int, depth: int, side: int, images: int, measured: float
) -> None:
    size = sizes(NetworkSpec(width=width, depth=depth), 3, side, 10)
    layers, numbers = len(size.multiply_adds), size.numbers
    match = Match(size.forward, layers, 16, classes=10, real=100, new=images, union=images, numbers=numbers)
    assert 1 / 1.35 <= (estimate(match.twice(images)) - START) / measured <= 1.35


def test_two_timed_efforts_say_how_slow_a_core_is_at_calls_and_at_work() -> None:
    calling, working = Effort(1e6, calls=1e2, numbers=1e4), Effort(1e10, calls=10, numbers=1e7, weights=1e6)
    slow = CORE.slower(2.0, 0.8)
    timed = [(needed, estimate(needed, slow) - START * slow.host) for needed in (calling, working)]
    assert tuple(slowness(*timed)) == pytest.approx((2.0, 0.8))


def test_a_moment_of_other_work_makes_no_absurd_machine() -> None:
    calling, working = Effort(0.0, calls=1e3), Effort(1e10, calls=1e2)
    one, other = estimate(calling) - START, estimate(working) - START
    disturbed = slowness((calling, 20 * one), (working, other))
    both = (20 * one + other) / (one + other)
    assert min(disturbed) == pytest.approx(both / APART)
    assert max(disturbed) <= both * APART


def test_cohorts_stages_and_seeds_of_one_size_have_one_signature_and_other_sizes_others(chain: Chain) -> None:
    def expert_batch(first: int, **more: Any) -> Any:
        fields = {"stage": 1, "first": first, "count": 2, "network": NETWORK, "real": sgd(6), **more}
        key = chain.graph.add(ExpertsSpec(**fields), {"dataset": [chain.data]})
        return signature(chain.graph[key], chain.graph)

    assert expert_batch(0) == expert_batch(2) == expert_batch(0, seed=1)
    assert (
        len(
            {
                expert_batch(0),
                expert_batch(0, count=3),
                expert_batch(0, real=sgd(7)),
                expert_batch(0, network=NetworkSpec(width=5)),
            }
        )
        == 4
    )
    batches = expert_batch(0, real=SgdSpec(epochs=6, lr=0.1, batch_size=1))
    assert batches != expert_batch(0), "as many FLOPs in more steps"


def test_later_prefixes_and_bigger_networks_are_estimated_to_take_longer(chain: Chain) -> None:
    def evaluate(architecture: str, stages: int) -> float:
        network = NetworkSpec.model_validate({"architecture": architecture})
        spec = EvaluateSpec(network=network, training=sgd(50), index=0)
        return chain.seconds(spec, sets=chain.sets[:stages])

    assert evaluate("convnet", 1) < evaluate("convnet", 2) < evaluate("resnet10", 2) < evaluate("resnet18", 2)


def test_efforts_add_up(chain: Chain) -> None:
    one = effort(chain.graph[chain.sets[0]], chain.graph)
    assert one + one == one.times(2)
    assert (one.calls, one.inner_calls) == (LAYERS * 3 * 2 * 7, LAYERS * 3 * 10)
    assert Effort(*range(7)) + Effort(*range(7)) == Effort(*range(7)).times(2) == Effort(*range(0, 14, 2))
