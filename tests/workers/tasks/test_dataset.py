"""The dataset artifact: its splits, what its transform was fitted on, and that it is what was planned."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.errors import BadInput
from jobs.expansion import expand
from jobs.experiment import Experiment
from jobs.graph import Job
from jobs.specs import DatasetSpec
from tests.workers.workshop import CPU, ONE_STAGE, TWO_STAGES, Workshop, changed, plan_of
from workers.data import dataset, preprocess, sources
from workers.data.readers.pictures import EncodedPictures
from workers.data.sources import Source
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop.open(tmp_path_factory.mktemp("made"), ONE_STAGE)


def stored(workshop: Workshop, job: Job) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The splits as they lie in the artifact, bytes [N, C, H, W] and labels."""
    workshop.make(job)
    return {
        name: (images.numpy(), labels.numpy())
        for name in dataset.SPLITS
        for images, labels, _ in [dataset.read_split(workshop.store.path(job.key, f"{name}.arrow"))]
    }


def rows(images: NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() for image in images]


DIGITS = sources.read(Source(layout="digits", place="test"))


def test_the_splits_are_stratified_disjoint_and_of_the_asked_sizes(made: Workshop) -> None:
    splits = stored(made, made.job("dataset"))
    per_class = {name: np.bincount(labels).tolist() for name, (_, labels) in splits.items()}
    assert per_class == {"train": [36] * 10, "validation": [4] * 10, "test": [20] * 10}
    images = [row for pixels, _ in splits.values() for row in rows(pixels)]
    assert len(set(images)) == len(images)  # digits has no two equal images
    assert made.make(made.job("dataset")).extra == {"train": 360, "validation": 40, "test": 200}


def test_held_out_images_come_from_the_training_split_and_keep_their_labels(made: Workshop) -> None:
    splits = stored(made, made.job("dataset"))
    of_train = dict(zip(rows(DIGITS.train_images), DIGITS.train_labels.tolist(), strict=True))
    of_test = dict(zip(rows(DIGITS.test_images), DIGITS.test_labels.tolist(), strict=True))
    for name, known in (("train", of_train), ("validation", of_train), ("test", of_test)):
        images, labels = splits[name]
        assert [known[row] for row in rows(images)] == labels.tolist()


def test_the_held_out_images_are_drawn_not_the_first(made: Workshop) -> None:
    images, labels = stored(made, made.job("dataset"))["validation"]
    zeros = rows(DIGITS.train_images[DIGITS.train_labels == 0])
    places = sorted(zeros.index(row) for row in rows(images[labels == 0]))
    assert len(places) == 4 and places != [0, 1, 2, 3]
    other = stored(made, changed(made.job("dataset"), split_seed=1))["validation"][0]
    assert set(rows(other)) != set(rows(images))


def test_all_experiments_share_one_dataset_job_and_hold_out_the_same_images(made: Workshop) -> None:
    arms: list[dict[str, Any]] = [ONE_STAGE, TWO_STAGES, {"method": "random", "ipc_per_stage": 3}, {"method": "full"}]
    plans = [plan_of(*arms, seeds=[0, 7]), plan_of(ONE_STAGE, name="other", architectures=["resnet10"])]
    keys = [job.key for plan in plans for job in plan.graph if job.kind == "dataset"]
    assert set(keys) == {made.job("dataset").key}

    job = made.job("dataset")
    held = set(rows(stored(made, job)["validation"][0]))
    whitened = changed(job, normalise="zca")
    assert set(rows(stored(made, whitened)["validation"][0])) == held
    more = stored(made, changed(job, validation_per_class=6, train_per_class=60))
    assert held < set(rows(more["validation"][0]))
    assert not held & set(rows(more["train"][0]))


@pytest.mark.parametrize("kind", ["zca", "measured"])
def test_the_transform_is_fitted_on_the_training_images_alone(made: Workshop, kind: str) -> None:
    job = changed(made.job("dataset"), normalise=kind)
    splits = stored(made, job)
    data = dataset.load(made.store, job.key, CPU)
    train, held = torch.from_numpy(splits["train"][0]), torch.from_numpy(splits["validation"][0])
    fitted = preprocess.make(kind, train)
    leaky = preprocess.make(kind, torch.cat([train, held]))
    found, expected, wrong = (preprocess.arrays(one) for one in (data.transform, fitted, leaky))
    assert type(data.transform) is type(fitted)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not np.array_equal(found["mean"], wrong["mean"])
    for split, (images, labels) in zip((data.train, data.validation, data.test), splits.values(), strict=True):
        assert torch.equal(split.images[:], fitted.forward(torch.from_numpy(images)))
        assert torch.equal(split.labels, torch.from_numpy(labels))


def test_a_dataset_knows_its_shape_and_classes(made: Workshop) -> None:
    data = made.data()
    assert (data.shape, data.classes, len(data.validation)) == ((1, 8, 8), 10, 40)
    assert data.class_names == tuple(map(str, range(10)))


def test_nothing_need_be_held_out(made: Workshop) -> None:
    job = changed(made.job("dataset"), validation_per_class=0)
    made.make(job)
    data = dataset.load(made.store, job.key, CPU)
    assert (len(data.train), len(data.validation)) == (400, 0)
    assert data.validation.images.shape == (0, 1, 8, 8)


def test_all_images_are_kept_when_no_number_is_given(made: Workshop) -> None:
    job = changed(made.job("dataset"), train_per_class=None, test_per_class=None)
    splits = stored(made, job)
    both = rows(splits["train"][0]) + rows(splits["validation"][0])
    assert sorted(both) == sorted(rows(DIGITS.train_images))
    assert sorted(rows(splits["test"][0])) == sorted(rows(DIGITS.test_images))


def test_the_same_dataset_is_the_same_bytes_at_another_time(
    made: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = made.job("dataset")
    noon = time.localtime(time.time() + 86_400 * 400)
    monkeypatch.setattr(time, "localtime", lambda *args: noon)
    again = Workshop(Store.open(tmp_path / "store"), made.plan)
    assert again.make(job).digest == made.make(job).digest


def test_a_loaded_dataset_stays_in_memory_for_the_next_job_of_the_process(made: Workshop) -> None:
    key = made.job("dataset").key
    first = made.data()
    assert dataset.load(Store.open(made.store.root), key, CPU) is first


def test_two_stores_do_not_share_what_is_in_memory(made: Workshop, tmp_path: Path) -> None:
    other = Workshop(Store.open(tmp_path / "store"), made.plan)
    assert other.data() is not made.data()
    assert torch.equal(other.data().train.images[:], made.data().train.images[:])


# A source of the user's own


def folder_of_pictures(root: Path, train: int = 5, test: int = 2) -> Path:
    """Two classes of grey 4x4 pictures, some to train on and some to test on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(rng.integers(0, 256, (4, 4)), root / split / name / f"{number}.png")
    return root


def picture(pixels: Any, path: Path) -> None:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def as_parquet(root: Path, folder: Path) -> Path:
    """The same pictures in Parquet files of several groups of rows."""
    folder.mkdir()
    for split in ("train", "test"):
        files = sorted((root / split).glob("*/*.png"))
        labels = [["cat", "dog"].index(file.parent.name) for file in files]
        table = pa.table({"image": [file.read_bytes() for file in files], "label": labels})
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=4)
    return folder


def planned(root: Path, layout: str = "folder") -> Job:
    facts = sources.inspect(Source(layout=layout, place="test", path=root))
    spec = DatasetSpec(
        name="pets",
        fingerprint=facts.fingerprint,
        channels=1,
        height=4,
        width=4,
        classes=2,
        train_images=8,
        normalise="unit",
        validation_per_class=1,
        layout=layout,
        path=str(root),
    )
    return Job.make(spec, {})


def test_the_same_pictures_elsewhere_are_the_same_job(tmp_path: Path) -> None:
    here, there = (folder_of_pictures(tmp_path / name) for name in ("here", "there"))
    assert planned(here).key == planned(there).key


def test_the_users_own_pictures_keep_their_names_and_pixels(made: Workshop, tmp_path: Path) -> None:
    root = folder_of_pictures(tmp_path / "pets")
    job = planned(root)
    made.make(job)
    data = dataset.load(made.store, job.key, CPU)
    assert data.class_names == ("cat", "dog") and data.shape == (1, 4, 4)
    known = {
        np.asarray(Image.open(path)).tobytes(): ["cat", "dog"].index(path.parent.name)
        for path in root.glob("*/*/*.png")
    }

    def bytes_of(images: Tensor) -> list[bytes]:
        return [(image * 255).round().to(torch.uint8).numpy().tobytes() for image in images]

    found = [known[row] for row in bytes_of(data.train.images)]
    assert found == data.train.labels.tolist() and sorted(found) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_no_image_is_decoded_that_is_not_kept(
    made: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    root = folder_of_pictures(tmp_path / "pets", train=9, test=7)
    if layout == "parquet":
        root = as_parquet(root, tmp_path / "parquet")
    whole = sources.read(Source(layout=layout, path=root, place="test"))
    job = changed(planned(root, layout), validation_per_class=1, train_per_class=3, test_per_class=2)
    decoded: list[str] = []
    real = EncodedPictures._decoded

    def counted(self: EncodedPictures, name: str, *rest: Any) -> Any:
        decoded.append(name)
        return real(self, name, *rest)

    monkeypatch.setattr(EncodedPictures, "_decoded", counted)
    splits = stored(made, job)
    assert len(decoded) == len(set(decoded)) == 2 * (3 + 2)  # of two classes; the held-out image is one of the three
    for name, images, labels in (
        ("train", whole.train_images, whole.train_labels),
        ("validation", whole.train_images, whole.train_labels),
        ("test", whole.test_images, whole.test_labels),
    ):
        known = dict(zip(rows(images), labels.tolist(), strict=True))
        assert [known[row] for row in rows(splits[name][0])] == splits[name][1].tolist()


@pytest.mark.parametrize("change", ["a pixel", "a picture more"])
def test_a_source_that_changed_since_it_was_planned_is_refused(tmp_path: Path, change: str) -> None:
    store, root = Store.open(tmp_path / "store"), folder_of_pictures(tmp_path / "pets")
    job, path = planned(root), root / "train" / "cat" / "0.png"
    pixels = np.asarray(Image.open(path)).copy()
    if change == "a pixel":
        pixels[0, 0] ^= 1
        picture(pixels, path)
    else:
        picture(pixels, path.with_name("9.png"))
    with pytest.raises(BadInput, match=r"dataset\.path is '.*pets': .*changed since the run was planned"):
        perform(JobContext.alone(job, store))
    assert not store.has(job.key)
    assert planned(root).key != job.key


def test_each_class_may_hold_out_a_number_of_its_own(made: Workshop) -> None:
    numbers = tuple(range(1, 11))
    job = changed(made.job("dataset"), validation_per_class=numbers, train_per_class=40)
    splits = stored(made, job)
    assert np.bincount(splits["validation"][1]).tolist() == list(numbers)
    assert np.bincount(splits["train"][1]).tolist() == [40 - number for number in numbers]
    even = stored(made, changed(job, validation_per_class=(4,) * 10))
    once = stored(made, changed(job, validation_per_class=4))
    assert all(np.array_equal(even[name][0], once[name][0]) for name in once)


def test_a_share_for_testing_reaches_the_worker_that_prepares_the_data(made: Workshop, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            picture(rng.integers(0, 256, (8, 8)), tmp_path / "pets" / name / f"{number}.png")
    source = Source(layout="folder", place="test", path=tmp_path / "pets", test="0.2")
    choice = {"name": "folder", "path": str(tmp_path / "pets"), "test": 0.2}
    arm = {"method": "random", "ipc_per_stage": 1}
    experiment = Experiment.model_validate({"name": "test", "scale": "tiny", "dataset": choice, "arms": [arm]})
    plan = expand(experiment, sources.inspect(source), "test")
    (job,) = (job for job in plan.graph if job.kind == "dataset")
    assert made.make(job).extra == {"train": 14, "validation": 2, "test": 4}
