"""Hugging Face's layout: Parquet shards named after their split, images encoded inside them.

A word of a shard's relative path that starts with train, test or valid (or is val) tells its split.
Validation stands in for a test split that is missing, and files that name no split (svhn's extra) are left
alone. One column holds the encoded images, as struct<bytes, path> or plain binary, another the labels as
integers. Class names come from the ClassLabel that the `datasets` library writes into the schema; without it
there are none.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.data.image_files import Encoded, EncodedPictures
from workers.data.layouts import Labels, Opened, Reader, Source, Split

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")


def parquet_files(path: Path) -> list[Path]:
    """The Parquet file `path`, or those in it, at most two folders deep, sorted."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(file for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}*.parquet"))


def open_parquet(source: Source, path: Path) -> Opened:
    """The shards of the training and the held-out split, checked against each other."""
    root = path if path.is_dir() else path.parent
    train_shards, test_shards = _shards(source, root, parquet_files(path))
    files = (*train_shards, *test_shards)
    schemas = {file: _schema(source, file) for file in files}
    image = _column(source, schemas, "image_field", source.image_field, _IMAGE_COLUMNS)
    label = _column(source, schemas, "label_field", source.label_field, _LABEL_COLUMNS)
    _check_types(source, schemas, image, label)
    class_names = {_class_names(schema, label) for schema in schemas.values()} - {()} or {()}
    if len(class_names) > 1:
        raise source.refusal("give train and test the same classes: the class names in their schemas differ")
    train, test = (_split(source, root, shards, image, label) for shards in (train_shards, test_shards))
    return Opened("parquet", train, test, class_names.pop(), root, files, (image, label))


def _shards(source: Source, root: Path, files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    found: dict[str | None, list[Path]] = {}
    for file in files:
        found.setdefault(split_of(file.relative_to(root)), []).append(file)
    train = found.get("train")
    test = found.get("test") or found.get("validation")
    if not train or not test:
        raise source.refusal(
            "name a folder with both splits, in files named after them, e.g. train.parquet and test.parquet"
        )
    for split, shards in (("train", train), ("test", test)):
        _check_configuration(source, root, split, shards)
    _check_complete(source, (*train, *test))
    return train, test


def _check_configuration(source: Source, root: Path, split: str, shards: Iterable[Path]) -> None:
    """Configurations are different data sets, or the same one twice, so only one is read."""
    configurations = sorted({configuration_of(file.relative_to(root)) for file in shards})
    if len(configurations) > 1:
        paths = " or ".join(f"path: {root / configuration}" for configuration in configurations)
        raise source.refusal(f"choose one of these configurations, which all have a {split} split: {paths}")


def configuration_of(name: Path) -> Path:
    """The folder of a shard's configuration: what stands before the last part of its path that names a split."""
    for number in range(len(name.parts) - 1, -1, -1):
        if split_of(Path(name.parts[number])):
            return Path(*name.parts[:number])
    return name.parent


def split_of(name: Path) -> str | None:
    """train, test or validation: the last word of a relative path that says so."""
    for word in reversed(re.findall("[a-z]+", name.with_suffix("").as_posix().lower())):
        if word == "val" or word.startswith("valid"):
            return "validation"
        for split in ("train", "test"):
            if word.startswith(split):
                return split
    return None


def _check_complete(source: Source, files: Iterable[Path]) -> None:
    """Shards count themselves (train-00000-of-00002); a missing one would quietly shrink the dataset."""
    families: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d+)-of-(\d+)(?:-\w+)?", file.stem):
            families.setdefault((file.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (_, stem, count), present in families.items():
        if missing := sorted(set(range(count)) - present):
            raise source.refusal(f"fetch the missing shards: {stem}{missing[0]:05d}-of-{count:05d} is not there")


@contextmanager
def _readable(source: Source, file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise source.refusal(f"replace {file.name}, which is no readable Parquet file ({error})") from error


def _schema(source: Source, file: Path) -> Any:
    with _readable(source, file):
        return pq.read_schema(file)


def _column(source: Source, schemas: dict[Path, Any], field: str, wanted: str | None, usual: tuple[str, ...]) -> str:
    """The column asked for, else the first of the usual ones; every shard must have it."""
    first = next(iter(schemas.values())).names
    column = wanted or next((name for name in usual if name in first), usual[0])
    for file, schema in schemas.items():
        if column not in schema.names:
            raise source.refusal(
                f"name one of the columns of {file.name}: {', '.join(schema.names)}",
                field=f"dataset.{field}",
                value=wanted or " or ".join(usual),
            )
    return column


def _check_types(source: Source, schemas: dict[Path, Any], image: str, label: str) -> None:
    for file, schema in schemas.items():
        labels, images = schema.field(label).type, schema.field(image).type
        if not pa.types.is_integer(labels):
            raise source.refusal(
                f"name a column of integers, not {labels} as in {file.name}",
                field="dataset.label_field",
                value=label,
            )
        if not _holds_images(images):
            raise source.refusal(
                f"name a column of encoded images, not {images} as in {file.name}",
                field="dataset.image_field",
                value=image,
            )


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return ()
    feature = json.loads(written).get("info", {}).get("features", {}).get(label, {})
    return tuple(unicodedata.normalize("NFC", name) for name in feature.get("names", ()))


def _split(source: Source, root: Path, files: Sequence[Path], image: str, label: str) -> Split:
    labels = np.concatenate([_labels(source, file, label) for file in files])

    def encoded() -> Iterator[Encoded]:
        for file in files:
            with _readable(source, file):
                yield from _rows(file, str(file.relative_to(root)), image)

    return Split(labels, EncodedPictures(source, len(labels), encoded))


def _labels(source: Source, file: Path, label: str) -> Labels:
    with _readable(source, file), pq.ParquetFile(file) as shard:
        column = shard.read(columns=[label]).column(label)
    if column.null_count:
        raise source.refusal(
            f"give every image a label: {file.name} has {column.null_count} without",
            field="dataset.label_field",
            value=label,
        )
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _rows(file: Path, name: str, image: str) -> Iterator[Encoded]:
    row = 0
    with pq.ParquetFile(file) as shard:
        for batch in shard.iter_batches(columns=[image]):
            for cell in batch.column(0).to_pylist():
                yield f"{name} row {row}", cell["bytes"] if isinstance(cell, dict) else cell
                row += 1


PARQUET = Reader(lambda source, path: path if parquet_files(path) else None, open_parquet)
