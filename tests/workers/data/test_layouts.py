"""The layouts that people have: each is read, or refused with what was seen and the word that helps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.workers.data.test_sources import (
    both,
    png,
    refused,
    save,
    shade,
    source,
    values,
    write_folders,
    write_parquet,
)
from workers.data.sources import inspect

# Pictures with metadata


def write_metadata(
    folder: Path, labels: Sequence[Any], kind: str = "csv", column: str = "label", first: int = 0
) -> None:
    """Picture i of value i, with the i-th label."""
    rows = [{"file_name": f"images/{first + i}.png", column: label} for i, label in enumerate(labels)]
    for number, row in enumerate(rows, start=first):
        save(folder / str(row["file_name"]), shade(number))
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = [f"file_name,{column}", *(f"{row['file_name']},{row[column]}" for row in rows)]
    (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("asked", ["auto", "metadata"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [(["bee", "ant", "bee"], ("ant", "bee")), ([1, 0, 1], ("0", "1")), ([10, 9, 10], ("9", "10"))],
)
def test_metadata_beside_the_pictures_labels_them(
    tmp_path: Path, asked: str, kind: str, labels: list[object], names: tuple[str, ...]
) -> None:
    write_metadata(tmp_path / "train", labels, kind)
    write_metadata(tmp_path / "Validation", labels[:2], kind, first=7)
    facts, arrays = both(asked, tmp_path)
    assert (facts.layout, facts.class_names) == ("metadata", names)
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist()) == ([1, 0, 1], [1, 0])
    assert (values(arrays.train_images), values(arrays.test_images)) == ([0, 1, 2], [7, 8])


def test_one_file_of_metadata_may_name_pictures_of_all_splits_or_of_none(tmp_path: Path) -> None:
    write_metadata(tmp_path / "flat", ["a", "b"] * 4)
    facts, arrays = both("auto", tmp_path / "flat", test="0.25")
    assert (facts.train_per_class, facts.test_per_class) == ((3, 3), (1, 1))
    assert "dataset.test: 0.2" in refused("auto", tmp_path / "flat").fix
    for split in ("train", "test"):
        save(tmp_path / "whole" / split / "x.png", shade(1))
        save(tmp_path / "whole" / split / "y.png", shade(2))
    lines = ["file_name,label", *(f"{split}/{name}.png,{name}" for split in ("test", "train") for name in "xy")]
    (tmp_path / "whole" / "metadata.csv").write_text("\n".join(lines))
    assert inspect(source("auto", tmp_path / "whole")).test_per_class == (1, 1)


def test_folders_of_several_classes_go_before_stray_metadata(tmp_path: Path) -> None:
    write_folders(tmp_path)
    before = inspect(source("auto", tmp_path)).fingerprint
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\nant/a.png,ant\n")
    assert inspect(source("auto", tmp_path)).fingerprint == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name,kind\nimages/0.png,ant\n", "columns file_name and label; it has file_name, kind"),
        ("file_name,label\nimages/9.png,ant\n", "line 1 of train/metadata.csv names 'images/9.png'"),
        ("file_name,label\n../test/images/7.png,ant\n", "names '../test/images/7.png'"),
        ("file_name,label\nimages/0.png,\n", "line 1 of train/metadata.csv has none"),
        ("file_name,label\n\x00\n", "metadata.csv"),
        ("name\nimages/0.png,ant\n", "it has name"),
    ],
)
def test_metadata_that_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    write_metadata(tmp_path / "train", ["ant", "bee"])
    write_metadata(tmp_path / "test", ["ant", "bee"], first=7)
    (tmp_path / "train" / "metadata.csv").write_text(text)
    assert said in refused("auto", tmp_path).fix


def test_another_column_of_the_metadata_may_hold_the_labels(tmp_path: Path) -> None:
    write_metadata(tmp_path / "train", ["ant", "bee"], column="kind")
    write_metadata(tmp_path / "test", ["ant", "bee"], column="kind")
    assert inspect(source("auto", tmp_path, label_field="kind")).class_names == ("ant", "bee")


# Arrays in .npz


def write_npz(path: Path, splits: Mapping[str, int], keras: bool = False, colour: bool = False, **more: Any) -> None:
    arrays: dict[str, Any] = {}
    for split, count in splits.items():
        images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((count, 4, 5), np.uint8)
        names = (f"x_{split}", f"y_{split}") if keras else (f"{split}_images", f"{split}_labels")
        arrays[names[0]] = np.stack([images] * 3, axis=-1) if colour else images
        arrays[names[1]] = (np.arange(count) % 2).reshape(-1, *([] if keras else [1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays | more)


@pytest.mark.parametrize("keras", [False, True])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("file", [".", "toy.npz"])
def test_arrays_are_read_under_the_names_of_medmnist_and_keras(
    tmp_path: Path, file: str, colour: bool, keras: bool
) -> None:
    write_npz(tmp_path / "toy.npz", {"train": 4, "val": 6, "test": 2}, keras, colour)
    facts, arrays = both("auto", tmp_path / file)
    assert (facts.layout, facts.channels, facts.height, facts.width) == ("npz", 3 if colour else 1, 4, 5)
    assert (values(arrays.train_images), values(arrays.test_images)) == ([0, 1, 2, 3], [0, 1])
    assert inspect(source("auto", tmp_path / file, test="validation")).test_per_class == (3, 3)
    assert inspect(source("auto", tmp_path / file, test="0.5")).test_per_class == (1, 1)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ({"train_images": np.zeros((4, 2, 2), np.float32)}, "save train_images as bytes"),
        ({"train_images": np.zeros((4, 2, 2, 7), np.uint8)}, "not uint8 [4, 2, 2, 7]"),
        ({"train_labels": np.zeros((4, 3), np.int64)}, "train_labels is int64 [4, 3] for 4 images"),
        ({"train_labels": np.array([None] * 4)}, "train_labels is object [4] for 4 images"),
        ({"train_labels": np.zeros((3, 1), np.int64)}, "train_labels is int64 [3, 1] for 4 images"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(tmp_path: Path, array: dict[str, Any], said: str) -> None:
    write_npz(tmp_path / "toy.npz", {"train": 4, "test": 2}, **array)
    assert said in refused("auto", tmp_path).fix


def test_arrays_are_not_unpacked_before_their_headers_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "toy.npz", {"train": 4, "test": 2}, train_images=np.zeros((1 << 12, 1 << 9, 1 << 9), np.uint8))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("1 GiB was unpacked"))
    assert "for 4096 images" in refused("auto", tmp_path).fix
    write_npz(
        *(tmp_path / "toy.npz", {"train": 4, "test": 2}),
        train_images=np.zeros(((1 << 12) + 1, 1 << 9, 1 << 9), np.uint8),
        train_labels=np.arange((1 << 12) + 1),
    )
    assert "which no images are" in refused("auto", tmp_path).fix


def test_one_of_several_npz_files_must_be_named(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"train": 4, "test": 2})
    write_npz(tmp_path / "b.npz", {"train": 4, "test": 2})
    assert f"path: {tmp_path / 'b.npz'}" in refused("auto", tmp_path).fix


# Folders of save_to_disk


def write_saved(folder: Path, labels: Sequence[int], names: Sequence[str] = ("ant", "bee")) -> None:
    """As `Dataset.save_to_disk` of the `datasets` library writes it: Arrow streams and two JSON files."""
    folder.mkdir(parents=True)
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"label": {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    schema = pa.schema(
        [("image", picture), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for number, label in enumerate(labels):  # a batch a row
            cells = pa.array([{"bytes": png(number), "path": None}], picture)
            writer.write_batch(pa.record_batch([cells, pa.array([label])], schema=schema))
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")


@pytest.mark.parametrize("asked", ["auto", "saved"])
def test_folders_of_save_to_disk_are_read(tmp_path: Path, asked: str) -> None:
    write_saved(tmp_path / "train", [1, 0, 1])
    write_saved(tmp_path / "test", [0, 1])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    facts, arrays = both(asked, tmp_path)
    assert (facts.layout, facts.class_names) == ("saved", ("ant", "bee"))
    assert (values(arrays.train_images), arrays.train_labels.tolist()) == ([0, 1, 2], [1, 0, 1])


def test_a_saved_split_alone_is_cut(tmp_path: Path) -> None:
    write_saved(tmp_path / "saved", [0, 1] * 4)
    facts, arrays = both("auto", tmp_path / "saved", test="0.25")
    assert values(arrays.test_images) == [6, 7] and facts.train_per_class == (3, 3)
    assert "there is files that name no split" in refused("auto", tmp_path / "saved").fix


def test_a_damaged_saved_file_is_named(tmp_path: Path) -> None:
    write_saved(tmp_path / "train", [0, 1])
    write_saved(tmp_path / "test", [0, 1])
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"no Arrow")
    assert "data-00000-of-00001.arrow, which is no readable Arrow file" in refused("auto", tmp_path).fix


def test_a_saved_file_with_damaged_offsets_is_named_and_not_followed(tmp_path: Path) -> None:
    write_saved(tmp_path / "train", [0, 1])
    write_saved(tmp_path / "test", [0, 1])
    file = tmp_path / "train" / "data-00000-of-00001.arrow"
    content, picture = file.read_bytes(), png(0)
    end = len(picture).to_bytes(4, "little")  # where the first picture ends
    at = content.index(b"\x00\x00\x00\x00" + end) + 4
    file.write_bytes(content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :])
    assert "data-00000-of-00001.arrow, which is no readable Arrow file" in refused("auto", tmp_path).fix


def test_damaged_names_of_classes_are_refused(tmp_path: Path) -> None:
    write_saved(tmp_path / "train", [0, 1])
    write_saved(tmp_path / "test", [0, 1])
    file = tmp_path / "train" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(b'{"info"', b'{"info\xff'))
    assert "classes is damaged" in refused("auto", tmp_path).fix


# Splits


@pytest.mark.parametrize("name", ["train.parquet", "everything.parquet", "test.parquet"])
def test_one_parquet_file_is_enough_with_a_share_for_testing(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / name, [0, 1] * 5)
    facts = inspect(source("auto", tmp_path, test="0.2"))
    assert (facts.train_per_class, facts.test_per_class) == ((4, 4), (1, 1))
    assert "dataset.test: 0.2; there is" in refused("auto", tmp_path).fix


@pytest.mark.parametrize("word", ["Test", "TESTING", "eval", "evaluation", "val", "VALID", "validation", "dev"])
def test_test_splits_go_by_the_names_that_datasets_knows(tmp_path: Path, word: str) -> None:
    write_folders(tmp_path / "folders", word)
    assert inspect(source("auto", tmp_path / "folders")).test_per_class == (1, 1)
    write_parquet(tmp_path / "parquet" / "Training-0.parquet", [0, 1])
    write_parquet(tmp_path / "parquet" / f"{word}-0.parquet", [0, 1])
    assert inspect(source("auto", tmp_path / "parquet")).test_per_class == (1, 1)


def test_of_two_labelled_splits_the_one_named_is_tested_on(tmp_path: Path) -> None:
    write_folders(tmp_path, "test")
    for name in ("ant", "bee"):
        for number in range(3):
            save(tmp_path / "val" / name / f"{number}.png", shade(number))
    assert inspect(source("auto", tmp_path)).test_per_class == (1, 1)
    assert inspect(source("auto", tmp_path, test="validation")).test_per_class == (3, 3)


# Sizes


def test_a_test_split_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"train": 6, "val": 4, "test": 4})
    error = refused("npz", path, test="tset")
    assert (error.field, error.value) == ("dataset.test", "tset")
    assert error.fix == "must be test or validation, which is there, or a share such as 0.2"


def test_pictures_of_several_sizes_need_a_size_which_crops_the_middle(tmp_path: Path) -> None:
    write_folders(tmp_path)
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 200
    save(tmp_path / "train" / "ant" / "a.png", Image.fromarray(stripes))
    save(tmp_path / "train" / "ant" / "b.png", Image.fromarray(stripes.transpose(1, 0, 2)))
    assert "dataset.size: 32" in refused("auto", tmp_path).fix
    facts, arrays = both("auto", tmp_path, size=8)
    assert (facts.height, facts.width) == (8, 8)
    assert values(arrays.train_images)[:2] == [200, 200]
    assert facts.fingerprint != inspect(source("auto", tmp_path, size=9)).fingerprint


def test_stored_pixels_are_resized_too(tmp_path: Path) -> None:
    write_npz(tmp_path / "toy.npz", {"train": 4, "test": 2}, colour=True)
    facts, arrays = both("auto", tmp_path, size=3)
    assert (facts.channels, facts.height, facts.width) == (3, 3, 3)
    assert values(arrays.train_images) == [0, 1, 2, 3]
    assert facts.fingerprint != inspect(source("auto", tmp_path)).fingerprint


# What was seen


def test_what_was_passed_over_is_counted_in_one_line(tmp_path: Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "README").write_text("x")
    save(tmp_path / "train" / "loose.png", shade(1))
    notes = inspect(source("auto", tmp_path)).notes
    assert notes == ("passed over: 3 files (1 README, 1 .png, 1 .txt)",)


def test_nothing_known_says_what_is_there(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "pictures" / f"{number}.png", shade(number))
    (tmp_path / "labels.mat").write_text("x")
    fix = refused("auto", tmp_path).fix
    assert "it has 1 folder (pictures) and in all 4 files (3 .png, 1 .mat)" in fix
    assert "it is a .mat" in refused("auto", tmp_path / "labels.mat").fix
    for layout in ("parquet", "saved", "npz", "metadata", "folder"):
        assert refused(layout, tmp_path).fix
    assert "4 files" in refused("parquet", tmp_path).fix
