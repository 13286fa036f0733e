"""Folders and files that may mean two things: what their owner means is read, or both are named and refused."""

from __future__ import annotations

import io
import json
import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from tests.workers.data.test_sources import both, png, refused, save, shade, source, values, write_parquet
from workers.data.readers.parquet_files import family_of
from workers.data.sources import inspect

NAMES = ("ant", "bee")


# Class folders


def class_folders(split: Path, first: int) -> None:
    for label, name in enumerate(NAMES):
        save(split / name / "a.png", shade(first + label))


@pytest.mark.parametrize("other", ["Train", "training", "Test"])
def test_two_folders_of_one_split_are_refused_with_both_names(tmp_path: Path, other: str) -> None:
    for split in ("train", "test", other):
        class_folders(tmp_path / split, 0)
    error = refused("auto", tmp_path)
    assert f"keep one of {'test' if other == 'Test' else 'train'} and {other}" in error.fix


def test_an_empty_folder_of_another_name_for_training_is_no_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / split, 0)
    (tmp_path / "Training").mkdir()
    assert inspect(source("auto", tmp_path)).train_per_class == (1, 1)


def test_a_class_that_is_called_train_is_a_class(tmp_path: Path) -> None:
    for label, name in enumerate(("bus", "car", "train")):
        for number in range(5):
            save(tmp_path / name / f"{number}.png", shade(10 * label + number))
    assert "there are 3 folders of images" in refused("auto", tmp_path).fix
    facts, arrays = both("auto", tmp_path, test="0.2")
    assert facts.class_names == ("bus", "car", "train")
    assert values(arrays.test_images) == [4, 14, 24]


# Metadata


def metadata(folder: Path, lines: Sequence[tuple[str, object]], kind: str = "jsonl", first: int = 0) -> None:
    """Pictures with consecutive shades, and their labels."""
    for number, (name, _) in enumerate(lines):
        save(folder / name, shade(first + number))
    if kind == "jsonl":
        rows = [json.dumps({"file_name": name, "label": label}) for name, label in lines]
    else:
        rows = ["file_name,label", *(f"{name},{label}" for name, label in lines)]
    (folder / f"metadata.{kind}").write_text("\n".join(rows) + "\n")


def test_the_folder_of_a_split_goes_before_folders_below_it(tmp_path: Path) -> None:
    lines = [("images-train/a.png", "train"), ("validated/b.png", "bus")]
    metadata(tmp_path / "train", lines)
    metadata(tmp_path / "test", lines, first=7)
    facts, arrays = both("metadata", tmp_path)
    assert (facts.class_names, values(arrays.train_images), values(arrays.test_images)) == (
        ("bus", "train"),
        [0, 1],
        [7, 8],
    )


def test_labels_are_words_in_both_splits_if_they_are_in_one(tmp_path: Path) -> None:
    metadata(tmp_path / "train", [("a.png", "cat"), ("b.png", "1")], "csv")
    metadata(tmp_path / "test", [("a.png", "1"), ("b.png", "1"), ("c.png", "cat")], "csv")
    facts = inspect(source("auto", tmp_path))
    assert (facts.class_names, facts.test_per_class) == (("1", "cat"), (2, 1))


def test_labels_that_differ_by_a_leading_zero_are_two_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        metadata(tmp_path / split, [("a.png", "01"), ("b.png", "1")], "csv")
    assert inspect(source("auto", tmp_path)).class_names == ("01", "1")


def test_a_picture_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        metadata(tmp_path / split, [("a.png", "x"), ("b.png", "y")])
    metadata(tmp_path / "train", [("a.png", "x"), ("b.png", "y")], "csv")
    assert "train/a.png is there twice" in refused("auto", tmp_path).fix


@pytest.mark.parametrize("label", [["x"], {"x": 1}])
def test_a_label_that_is_no_number_or_word_is_refused(tmp_path: Path, label: object) -> None:
    for split in ("train", "test"):
        metadata(tmp_path / split, [("a.png", "x"), ("b.png", label)])
    assert f"line 2 of test/metadata.jsonl has {label!r}" in refused("auto", tmp_path).fix


def test_a_picture_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "other.png", shade(1))
    for split in ("train", "test"):
        metadata(tmp_path / "own" / split, [("a.png", "x"), ("b.png", "y")])
    with (tmp_path / "own" / "train" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": str(tmp_path / "other.png"), "label": "x"}) + "\n")
    assert "line 3 of train/metadata.jsonl" in refused("auto", tmp_path / "own").fix


# Tables


def test_hidden_files_are_not_shards(tmp_path: Path) -> None:
    for name in ("train", "test", "._train", ".ipynb_checkpoints/train-checkpoint"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1], names=NAMES)
    assert inspect(source("auto", tmp_path)).train_per_class == (1, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train", "train_old"),
        ("plain_train", "augmented_train"),
        ("train", "train-00000-of-00001"),
        ("train-00000-of-00001", "train-00000-of-00002"),
        ("default/train/0000", "default/partial-train/0000"),
        ("train/data-00000-of-00001", "train/data-00000-of-00002"),
    ],
)
def test_what_is_no_shard_of_the_same_split_is_refused_with_both_names(tmp_path: Path, one: str, other: str) -> None:
    assert family_of(Path(f"{one}.parquet")) != family_of(Path(f"{other}.parquet"))
    for name in (one, other, "test"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1], names=NAMES)
    error = refused("parquet", tmp_path)
    assert f"{one}.parquet" in error.fix and f"{other}.parquet" in error.fix


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train-00000-of-00002-3f2a", "train-00001-of-00002-99bc"),
        ("train_1", "train_2"),
        ("train/0000", "train/0001"),
        ("train.0.snappy", "train.1.snappy"),
        ("train2020", "train2021"),
    ],
)
def test_shards_of_one_split_differ_by_their_numbers(one: str, other: str) -> None:
    assert family_of(Path(f"{one}.parquet")) == family_of(Path(f"{other}.parquet"))


def table(labels: Sequence[object]) -> pa.Table:
    images = [{"bytes": png(number), "path": None} for number in range(len(labels))]
    return pa.table({"image": pa.array(images), "label": pa.array(labels)})


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 1], ["a", "b"], "those of train are numbers, of test words"),
        (["0", "1"], [0, 1], "those of train are words, of test numbers"),
        ([1e300, 0.0], [0.0, 0.0], "write labels as smaller numbers"),
        ([2**63 - 1, 0], [0, 0], "write labels as smaller numbers"),
    ],
)
def test_labels_that_are_none_are_refused_in_a_sentence(
    tmp_path: Path, train: Sequence[object], test: Sequence[object], said: str
) -> None:
    pq.write_table(table(train), tmp_path / "train.parquet")
    pq.write_table(table(test), tmp_path / "test.parquet")
    assert said in refused("parquet", tmp_path).fix


def test_words_do_not_take_the_class_names_of_a_schema(tmp_path: Path) -> None:
    schema = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["x", "y"]}}}})}
    for split in ("train", "test"):
        pq.write_table(table(["a", "b"]).replace_schema_metadata(schema), tmp_path / f"{split}.parquet")
    assert inspect(source("parquet", tmp_path)).class_names == ("a", "b")


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, column: str) -> None:
    whole = table(["a", "b"])
    pq.write_table(whole, tmp_path / "test.parquet")
    pq.write_table(whole.append_column(column, whole[column]), tmp_path / "train.parquet")
    assert "one column of this name; it has 2" in refused("parquet", tmp_path).fix


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [0, 1], names=names)
    assert "two that are called 'café'" in refused("parquet", tmp_path).fix


# Arrays


def test_images_without_pixels_are_refused(tmp_path: Path) -> None:
    empty, labels = np.zeros((2, 0, 4), np.uint8), np.arange(2)
    np.savez(tmp_path / "d.npz", train_images=empty, train_labels=labels, test_images=empty, test_labels=labels)
    assert "give the images pixels" in refused("auto", tmp_path / "d.npz").fix


def test_a_zip_file_of_a_version_to_come_is_refused(tmp_path: Path) -> None:
    file, labels = tmp_path / "d.npz", np.arange(2)
    np.savez(file, train_images=np.zeros((2, 4, 4), np.uint8), train_labels=labels)
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 109  # the version that is needed to read the first entry
    file.write_bytes(content)
    assert "npz" in refused("npz", file).fix


# Turned pictures


def orientation_in(place: str) -> bytes:
    """A PNG picture that is to be turned by a half, as one of the ways to write that says."""
    picture, exif, text = Image.fromarray(np.array([[0, 100, 200]], np.uint8)), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 3
    if place == "XMP":
        text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    elif place == "ImageMagick's text":
        data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        text.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=text, exif=exif if place == "EXIF" else Image.Exif())
    return stream.getvalue()


def late(content: bytes) -> bytes:
    """The same PNG file with its chunks that tell the orientation behind the pixels."""
    chunks, at = list[bytes](), 8
    while at < len(content):
        length = 12 + struct.unpack(">I", content[at : at + 4])[0]
        chunks.append(content[at : at + length])
        at += length
    telling = [chunk for chunk in chunks if chunk[4:8] in (b"eXIf", b"iTXt", b"zTXt")]
    assert telling
    others = [chunk for chunk in chunks if chunk not in telling]
    return content[:8] + b"".join([*others[:-1], *telling, others[-1]])


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("place", ["EXIF", "XMP", "ImageMagick's text"])
def test_a_png_is_turned_wherever_its_orientation_stands(tmp_path: Path, place: str, behind: bool) -> None:
    content = orientation_in(place)
    for split in ("train", "test"):
        for name in NAMES:
            save(tmp_path / split / name / "a.png", late(content) if behind else content)
    _, arrays = both("folder", tmp_path)
    assert arrays.train_images[0, 0].tolist() == [[200, 100, 0]]
