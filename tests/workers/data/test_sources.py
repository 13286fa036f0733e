"""Every layout in miniature, everything that must be refused, and what a fingerprint stands for."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.datasets import DATASETS, DatasetInfo
from jobs.errors import BadInput
from workers.data import sources
from workers.data.readers import array_files
from workers.data.readers.array_files import every_fourth_of_class
from workers.data.readers.splits import split_of
from workers.data.sources import Arrays, Facts, Source, fingerprint_files, inspect, read

Pixels = NDArray[np.uint8]


def source(layout: str, path: Path | None, **fields: str) -> Source:
    return Source(layout=layout, path=path, place="run.yaml", **fields)


def both(layout: str, path: Path | None, **fields: str) -> tuple[Facts, Arrays]:
    """What inspect and read say, after checking that they agree."""
    said = source(layout, path, **fields)
    facts, arrays = inspect(said), read(said)
    for images, labels, counts in (
        (arrays.train_images, arrays.train_labels, facts.train_per_class),
        (arrays.test_images, arrays.test_labels, facts.test_per_class),
    ):
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        assert images.shape == (len(labels), facts.channels, facts.height, facts.width)
        assert np.bincount(labels, minlength=len(facts.class_names)).tolist() == list(counts)
    assert arrays.class_names == facts.class_names
    return facts, arrays


def refused(layout: str, path: Path | None, **fields: str) -> BadInput:
    with pytest.raises(BadInput) as error:
        inspect(source(layout, path, **fields))
    assert error.value.place == "run.yaml"
    return error.value


def shade(value: int, height: int = 2, width: int = 3, mode: str = "RGB") -> Image.Image:
    """A picture of one value everywhere, in all channels."""
    return Image.new(mode, (width, height), value if mode == "L" else (value,) * 3)


def png(value: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    shade(value, **options).save(stream, "PNG")
    return stream.getvalue()


def save(path: Path, picture: Image.Image | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path)


def values(images: Pixels) -> list[int]:
    """The value of each picture of one value; fails if a picture has several."""
    flat = images.reshape(len(images), -1)
    assert (flat == flat[:, :1]).all()
    return [int(value) for value in flat[:, 0]]


# Digits


def test_digits_are_split_three_to_one_within_each_class_and_stretched_to_bytes() -> None:
    from sklearn.datasets import load_digits

    facts, arrays = both("digits", None)
    assert (facts.layout, facts.channels, facts.height, facts.width) == ("digits", 1, 8, 8)
    for train, test in zip(facts.train_per_class, facts.test_per_class, strict=True):
        assert test == (train + test) // 4
    ink = load_digits().images[0].ravel()  # the first zero is a training image
    assert arrays.train_images[0].ravel().tolist() == [int(x * 255 / 16 + 0.5) for x in ink]
    assert arrays.train_images.max() == 255
    assert "UCI" in facts.licence and "BSD" in facts.licence


def test_every_fourth_example_of_a_class_is_held_out() -> None:
    chosen = every_fourth_of_class(np.array([0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0]))
    assert np.flatnonzero(chosen).tolist() == [4, 8, 11]


def test_digits_are_read_from_the_file_as_scikit_learn_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = array_files._digits_table()
    monkeypatch.setattr(array_files, "find_spec", lambda name: None)
    assert np.array_equal(from_file, array_files._digits_table())


def test_digits_take_no_path(tmp_path: Path) -> None:
    assert "leave the path out" in refused("digits", tmp_path).fix


# idx files


def idx(array: NDArray[Any]) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, zipped: bool = False, dotted: bool = False) -> None:
    """Ten training and ten test images of 2x3; image i is i everywhere and has label 9 - i."""
    folder.mkdir(parents=True)
    images = np.repeat(np.arange(10), 6).reshape(10, 2, 3)
    for split in ("train", "t10k"):
        for part, content in (("images-idx3", idx(images)), ("labels-idx1", idx(9 - np.arange(10)))):
            name = f"{split}-{part.replace('-', '.') if dotted else part}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("layout", "inside"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "deep"),
    ],
)
def test_idx_files_are_read_plain_or_zipped_wherever_they_usually_lie(
    tmp_path: Path, layout: str, inside: str, zipped: bool
) -> None:
    write_mnist(tmp_path / "data" / inside, zipped)
    facts, arrays = both(layout, tmp_path / "data" / ("deep" if inside == "deep" else ""))
    assert (facts.layout, facts.channels, facts.height, facts.width) == (layout, 1, 2, 3)
    assert values(arrays.train_images) == list(range(10))
    assert arrays.test_labels.tolist() == list(range(9, -1, -1))
    assert facts.class_names[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[layout]


def test_idx_files_may_have_the_dotted_names(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data", dotted=True)
    assert both("mnist", tmp_path / "data")[0].train_per_class == (1,) * 10


def test_the_same_idx_files_have_one_fingerprint_in_every_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a" / "MNIST" / "raw")
    write_mnist(tmp_path / "b")
    assert inspect(source("mnist", tmp_path / "a")).fingerprint == inspect(source("mnist", tmp_path / "b")).fingerprint


def test_auto_recognises_torchvisions_mnist_but_will_not_guess_about_bare_idx_files(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root" / "MNIST" / "raw")
    assert inspect(source("auto", tmp_path / "root")).layout == "mnist"
    write_mnist(tmp_path / "bare")
    assert "mnist or fashion-mnist" in refused("auto", tmp_path / "bare").fix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (idx(np.zeros((10, 2, 3)))[:-1], "59 bytes"),
        (idx(np.zeros((9, 2, 3))), "9 images but 10 labels"),
        (idx(np.zeros(60)), "no idx file of 3 dimension"),
        (b"", "no idx file"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    write_mnist(tmp_path / "data")
    (tmp_path / "data" / "t10k-images-idx3-ubyte").write_bytes(content)
    error = refused("mnist", tmp_path / "data")
    assert said in error.fix and "t10k-images" in str(error.value)


def test_a_cut_gzip_file_and_a_missing_file_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data", zipped=True)
    labels = tmp_path / "data" / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-9])
    assert "t10k-labels" in str(refused("mnist", tmp_path / "data").value)
    labels.unlink()
    assert "put t10k-labels-idx1-ubyte" in refused("mnist", tmp_path / "data").fix


def test_debians_fashion_mnist_is_the_default(fashion_mnist: Path) -> None:
    facts = inspect(source("fashion-mnist", None))
    assert facts.train_per_class == (6000,) * 10 and facts.test_per_class == (1000,) * 10
    assert facts.fingerprint == inspect(source("fashion-mnist", fashion_mnist)).fingerprint
    assert facts.licence == "MIT"


# CIFAR pickles


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as Python 2's strings, and numpy's module by its old name."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch[type] = dispatch[type(len)] = dispatch[type(pytest.raises)] = save_global


def python2_pickle(content: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def cifar_rows(labels: Sequence[int]) -> Pixels:
    """One row per label: red is the label, green 100 more, blue 200 more."""
    channels = np.asarray(labels)[:, None] + np.array([0, 100, 200])
    return np.repeat(channels, 1024, axis=1).astype(np.uint8)


def write_cifar(folder: Path, dump: Any, label_key: str, batches: Sequence[str], test: str, meta: str) -> None:
    folder.mkdir(parents=True)
    for name in (*batches, test):
        batch = {"data": cifar_rows([1, 0]), label_key: [1, 0], "filenames": ["a.png", "b.png"]}
        (folder / name).write_bytes(dump(batch))
    names = {"label_names": ["cat", "dog"], "fine_label_names": ["apple", "bear"]}
    (folder / meta).write_bytes(dump(names))


def write_cifar10(folder: Path, dump: Any = pickle.dumps) -> None:
    write_cifar(folder, dump, "labels", [f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta")


@pytest.mark.parametrize("dump", [pickle.dumps, python2_pickle])
@pytest.mark.parametrize("asked", ["cifar10", "auto"])
def test_cifar10_pickles_are_read_whether_python_2_or_3_wrote_them(tmp_path: Path, dump: Any, asked: str) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", dump)
    facts, arrays = both(asked, tmp_path)
    assert (facts.layout, facts.class_names) == ("cifar10", ("cat", "dog"))
    assert (facts.train_per_class, facts.test_per_class) == ((5, 5), (1, 1))
    assert arrays.train_images[0, :, 31, 31].tolist() == [1, 101, 201]
    assert arrays.train_images.shape == (10, 3, 32, 32)


def test_cifar100_takes_its_fine_labels(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-100-python", python2_pickle, "fine_labels", ["train"], "test", "meta")
    facts, _ = both("cifar100", tmp_path / "cifar-100-python")
    assert (facts.layout, facts.class_names) == ("cifar100", ("apple", "bear"))


class Hostile:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_that_would_call_something_is_refused_before_it_does(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "data_batch_3").write_bytes(pickle.dumps({"data": Hostile(tmp_path / "made")}))
    error = refused("cifar10", tmp_path / "data")
    assert "mkdir" in error.fix and "data_batch_3" in str(error.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"data": cifar_rows([0, 1]), "labels": [0]},
        {"data": cifar_rows([0]).astype(np.int64), "labels": [0]},
        {"data": cifar_rows([0])[:, :-1], "labels": [0]},
        [1],
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, batch: object) -> None:
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "test_batch").write_bytes(pickle.dumps(batch))
    assert "test_batch" in str(refused("cifar10", tmp_path / "data").value)


def test_a_missing_cifar_batch_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "data_batch_5").unlink()
    assert "data_batch_5 is missing" in refused("cifar10", tmp_path / "data").fix


def test_a_dataset_of_another_name_is_not_taken_instead(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    error = refused("cifar100", tmp_path)
    assert "CIFAR-100" in error.fix and "it holds cifar10" in error.fix


# Tiny-ImageNet

WNIDS = ("n01", "n02")


def write_tiny(root: Path, val: str = "annotated") -> None:
    """Two training and one validation image a class; the training image k of class c is 100 c + k.

    The validation images are named so that their order by name is not their order by class.
    """
    for label, wnid in enumerate(WNIDS):
        for k in range(2):
            save(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", shade(100 * label + k))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
        name, picture = f"val_{1 - label}.JPEG", shade(100 * label + 50)
        places = {"annotated": "images", "tree": wnid, "deep": f"{wnid}/images"}
        save(root / "val" / places[val] / name, picture)
    if val == "annotated":
        lines = [f"val_{1 - label}.JPEG\t{wnid}\t0\t0\t1\t1\n" for label, wnid in enumerate(WNIDS)]
        (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "train" / ".DS_Store").write_bytes(b"x")
    (root / "val" / ".DS_Store").write_bytes(b"x")


@pytest.mark.parametrize("val", ["annotated", "tree", "deep"])
@pytest.mark.parametrize("asked", ["tiny-imagenet", "auto"])
def test_tiny_imagenet_is_read_the_same_from_the_archive_and_rearranged(tmp_path: Path, val: str, asked: str) -> None:
    write_tiny(tmp_path / "tiny-imagenet-200", val)
    facts, arrays = both(asked, tmp_path / "tiny-imagenet-200")
    assert (facts.layout, facts.class_names) == ("tiny-imagenet", WNIDS)
    assert values(arrays.train_images) == [0, 1, 100, 101] and arrays.train_labels.tolist() == [0, 0, 1, 1]
    assert values(arrays.test_images) == [50, 150] and arrays.test_labels.tolist() == [0, 1]
    assert "research" in facts.licence


def test_tiny_imagenet_is_found_below_the_folder_it_was_unpacked_in(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny-imagenet-200")
    assert inspect(source("tiny-imagenet", tmp_path)).train_per_class == (2, 2)


def test_a_grey_jpeg_becomes_rgb(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    save(tmp_path / "train" / "n01" / "images" / "n01_0.JPEG", shade(7, mode="L"))
    _, arrays = both("tiny-imagenet", tmp_path)
    assert arrays.train_images[0].shape == (3, 2, 3) and values(arrays.train_images)[0] == 7


def test_annotations_that_do_not_match_the_images_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    extra = tmp_path / "val" / "images" / "val_9.JPEG"
    save(extra, shade(1))
    assert "val_9.JPEG" in refused("tiny-imagenet", tmp_path).fix
    extra.unlink()
    (tmp_path / "val" / "images" / "val_0.JPEG").unlink()
    assert "val_0.JPEG" in refused("tiny-imagenet", tmp_path).fix


def test_annotations_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    with (tmp_path / "val" / "val_annotations.txt").open("a") as stream:
        stream.write("val_2.JPEG\tn99\t0\t0\t1\t1\n")
    assert "'n99'" in refused("tiny-imagenet", tmp_path).fix


def test_val_without_annotations_and_folders_is_not_one_class_called_images(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").unlink()
    assert "val_annotations.txt" in refused("tiny-imagenet", tmp_path).fix


# Class folders


def write_folders(root: Path, test: str = "test", classes: Sequence[str] = ("ant", "bee")) -> None:
    for label, name in enumerate(classes):
        save(root / "train" / name / "b.png", shade(10 * label + 1))
        save(root / "train" / name / "a.png", shade(10 * label))
        save(root / test / name / "a.png", shade(10 * label + 5))
    (root / "train" / ".DS_Store").write_bytes(b"x")
    (root / "train" / classes[0] / "._a.png").write_bytes(b"x")
    (root / "train" / classes[0] / "notes.txt").write_bytes(b"x")


@pytest.mark.parametrize("test", ["test", "val", "validation"])
@pytest.mark.parametrize("asked", ["folder", "auto", "cifar10"])
def test_class_folders_are_read_in_the_order_of_names_without_stray_files(
    tmp_path: Path, test: str, asked: str
) -> None:
    write_folders(tmp_path, test)
    facts, arrays = both(asked, tmp_path)
    assert (facts.layout, facts.class_names) == ("folder", ("ant", "bee"))
    assert values(arrays.train_images) == [0, 1, 10, 11] and values(arrays.test_images) == [5, 15]
    assert ("CIFAR" in facts.licence) == (asked == "cifar10")


@pytest.mark.parametrize("coloured", ["train/ant/a.png", "train/bee/b.png", "test/ant/a.png"])
def test_grey_folders_stay_grey_until_one_picture_has_colour(tmp_path: Path, coloured: str) -> None:
    write_folders(tmp_path)
    for path in tmp_path.rglob("[ab].png"):
        save(path, shade(9, mode="L"))
    assert inspect(source("folder", tmp_path)).channels == 1
    save(tmp_path / coloured, shade(9))
    facts, arrays = both("folder", tmp_path)
    assert facts.channels == 3 and values(arrays.train_images) == [9] * 4


def test_the_first_picture_of_another_size_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    save(tmp_path / "train" / "bee" / "a.png", shade(1, height=5, width=4))
    fix = refused("folder", tmp_path).fix
    assert "train/bee/a.png is 5x4" in fix and "2x3" in fix


def test_test_pictures_of_another_size_than_training_ones_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for path in (tmp_path / "test").rglob("*.png"):
        save(path, shade(1, height=5, width=4))
    assert "train are 2x3, of test 5x4" in refused("folder", tmp_path).fix


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    save(tmp_path / "test" / "bee" / "a.png", b"no picture")
    assert "test/bee/a.png" in refused("folder", tmp_path).fix


def test_a_picture_with_a_flipped_byte_behind_its_header_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    content = bytearray(png(3))
    content[-20] ^= 1
    save(tmp_path / "train" / "bee" / "b.png", bytes(content))
    assert "train/bee/b.png" in refused("folder", tmp_path).fix


def test_a_jpeg_cut_behind_its_header_is_named_by_read(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    path = tmp_path / "train" / "n02" / "images" / "n02_1.JPEG"
    Image.effect_noise((3, 2), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(BadInput, match="n02_1.JPEG"):
        read(source("tiny-imagenet", tmp_path))


def test_sixteen_bit_pictures_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    write_folders(tmp_path)
    Image.fromarray(np.full((2, 3), 40000, dtype=np.uint16)).save(tmp_path / "train" / "ant" / "a.png")
    assert "8 bits" in refused("folder", tmp_path).fix


def test_a_class_of_only_one_split_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    save(tmp_path / "test" / "cow" / "a.png", shade(1))
    assert "'cow'" in refused("folder", tmp_path).fix
    shutil.rmtree(tmp_path / "test" / "cow")
    shutil.rmtree(tmp_path / "test" / "bee")
    assert "add test images: none has label 1 (bee)" in refused("folder", tmp_path).fix


def test_an_empty_training_class_and_an_empty_training_split_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for path in (tmp_path / "train" / "ant").glob("*.png"):
        path.unlink()
    assert "no train image has label 0 (ant)" in refused("folder", tmp_path).fix
    for path in (tmp_path / "train" / "bee").glob("*.png"):
        path.unlink()
    assert "train split: it is empty" in refused("folder", tmp_path).fix


def test_one_class_is_no_dataset(tmp_path: Path) -> None:
    write_folders(tmp_path, classes=("ant",))
    assert "two classes" in refused("folder", tmp_path).fix


# Parquet


def write_parquet(
    path: Path,
    labels: Sequence[int | None],
    images: Sequence[bytes | None] | None = None,
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("img", "label"),
) -> None:
    """Row i holds a picture of value i unless told otherwise."""
    contents = images if images is not None else [png(i) for i in range(len(labels))]
    cells = pa.array(
        [{"bytes": content, "path": None} for content in contents],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({columns[0]: cells, columns[1]: pa.array(labels, pa.int64())})
    if names is not None:
        features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_pair(
    root: Path, train: Sequence[int | None] = (1, 0), test: Sequence[int | None] = (0, 1), **how: Any
) -> None:
    write_parquet(root / "train.parquet", train, **how)
    write_parquet(root / "test.parquet", test, **how)


@pytest.mark.parametrize("asked", ["parquet", "auto", "cifar10"])
@pytest.mark.parametrize("columns", [("img", "label"), ("image", "fine_label")])
def test_parquet_is_read_with_the_class_names_of_its_schema(
    tmp_path: Path, asked: str, columns: tuple[str, str]
) -> None:
    write_pair(tmp_path, names=["cat", "dog"], columns=columns)
    facts, arrays = both(asked, tmp_path)
    assert (facts.layout, facts.class_names, facts.channels) == ("parquet", ("cat", "dog"), 3)
    assert values(arrays.train_images) == [0, 1] and arrays.train_labels.tolist() == [1, 0]
    assert ("CIFAR" in facts.licence) == (asked == "cifar10")


def test_without_class_names_the_labels_are_the_names(tmp_path: Path) -> None:
    write_pair(tmp_path)
    assert inspect(source("parquet", tmp_path)).class_names == ("0", "1")


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for shard in (1, 2, 0):
        images = [png(10 * shard), png(10 * shard + 1)]
        write_parquet(tmp_path / "data" / f"train-{shard:05d}-of-00003-0a1b.parquet", [0, 1], images)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [0, 1])
    _, arrays = both("parquet", tmp_path)
    assert values(arrays.train_images) == [0, 1, 10, 11, 20, 21]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1])
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert "train-00001-of-00002" in refused("parquet", tmp_path).fix


def test_validation_stands_in_for_a_missing_test_split_only(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / "validation.parquet", [0, 1, 1])
    write_parquet(tmp_path / "extra.parquet", [0, 1, 5])
    assert inspect(source("parquet", tmp_path)).test_per_class == (1, 2)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert inspect(source("parquet", tmp_path)).test_per_class == (1, 1)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("cifar10_test.parquet", "test"),
        ("valid/0000.parquet", "validation"),
        ("data/val-0.parquet", "validation"),
        ("latest/train.parquet", "train"),
        ("train/my-test.parquet", "test"),
        ("extra.parquet", None),
    ],
)
def test_the_split_is_the_last_word_that_names_one(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


def test_one_file_without_a_test_split_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    assert "both splits" in refused("parquet", tmp_path / "train.parquet").fix


def test_columns_are_taken_as_named_and_decide_the_fingerprint(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / f"{split}.parquet"
        write_parquet(path, [0, 1])
        pq.write_table(pq.read_table(path).append_column("coarse", pa.array([1, 0])), path)
    fine = inspect(source("parquet", tmp_path))
    coarse, arrays = both("parquet", tmp_path, label_field="coarse")
    assert arrays.train_labels.tolist() == [1, 0]
    assert coarse.fingerprint != fine.fingerprint
    assert inspect(source("parquet", tmp_path, label_field="label")).fingerprint == fine.fingerprint


def test_a_missing_column_is_answered_with_the_columns_there_are(tmp_path: Path) -> None:
    write_pair(tmp_path, columns=("img", "target"))
    error = refused("parquet", tmp_path)
    assert error.field == "dataset.label_field" and "img, target" in error.fix
    error = refused("parquet", tmp_path, label_field="target", image_field="picture")
    assert (error.field, error.value) == ("dataset.image_field", "picture") and "img, target" in error.fix
    write_pair(tmp_path, columns=("pixels", "label"))
    assert refused("parquet", tmp_path).field == "dataset.image_field"


def test_columns_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    assert "integers" in refused("parquet", tmp_path, label_field="img").fix
    assert "encoded images" in refused("parquet", tmp_path, image_field="label").fix


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ((0, 1, 3), (0, 1, 2), "only test has label 2"),
        ((1, 2), (1, 2, 3), "only test has label 3"),
        ((1, 2), (1, 1), "none has label 1 (2)"),
        ((0, -1, 1), (0, 1), "label -1"),
        ((0, 1), (-1, -1), "every test image"),
        ((0, 1), (0, 0), "none has label 1"),
        ((0, 1), (0, 1, 2), "only test has label 2"),
        ((), (0, 1), "train split: it is empty"),
        ((0, 1), (), "test split: it is empty"),
        ((0, None, 1), (0, 1), "1 without"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(
    tmp_path: Path, train: Sequence[int | None], test: Sequence[int | None], said: str
) -> None:
    write_pair(tmp_path, train, test)
    assert said in refused("parquet", tmp_path).fix


def test_labels_and_class_names_must_cover_each_other(tmp_path: Path) -> None:
    write_pair(tmp_path, (0, 1), (0, 1, 2), names=["ant", "bee", "cow"])
    assert "only test has label 2" in refused("parquet", tmp_path).fix
    write_pair(tmp_path, (0, 1, 2), (0, 1, 2), names=["ant", "bee"])
    assert "beyond the 2 class names" in refused("parquet", tmp_path).fix
    write_parquet(tmp_path / "test.parquet", (0, 1), names=["bee", "ant"])
    assert "schemas differ" in refused("parquet", tmp_path).fix


def test_the_row_of_an_unreadable_or_missing_image_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_parquet(tmp_path / "test.parquet", [0, 1], [png(0), b"no picture"])
    assert "test.parquet row 1" in refused("parquet", tmp_path).fix
    write_parquet(tmp_path / "test.parquet", [0, 1], [None, png(0)])
    assert "test.parquet row 0 has none" in refused("parquet", tmp_path).fix


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really PAR1")
    assert "replace test.parquet" in refused("parquet", tmp_path).fix


def test_cifar10_in_parquet_has_five_thousand_training_images_a_class(tmp_path: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pictures = [png(label, height=32, width=32) for label in range(10)]  # one for all images of a class
    for split, count in (("train", 5000), ("test", 1000)):
        write_parquet(tmp_path / f"{split}.parquet", [*range(10)] * count, pictures * count, names)
    assert_is_cifar10(tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_the_real_cifar10_in_parquet_has_five_thousand_training_images_a_class(real_cifar10: Path) -> None:
    assert_is_cifar10(real_cifar10)


def assert_is_cifar10(folder: Path) -> None:
    facts = inspect(source("cifar10", folder))
    assert (facts.layout, facts.channels, facts.height, facts.width) == ("parquet", 3, 32, 32)
    assert facts.train_per_class == (5000,) * 10 and facts.test_per_class == (1000,) * 10
    assert facts.class_names[0] == "airplane"


# Recognising


def test_a_layout_nobody_knows_is_answered_with_the_known_ones() -> None:
    error = refused("imagenet", None)
    assert (error.field, error.value) == ("dataset.layout", "imagenet")
    assert all(layout in error.fix for layout in sources.LAYOUTS)


@pytest.mark.parametrize("layout", [name for name in sources.LAYOUTS if name != "digits"])
def test_a_path_that_is_not_there_is_answered_with_what_to_fetch(tmp_path: Path, layout: str) -> None:
    error = refused(layout, tmp_path / "nowhere")
    assert error.field == "dataset.path" and error.value == str(tmp_path / "nowhere")
    assert error.fix.startswith("nothing is there: ") and error.fix.endswith("and give its path")


def test_only_fashion_mnist_and_digits_go_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("cifar10", None).value is None
    moved = replace(DATASETS["fashion-mnist"], default_path=str(tmp_path / "missing"))
    monkeypatch.setitem(cast("dict[str, DatasetInfo]", DATASETS), "fashion-mnist", moved)
    assert "dataset-fashion-mnist" in refused("fashion-mnist", None).fix


@pytest.mark.parametrize("layout", sorted(set(sources.LAYOUTS) - {"digits"}))
def test_an_empty_folder_is_refused(tmp_path: Path, layout: str) -> None:
    assert refused(layout, tmp_path).field == "dataset.path"


def test_auto_refuses_a_folder_with_two_datasets(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    write_mnist(tmp_path / "MNIST" / "raw")
    assert "mnist or cifar10" in refused("auto", tmp_path).fix
    assert inspect(source("mnist", tmp_path)).layout == "mnist"


# Fingerprints


def test_files_are_fingerprinted_by_name_and_content_in_any_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert fingerprint_files([a, b], tmp_path) == fingerprint_files([b, a], tmp_path)
    before = fingerprint_files([a, b], tmp_path)
    a.write_text("b")
    b.write_text("a")
    assert fingerprint_files([a, b], tmp_path) != before


WRITERS: dict[str, Callable[[Path], None]] = {
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "tiny-imagenet": write_tiny,
    "folder": write_folders,
    "parquet": write_pair,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_a_fingerprint_survives_moving_copying_touching_and_stray_files(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path / "first")
    before = inspect(source(layout, tmp_path / "first")).fingerprint
    copy = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(tmp_path / "first", copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    (copy / "README.txt").write_text("stray")
    assert inspect(source(layout, copy)).fingerprint == before
    (tmp_path / "first").rename(tmp_path / "second")
    assert inspect(source(layout, tmp_path / "second")).fingerprint == before


@pytest.mark.parametrize("layout", WRITERS)
def test_a_fingerprint_changes_with_one_byte_of_any_file_read(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path / "data")
    opened = sources._open(source(layout, tmp_path / "data"))
    seen = {inspect(source(layout, tmp_path / "data")).fingerprint}
    for path in opened.files:  # a spoilt file may not open any more, hence the private function
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        seen.add(sources._fingerprint(replace(opened, digests=dict)))  # nothing of it was read before
        path.write_bytes(content)
    assert len(seen) == 1 + len(opened.files) > 2


# Readers from outside

RAW_READER = '''
"""Reads `raw.npz`: arrays train, train_labels, test and test_labels."""

import numpy as np

from workers.data.layouts import Opened, RawPictures, Reader, Split


def find(source, path):
    return path if (path / "raw.npz").is_file() else None


def open_raw(source, folder):
    with np.load(folder / "raw.npz") as file:
        train, test = (
            Split(file[f"{name}_labels"], RawPictures(file[name])) for name in ("train", "test")
        )
    return Opened("raw", train, test, ("no", "yes"), folder, (folder / "raw.npz",))


RAW = Reader(find, open_raw)
NOT_A_READER = "raw"
'''


@pytest.fixture
def raw_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a reader on the path, and a folder with what it reads."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "raw_reader.py").write_text(RAW_READER)
    monkeypatch.syspath_prepend(tmp_path / "code")
    images, labels = np.arange(6 * 16, dtype=np.uint8).reshape(6, 1, 4, 4), np.array([0, 1] * 3)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "raw.npz", train=images, train_labels=labels, test=images[:2], test_labels=labels[:2])
    return tmp_path / "data"


def test_a_reader_from_outside_is_named_by_its_import_path(raw_reader: Path) -> None:
    facts, arrays = both("raw_reader:RAW", raw_reader)
    assert (facts.layout, facts.class_names, facts.train_per_class) == ("raw_reader:RAW", ("no", "yes"), (3, 3))
    assert arrays.train_images[5, 0, 0, 0] == 80


@pytest.mark.parametrize(
    ("layout", "field", "fix"),
    [
        ("nowhere:RAW", "dataset.name", "importable"),
        ("raw_reader:GONE", "dataset.name", "importable"),
        ("raw_reader:NOT_A_READER", "dataset.name", "workers.data.layouts.Reader, not a str"),
    ],
)
def test_a_reader_that_is_none_is_refused(raw_reader: Path, layout: str, field: str, fix: str) -> None:
    error = refused(layout, raw_reader)
    assert (error.field, error.value) == (field, layout) and fix in error.fix


def test_a_reader_that_finds_nothing_is_refused(raw_reader: Path, tmp_path: Path) -> None:
    assert "finds nothing there" in refused("raw_reader:RAW", tmp_path).fix
    assert "give its path" in refused("raw_reader:RAW", None).fix


def test_every_reader_of_the_registry_can_be_imported() -> None:
    assert {name for name in DATASETS if DATASETS[name].reader and sources._reader(name)} == set(DATASETS) - {"svhn"}


def test_the_registry_knows_the_digits_as_they_are() -> None:
    facts, known = inspect(source("digits", None)), DATASETS["digits"]
    assert (facts.channels, facts.height, facts.width) == (known.channels, known.height, known.width)
    assert (facts.class_names, facts.train_per_class) == (known.class_names, known.train_per_class)


def test_a_data_set_without_a_layout_of_its_own_is_read_from_class_folders(tmp_path: Path) -> None:
    write_folders(tmp_path)
    assert inspect(source("svhn", tmp_path)).layout == "folder"
