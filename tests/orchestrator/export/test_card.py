"""The card's program piece by piece, against the project's own networks, transforms and augmentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from jobs.graph import Job
from jobs.specs import DatasetSpec, DistilSpec, EvaluateSpec, NetworkSpec, SgdSpec
from orchestrator.export import card
from orchestrator.export.card import Contents
from orchestrator.export.chain import ChainKeys, ExportSource, Measurement
from workers.data import preprocess
from workers.store.store import Manifest
from workers.training import networks
from workers.training.augmentation import Augmentation, cutmix, draw_cutmix

ALL = "color_crop_cutout_flip_scale_rotate"


def manifest(job: Job, **extra: Any) -> Manifest:
    return Manifest(
        key=job.key,
        kind=job.kind,
        spec=job.canonical()["spec"],
        parents={role: list(keys) for role, keys in job.parents.items()},
        files={},
        digest="",
        versions={"torch": "2"},
        host="",
        device="cpu",
        seconds=1.0,
        peak_memory_mib=1.0,
        written="",
        extra=extra,
    )


def a_set(
    *,
    dataset: str = "digits",
    called: str = "",
    licence: str = "",
    shape: tuple[int, int, int] = (1, 8, 8),
    network: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    tests: int | None = 20,
    mode: str = "progressive",
) -> tuple[ExportSource, Contents]:
    """A set of two stages that never was made, and what its files would hold."""
    channels, height, width = shape
    data = Job.make(
        DatasetSpec(
            name=dataset,
            fingerprint="f",
            channels=channels,
            height=height,
            width=width,
            classes=10,
            train_images=100,
            normalise="measured",
            validation_per_class=1,
            called=called,
            licence=licence,
            url="https://example.org/pets" if called else "",
        ),
        {},
    )
    build = NetworkSpec(**(network or {"depth": 2, "width": 8}))
    sets: list[Job] = []
    for stage in (1, 2):
        spec = DistilSpec.model_validate(
            {
                **{"method": "mtt", "stage": stage, "ipc": 1, "network": build.model_dump(), "iterations": 1},
                **{"image": {"lr": 1.0}, "choice": {"by": "last"}, "settings": {}},
            }
        )
        sets.append(Job.make(spec, {"dataset": (data.key,), "sets": tuple(one.key for one in sets)}))
    tested = EvaluateSpec.model_validate(
        {"mode": mode, "network": build.model_dump(), "training": {"epochs": 6, **(training or {})}, "index": 0}
    )
    measured = Measurement(stage=2, spec=tested, keys=("evaluate-a", "evaluate-b"), values=(50.0, 60.0))
    chain = ChainKeys(sets=tuple(one.key for one in sets), networks=measured.keys, method="PDD+MTT", origin="a test")
    assert isinstance(data.spec, DatasetSpec)
    chain = replace(chain, dataset=data.spec)
    made = ExportSource(
        keys=chain, sets=tuple(manifest(one) for one in sets), dataset=manifest(data), measured=(measured,)
    )
    images = torch.randint(0, 256, (200, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    contents = Contents(
        images=(10, 10),
        factor=1,
        step_sizes=(0.01, 0.02),
        class_names=tuple("0123456789"),
        transform=preprocess.fit_affine(images),
        tests=tests,
    )
    return made, contents


def names_of(made: ExportSource, contents: Contents) -> dict[str, Any]:
    """What the program defines, before it reads or trains anything."""
    found: dict[str, Any] = {}
    definitions, read, _ = card.program(made, contents).partition("\n\nx, y, stage = ")
    assert read
    exec(compile(definitions, "card", "exec"), found)  # noqa: S102
    return found


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((1, 8, 8), {"depth": 2, "width": 8}),
        ((1, 28, 28), {"depth": 3, "width": 4}),
        ((3, 32, 32), {"depth": 3, "width": 5, "norm": "batch"}),
        ((3, 64, 64), {"depth": 4, "width": 3, "norm": "none"}),
    ],
)
def test_its_convnet_is_the_evaluated_one_weight_by_weight(
    shape: tuple[int, int, int], network: dict[str, Any]
) -> None:
    channels, size, _ = shape
    own = networks.build(
        "convnet",
        channels=channels,
        size=size,
        classes=10,
        width=network["width"],
        depth=network["depth"],
        norm=network.get("norm", "instance"),
        generator=torch.Generator().manual_seed(3),
    )
    names = names_of(*a_set(shape=shape, network=network))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        copied = names["convnet"]()
    for one, other in zip(own.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(own(x), copied(x), atol=1e-6)


def test_its_transform_is_that_of_the_training_set() -> None:
    made, contents = a_set(shape=(3, 8, 8))
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(names_of(made, contents)["prepared"](images), contents.transform.forward(images))


@pytest.mark.parametrize("family", ["mtt", "dc", "idc"])
@pytest.mark.parametrize("strategy", [ALL, "color_crop", "flip", "cutout_scale_rotate"])
def test_its_augmentation_is_the_projects_number_by_number(family: str, strategy: str) -> None:
    names = names_of(*a_set(training={"augmentation": strategy, "family": family}))
    own = Augmentation.parse(strategy, mode="idc" if family == "idc" else "one", align_corners=family == "mtt")
    x = torch.randn(3, 2, 8, 10, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    for _ in range(40):
        assert torch.allclose(own(x, ours), names["augment"](x, theirs), atol=1e-6)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_its_cutmix_is_the_projects() -> None:
    names = names_of(*a_set(training={"cutmix": 0.5}))
    x, y = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6)
    ours, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    weights = set()
    for _ in range(20):
        mix = draw_cutmix(6, (8, 8), 0.5, ours)
        image, partner, weight = (x, y, 1.0) if mix is None else cutmix(x, y, mix)
        other, partners, share = names["mixed"](x, y, theirs)
        assert torch.equal(image, other) and torch.equal(partner, partners) and weight == share
        weights.add(weight)
    assert len(weights) > 2


def test_without_augmentation_its_program_has_none() -> None:
    text = card.program(*a_set())
    assert "augment" not in text and "mixed" not in text
    assert max(map(len, text.splitlines())) <= 160


@pytest.mark.parametrize(
    ("mode", "links"), [("union", "RATES[-1]"), ("sequential", "stage == p"), ("progressive", "<= p")]
)
def test_its_links_follow_the_mode(mode: str, links: str) -> None:
    assert links in card.program(*a_set(mode=mode))


def test_a_rate_of_the_recipe_replaces_the_learned_ones() -> None:
    assert "RATES = [0.5, 0.5]" in card.program(*a_set(training={"lr": 0.5}))
    assert "RATES = [0.01, 0.02]" in card.program(*a_set())


def test_a_schedule_names_only_the_drops_that_come() -> None:
    assert "EPOCHS, DROPS, DROP = 6, (5,), 0.1 " in card.program(*a_set(training={"drop": "half"}))
    assert "EPOCHS, DROPS, DROP = 7, (4, 5), 0.2 " in card.program(
        *a_set(training={"drop": "thirds", "extra_epoch": True})
    )
    assert "EPOCHS, DROPS, DROP = 3, (), 0.1 " in card.program(*a_set(training={"drop": "half", "epochs": 3}))


@pytest.mark.parametrize(
    ("dataset", "licence", "told"),
    [
        ("cifar10", "license: unknown", "torchvision.datasets import CIFAR10"),
        ("tiny-imagenet", "license: other", "fill in test_split()"),
        ("parquet", "license: unknown", "fill in test_split()"),
    ],
)
def test_test_images_that_stay_at_home_are_asked_for(dataset: str, licence: str, told: str) -> None:
    made, contents = a_set(dataset=dataset, shape=(3, 32, 32), tests=None)
    text = card.render(made, contents)
    assert licence in text and told in text and "exact/test.parquet" not in text
    assert (card.UNKNOWN_LICENCE in text) == (dataset == "parquet")
    compile(card.program(made, contents), "card", "exec")


def test_a_set_measured_on_a_resnet_only_claims_nothing_of_its_convnet() -> None:
    made, contents = a_set(network={"architecture": "resnet10", "width": 4})
    text = card.render(made, contents)
    assert "No ConvNet was measured on this set" in text and "It repeats a line of the table" not in text
    assert "| resnet10 (width 4, 1 blocks a group) | progressive |" in text
    assert names_of(made, contents)["convnet"]()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_class_names_cannot_break_the_card() -> None:
    made, contents = a_set()
    names = ("a|b", "<script>", "two\nlines", *"3456789")
    text = card.render(made, Contents(**{**vars(contents), "class_names": names}))
    assert "a\\|b, &lt;script>, two lines, 3" in text


def test_numbers_of_a_spec_are_said_as_they_were() -> None:
    training = SgdSpec(epochs=6, momentum=0.5, weight_decay=0.25, batch_size=17)
    text = card.program(*a_set(training=training.model_dump()))
    assert "momentum, decay = 0.5, 0.25" in text and ".split(17)" in text


def test_images_of_ones_own_have_their_title_licence_and_source_on_the_card() -> None:
    text = card.render(*a_set(dataset="images", called="Pets of the lab", licence="CC-BY-4.0"))
    assert "# Pets of the lab, 20 images in 2 stages" in text and "license: cc-by-4.0" in text
    assert "The source dataset, Pets of the lab (https://example.org/pets): CC-BY-4.0." in text
    assert "Guessing: 10.0 %" in text
    words = card.render(*a_set(dataset="images", called="Pets", licence="ask the vet"))
    assert "license: other" in words and "Pets (https://example.org/pets): ask the vet." in words
    unknown = card.render(*a_set(dataset="images", called="Pets"))
    assert "license: unknown" in unknown and card.UNKNOWN_LICENCE in unknown


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["ant", "bee"], ["ant", "bee"]),
        (["bee", "ant"], ["0 bee", "1 ant"]),
        (["T-shirt/top", "Trouser"], ["T-shirt-top", "Trouser"]),
        (["..", "a/b"], ["0", "1 a-b"]),
        (["a/b", "a:b"], ["0 a-b", "1 a-b"]),
        ([str(number) for number in range(11)], [f"{number:02d} {number}" for number in range(11)]),
    ],
)
def test_folders_of_classes_sort_as_their_labels_do(names: list[str], folders: list[str]) -> None:
    assert card.folder_names(names) == folders == sorted(folders)
