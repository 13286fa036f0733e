"""Folders and files as people really have them: each is read as its owner means it, or refused in a sentence."""

from __future__ import annotations

import gzip
import os
import struct
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.workers.data.test_sources import (
    both,
    refused,
    save,
    shade,
    source,
    values,
    write_folders,
    write_parquet,
)
from workers.data import remembered
from workers.data.dataset import read_split, write_split
from workers.data.layouts import share_of_class
from workers.data.readers import array_files, pictures
from workers.data.readers.image_paths import images_below
from workers.data.readers.parquet_files import configuration_of
from workers.data.sources import inspect

NAMES = ("ant", "bee")


# Subfolders


def test_pictures_in_subfolders_of_a_class_belong_to_it(tmp_path: Path) -> None:
    write_folders(tmp_path)
    save(tmp_path / "train" / "ant" / "2024" / "05" / "x.png", shade(3))
    save(tmp_path / "train" / "ant" / ".hidden" / "y.png", shade(4))
    facts, arrays = both("auto", tmp_path)
    assert (facts.layout, facts.train_per_class) == ("folder", (3, 2))
    assert values(arrays.train_images) == [3, 0, 1, 10, 11]


def test_a_pipe_or_a_device_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    write_folders(tmp_path)
    odd = tmp_path / "train" / "ant" / "c.png"
    os.mkfifo(odd)
    assert "a pipe, a socket or a device" in refused("auto", tmp_path).fix
    odd.unlink()
    odd.symlink_to("/dev/zero")
    assert "a pipe, a socket or a device" in refused("auto", tmp_path).fix
    os.mkfifo(tmp_path / "data.npz")
    assert "a pipe, a socket or a device" in refused("auto", tmp_path / "data.npz").fix


def test_a_picture_in_a_subfolder_is_in_the_fingerprint(tmp_path: Path) -> None:
    write_folders(tmp_path)
    save(tmp_path / "train" / "ant" / "deep" / "x.png", shade(3))
    before = inspect(source("folder", tmp_path)).fingerprint
    save(tmp_path / "train" / "ant" / "deep" / "x.png", shade(4))
    assert inspect(source("folder", tmp_path)).fingerprint != before


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    save(tmp_path / "class" / "a.png", shade(1))
    (tmp_path / "class" / "again").symlink_to(tmp_path / "class", target_is_directory=True)
    assert images_below(tmp_path / "class") == [tmp_path / "class" / "a.png"]


def test_a_forest_of_links_is_walked_folder_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdefghijkl":  # every path through the links would be half a billion
        save(tmp_path / name / "x.png", shade(1))
        (tmp_path / name / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(images_below(tmp_path)) == 12
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0)
    assert remembered.tree_state(tmp_path) is not None


def test_classes_with_a_folder_called_images_are_not_tiny_imagenet(tmp_path: Path) -> None:
    for split, value in (("train", 0), ("test", 50)):
        for label, name in enumerate(NAMES):
            save(tmp_path / split / name / "images" / "a.png", shade(value + label))
    facts, arrays = both("auto", tmp_path)
    assert (facts.layout, facts.class_names) == ("folder", NAMES)
    assert values(arrays.train_images) == [0, 1] and values(arrays.test_images) == [50, 51]


# Turned pictures


def turned(path: Path, orientation: int, **options: object) -> None:
    """A picture of 3x2 pixels whose first row is 200, 100, 0; saved as a camera held in this way saves it."""
    picture = Image.fromarray(np.array([[200, 100, 0], [0, 0, 0]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif, **options)


SEEN = {
    1: [[200, 100, 0], [0, 0, 0]],
    2: [[0, 100, 200], [0, 0, 0]],
    3: [[0, 0, 0], [0, 100, 200]],
    4: [[0, 0, 0], [200, 100, 0]],
    5: [[200, 0], [100, 0], [0, 0]],
    6: [[0, 200], [0, 100], [0, 0]],
    7: [[0, 0], [0, 100], [0, 200]],
    8: [[0, 0], [100, 0], [200, 0]],
}
"""What a person sees of that picture, by its orientation (the table of the EXIF standard)."""


@pytest.mark.parametrize("orientation", SEEN)
def test_a_picture_is_turned_as_its_exif_data_says(tmp_path: Path, orientation: int) -> None:
    for name in NAMES:
        turned(tmp_path / "train" / name / "a.png", orientation)
        turned(tmp_path / "test" / name / "a.png", orientation)
    facts, arrays = both("folder", tmp_path)
    assert (facts.height, facts.width) == np.shape(SEEN[orientation])
    assert arrays.train_images[0, 0].tolist() == SEEN[orientation]


def test_a_turn_changes_the_fingerprint_and_an_upright_picture_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for orientation in (1, 3):
        for name in NAMES:
            turned(tmp_path / str(orientation) / "train" / name / "a.png", orientation)
            turned(tmp_path / str(orientation) / "test" / name / "a.png", orientation)
    upright, half = (inspect(source("folder", tmp_path / name)).fingerprint for name in ("1", "3"))
    monkeypatch.setattr(pictures, "turn_of", lambda picture: None)  # as before EXIF data were read
    assert inspect(source("folder", tmp_path / "1")).fingerprint == upright
    assert inspect(source("folder", tmp_path / "3")).fingerprint != half


def test_one_sideways_picture_among_upright_ones_has_another_size(tmp_path: Path) -> None:
    write_folders(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    shade(1).save(tmp_path / "train" / "ant" / "b.jpg", exif=exif)
    assert "b.jpg is 3x2, the first one 2x3" in refused("folder", tmp_path).fix


# Large things


def test_a_picture_above_the_limit_is_refused_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path)
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 5)
    error = refused("folder", tmp_path)
    assert "a.png has 2x3" in error.fix and "5 pixels at most" in error.fix


def test_a_picture_far_above_the_limit_is_refused_for_its_size_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    assert "pixels at most" in refused("folder", tmp_path).fix


def idx_file(folder: Path, sizes: Sequence[int], data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + len(sizes)}I", 0x800 + len(sizes), *sizes)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + data))


@pytest.mark.parametrize(
    ("sizes", "data", "said"),
    [
        ((2, 2, 2), bytes(1 << 20), "more bytes of data, not [2, 2, 2]"),
        ((2, 2, 2), bytes(7), "7 bytes of data, not [2, 2, 2]"),
        ((1 << 20, 1 << 10, 2), b"", "more than the 1024 MiB that are read"),
    ],
)
def test_an_idx_file_is_unpacked_no_further_than_its_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int], data: bytes, said: str
) -> None:
    idx_file(tmp_path, sizes, data)
    read: list[int] = []
    plain = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        content = plain(self, size)
        read.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(Exception, match="fetch the file anew") as error:
        array_files.read_idx(source("mnist", tmp_path), tmp_path / "train-images-idx3-ubyte.gz", 3)
    assert said in str(error.value) and sum(read) < 100


# Names


def test_two_forms_of_one_name_are_one_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != apart
    for split, name in (("train", apart), ("test", composed)):
        save(tmp_path / split / name / "a.png", shade(1))
        save(tmp_path / split / "bee" / "a.png", shade(2))
    save(tmp_path / "train" / composed / "b.png", shade(3))
    facts, arrays = both("auto", tmp_path)
    assert (facts.class_names, facts.train_per_class, facts.test_per_class) == (("bee", composed), (1, 2), (1, 1))
    assert sorted(values(arrays.train_images)[1:]) == [1, 3]


def test_two_forms_of_one_name_in_parquet_are_one_class(tmp_path: Path) -> None:
    for split, form in (("train", "NFD"), ("test", "NFC")):
        names = ["bee", unicodedata.normalize(form, "café")]
        write_parquet(tmp_path / f"{split}.parquet", [0, 1], names=names)
    assert inspect(source("parquet", tmp_path)).class_names == ("bee", "café")


def test_a_class_folder_whose_name_is_no_utf8_is_named_in_one_sentence(tmp_path: Path) -> None:
    write_folders(tmp_path)
    strange = os.fsencode(tmp_path) + b"/train/caf\xe9"
    os.mkdir(strange)
    error = refused("folder", tmp_path)
    assert error.fix == r"rename the folder b'caf\xe9' in train: its name is not UTF-8"
    str(error).encode()


@pytest.mark.parametrize("names", [("ant", "bee"), ("N\nA", "bee"), ("", "a\n\nb"), ('["x"]', "\r")])
def test_names_of_classes_come_back_as_they_were(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_split(tmp_path / "train.arrow", np.zeros((2, 1, 2, 2), np.uint8), np.arange(2), names)
    images, labels, read = read_split(tmp_path / "train.arrow")
    assert read == names and labels.tolist() == [0, 1] and images.dtype == torch.uint8


def test_names_of_one_line_are_stored_as_ever(tmp_path: Path) -> None:
    write_split(tmp_path / "train.arrow", np.zeros((2, 1, 2, 2), np.uint8), np.arange(2), NAMES)
    with pa.memory_map(str(tmp_path / "train.arrow")) as stored:
        assert pa.ipc.open_file(stored).schema.metadata == {b"shape": b"1,2,2", b"classes": b"ant\nbee"}


# Parquet


def test_two_configurations_side_by_side_are_refused_with_the_choice(tmp_path: Path) -> None:
    for configuration in ("plain", "augmented"):
        for split in ("train", "test"):
            write_parquet(tmp_path / configuration / f"{split}-00000-of-00001.parquet", [0, 1], names=NAMES)
    error = refused("auto", tmp_path)
    assert f"path: {tmp_path / 'augmented'} or path: {tmp_path / 'plain'}" in error.fix
    assert inspect(source("auto", tmp_path / "plain")).train_per_class == (1, 1)


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("train.parquet", "."),
        ("data/train-00000-of-00002.parquet", "data"),
        ("plain/train-00000-of-00002.parquet", "plain"),
        ("default/train/0000.parquet", "default"),
        ("train/part-1/0000.parquet", "."),
        ("other/0000.parquet", "other"),
    ],
)
def test_a_configuration_is_what_stands_before_the_split(name: str, configuration: str) -> None:
    assert configuration_of(Path(name)) == Path(configuration)


def test_shards_in_folders_below_their_split_are_one_configuration(tmp_path: Path) -> None:
    for number in (1, 2):
        write_parquet(tmp_path / "train" / f"part-{number}" / "0000.parquet", [0, 1], names=NAMES)
    write_parquet(tmp_path / "test" / "0000.parquet", [0, 1], names=NAMES)
    assert inspect(source("parquet", tmp_path)).train_per_class == (2, 2)


def test_names_of_classes_in_one_of_the_splits_are_enough(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1], names=NAMES)
    write_parquet(tmp_path / "test.parquet", [0, 1])
    assert inspect(source("parquet", tmp_path)).class_names == NAMES


# Splits by other names, or none


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("Train", "Test"), ("TRAIN", "VAL"), ("train", "dev"), ("training", "eval")],
)
def test_split_folders_may_have_other_usual_names_and_capitals(tmp_path: Path, train: str, test: str) -> None:
    for split, value in ((train, 0), (test, 50)):
        for label, name in enumerate(NAMES):
            save(tmp_path / split / name / "a.png", shade(value + label))
    facts, arrays = both("auto", tmp_path)
    assert (facts.layout, facts.class_names, values(arrays.test_images)) == ("folder", NAMES, [50, 51])


def flat(root: Path, count: int = 10) -> None:
    """Class folders without a split; image k of class c is 100 c + k."""
    for label, name in enumerate(NAMES):
        for number in range(count):
            save(root / name / f"{number:02}.png", shade(100 * label + number))


def test_class_folders_without_a_split_are_refused_with_what_to_say(tmp_path: Path) -> None:
    flat(tmp_path)
    for layout in ("auto", "folder"):
        fix = refused(layout, tmp_path).fix
        assert "there are 2 folders of images, no split: cut one off with dataset.test: 0.2" in fix


def test_class_folders_without_a_split_work_with_a_share_for_testing(tmp_path: Path) -> None:
    flat(tmp_path)
    facts, arrays = both("auto", tmp_path, test="0.2")
    assert (facts.class_names, facts.train_per_class, facts.test_per_class) == (NAMES, (8, 8), (2, 2))
    assert values(arrays.test_images) == [4, 9, 104, 109]
    other = inspect(source("auto", tmp_path, test="0.3"))
    assert other.test_per_class == (3, 3) and other.fingerprint != facts.fingerprint


def test_a_training_split_alone_is_cut_when_a_share_is_given(tmp_path: Path) -> None:
    flat(tmp_path / "train")
    assert "no test split: cut one off" in refused("folder", tmp_path).fix
    assert inspect(source("folder", tmp_path, test="0.25")).test_per_class == (2, 2)
    write_parquet(tmp_path / "shards" / "train.parquet", [0, 1] * 8)
    assert "dataset.test: 0.2" in refused("parquet", tmp_path / "shards").fix
    facts, arrays = both("parquet", tmp_path / "shards", test="0.25")
    assert facts.test_per_class == (2, 2) and values(arrays.test_images) == [6, 7, 14, 15]


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.2"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str) -> None:
    flat(tmp_path)
    error = refused("folder", tmp_path, test=share)
    assert (error.field, error.value) == ("dataset.test", share)


def test_a_data_set_with_a_test_split_of_its_own_takes_no_share() -> None:
    assert "leave it out: digits has a test split of its own" in refused("digits", None, test="0.2").fix


@pytest.mark.parametrize(("labels", "share", "chosen"), [([0] * 8, 0.25, [3, 7]), ([0, 1] * 5, 0.4, [4, 5, 8, 9])])
def test_the_images_for_testing_are_evenly_spaced_in_each_class(
    labels: list[int], share: float, chosen: list[int]
) -> None:
    assert np.flatnonzero(share_of_class(np.array(labels), share)).tolist() == chosen


@pytest.mark.parametrize("word", ["dev", "eval", "valid"])
def test_parquet_files_may_name_the_test_split_otherwise(tmp_path: Path, word: str) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / f"{word}-00000-of-00001.parquet", [0, 1])
    assert inspect(source("auto", tmp_path)).test_per_class == (1, 1)


# Labels


def labelled(root: Path, train: Sequence[object], test: Sequence[object], kind: pa.DataType) -> None:
    for split, labels in (("train", train), ("test", test)):
        write_parquet(root / f"{split}.parquet", list(range(len(labels))))
        table = pq.read_table(root / f"{split}.parquet")
        pq.write_table(table.set_column(1, "label", pa.array(labels, kind)), root / f"{split}.parquet")


@pytest.mark.parametrize(
    ("kind", "train", "names"),
    [
        (pa.string(), ["bee", "ant", "bee"], ("ant", "bee")),
        (pa.large_string(), ["bee", "ant", "bee"], ("ant", "bee")),
        (pa.dictionary(pa.int32(), pa.string()), ["bee", "ant", "bee"], ("ant", "bee")),
        (pa.float64(), [1.0, 0.0, 1.0], ("0", "1")),
        (pa.float32(), [7.0, 5.0, 7.0], ("5", "7")),
        (pa.bool_(), [True, False, True], ("False", "True")),
        (pa.int64(), [2, 1, 2], ("1", "2")),
        (pa.uint8(), [9, 3, 9], ("3", "9")),
    ],
)
def test_the_sorted_values_of_a_label_column_are_the_classes(
    tmp_path: Path, kind: pa.DataType, train: list[object], names: tuple[str, ...]
) -> None:
    labelled(tmp_path, train, train[:2], kind)
    facts, arrays = both("parquet", tmp_path)
    assert facts.class_names == names
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist()) == ([1, 0, 1], [1, 0])


def test_classes_that_were_filtered_out_are_left_out_with_a_note(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [3, 1, 3], names=list("abcde"))
    facts, arrays = both("parquet", tmp_path)
    assert facts.class_names == ("b", "d") and arrays.train_labels.tolist() == [1, 0, 1]
    assert facts.notes == ("3 of 5 classes have no image and are left out: 'a', 'c', 'e'",)


@pytest.mark.parametrize(
    ("train", "test", "kind", "said"),
    [
        ([0.5, 1.0], [1.0, 0.5], pa.float64(), "have fractions"),
        (["ant", "bee"], ["ant", "cow"], pa.string(), "only test has label 'cow'"),
    ],
)
def test_values_that_are_no_classes_are_refused(
    tmp_path: Path, train: list[object], test: list[object], kind: pa.DataType, said: str
) -> None:
    labelled(tmp_path, train, test, kind)
    assert said in refused("parquet", tmp_path).fix


def test_a_test_split_without_labels_gives_way_to_validation_with_a_note(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1], names=NAMES)
    write_parquet(tmp_path / "validation.parquet", [1, 0, 0], names=NAMES)
    write_parquet(tmp_path / "test.parquet", [-1, -1], names=NAMES)
    facts, arrays = both("auto", tmp_path)
    assert facts.test_per_class == (2, 1) and values(arrays.test_images) == [0, 1, 2]
    assert "validation is used" in facts.notes[0]
    named = inspect(source("auto", tmp_path, test="validation"))
    assert (named.fingerprint, named.notes) == (
        facts.fingerprint,
        ("passed over: 1 file (1 .parquet)",),
    )
    (tmp_path / "validation.parquet").unlink()
    assert "label every test image" in refused("auto", tmp_path).fix
