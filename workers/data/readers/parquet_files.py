"""Hugging Face's layouts: Parquet shards named after their split, and folders of `save_to_disk`, with encoded images.

A word of a shard's relative path tells its split (see `splits`).
Validation stands in for a test split that is missing or has no labels, and files that name no split (svhn's extra) are
left alone. One column holds the encoded images, as struct<bytes, path> or plain binary, another the labels (see
`labels`). Class names come from the ClassLabel that the `datasets` library writes into the schema; without it there are
none.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from workers.data.layouts import Labels, Opened, Reader, Source, Split, cut_test
from workers.data.readers import labels
from workers.data.readers.pictures import Encoded, EncodedPictures
from workers.data.readers.splits import choose, split_of
from workers.data.readers.table_files import cells_of, column_of, readable, rows_of, schema_of

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_SHARD = re.compile(r"(.*?)(\d+)-of-(\d+)(?:-\w+)?")
"""A shard that counts itself, as in train-00000-of-00002-3f2a."""


def parquet_files(path: Path) -> list[Path]:
    """The Parquet file `path`, or those in it, at most two folders deep, sorted."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return _visible_files(path, "*.parquet", "*/*.parquet", "*/*/*.parquet")


@dataclass(frozen=True)
class _Shards:
    """The files of the splits; without `test` it is cut from `train`. `spare` is used where `test` has no labels."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    spare: tuple[Path, ...] = ()


def saved_files(path: Path) -> list[Path]:
    """The files that `save_to_disk` of the `datasets` library has put into a folder, of one split or of several."""
    return _visible_files(path, "data-*.arrow", "*/data-*.arrow")


def _visible_files(path: Path, *patterns: str) -> list[Path]:
    """The files that fit, sorted; hidden ones are copies that editors, notebooks and file systems have left."""
    files = (file for pattern in patterns for file in path.glob(pattern))
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def open_tables(layout: str, files: Callable[[Path], list[Path]], source: Source, path: Path) -> Opened:
    """The shards of the training and the test split, checked against each other.

    Args:
        layout: the name of the layout.
        files: finds them at a path.
        source: where the user says the images are.
        path: where they are.
    """
    root = path if path.is_dir() else path.parent
    shards, notes = _shards(source, root, files(path)), list[str]()
    image, label, class_names = _columns(source, (*shards.train, *shards.test))
    if shards.spare and all(_is_hidden(_values(source, file, label)) for file in shards.test):
        notes.append("no test image has a label (all are -1), so validation is used (dataset.test: validation)")
        shards = replace(shards, test=shards.spare)
        image, label, class_names = _columns(source, (*shards.train, *shards.test))
    values = [_all_values(source, files, label) for files in (shards.train, shards.test or shards.train)]
    try:
        labelled = labels.numbered(values[0], values[1], class_names)
    except ValueError as error:
        raise source.refusal(str(error), field="dataset.label_field", value=label) from error
    train = Split(labelled.train, _pictures(source, root, shards.train, image, len(labelled.train)))
    if shards.test:
        test = Split(labelled.test, _pictures(source, root, shards.test, image, len(labelled.test)))
    else:
        train, test = cut_test(train, source.test_share or 0.0)
    used, notes = (*shards.train, *shards.test), [*notes, *labelled.notes]
    return Opened(layout, train, test, labelled.class_names, root, used, (image, label), tuple(notes))


def _columns(source: Source, files: Iterable[Path]) -> tuple[str, str, tuple[str, ...]]:
    """The columns of the images and labels, and the class names in the schemas, which must not differ."""
    schemas = {file: _schema(source, file) for file in files}
    image = _column(source, schemas, "image_field", source.image_field, _IMAGE_COLUMNS)
    label = _column(source, schemas, "label_field", source.label_field, _LABEL_COLUMNS)
    _check_types(source, schemas, image, label)
    names = {_class_names(source, file, schema, label) for file, schema in schemas.items()} - {()} or {()}
    if len(names) > 1:
        raise source.refusal("give train and test the same classes: the class names in their schemas differ")
    return image, label, names.pop()


def _shards(source: Source, root: Path, files: Sequence[Path]) -> _Shards:
    found: dict[str, tuple[Path, ...]] = {}
    for file in files:
        split = split_of(file.relative_to(root)) or ""
        found[split] = (*found.get(split, ()), file)
    splits = choose(source, found, f"train{files[0].suffix} and test{files[0].suffix}")
    test, spare = (() if split is None else found[split] for split in (splits.test, splits.spare))
    shards = _Shards(found[splits.train], test, spare)
    for split, chosen in (("train", shards.train), ("test", shards.test)):
        _check_configuration(source, root, split, chosen)
        _check_family(source, root, split, chosen)
    _check_complete(source, (*shards.train, *shards.test))
    return shards


def _is_hidden(values: NDArray[Any]) -> bool:
    """Whether labels are those of a competition's test split, which nobody may see."""
    return values.dtype.kind == "i" and len(values) > 0 and bool((values == -1).all())


def _check_configuration(source: Source, root: Path, split: str, shards: Iterable[Path]) -> None:
    """Configurations are different data sets, or the same one twice, so only one is read."""
    configurations = sorted({configuration_of(file.relative_to(root)) for file in shards})
    if len(configurations) > 1:
        paths = " or ".join(f"path: {root / configuration}" for configuration in configurations)
        raise source.refusal(f"choose one of these configurations, which all have a {split} split: {paths}")


def _check_family(source: Source, root: Path, split: str, shards: Iterable[Path]) -> None:
    """Files of one split are shards of one whole: what is called otherwise is another data set, or an old copy."""
    families = {family_of(file.relative_to(root)): file for file in reversed(list(shards))}
    if len(families) > 1:
        names = " and ".join(str(file.relative_to(root)) for file in sorted(families.values())[:3])
        fix = f"keep one {split} split, or name its files as shards of one, {split}-00000-of-00002"
        raise source.refusal(f"{fix}: there are {names}")


def family_of(name: Path) -> str:
    """What the shards of a split have in common: how their path names the split, and how many they say they are."""
    counted = _SHARD.fullmatch(name.stem)
    own = counted[1] if counted else name.stem
    part = next((part for part in (own, *reversed(name.parent.parts)) if split_of(Path(part))), "")
    return f"{re.sub(r'[^a-z]+', ' ', part.lower()).strip()} of {counted[3] if counted else 'any'}"


def configuration_of(name: Path) -> Path:
    """The folder of a shard's configuration: what stands before the last part of its path that names a split."""
    for number in range(len(name.parts) - 1, -1, -1):
        if split_of(Path(name.parts[number])):
            return Path(*name.parts[:number])
    return name.parent


def _check_complete(source: Source, files: Iterable[Path]) -> None:
    """Shards count themselves (train-00000-of-00002); a missing one would quietly shrink the dataset."""
    families: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.stem):
            families.setdefault((file.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (_, stem, count), present in families.items():
        if missing := sorted(set(range(count)) - present):
            raise source.refusal(f"fetch the missing shards: {stem}{missing[0]:05d}-of-{count:05d} is not there")


def _schema(source: Source, file: Path) -> Any:
    with readable(source, file):
        return schema_of(file)


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
        if schema.names.count(column) > 1:
            fix = f"write {file.name} with one column of this name; it has {schema.names.count(column)}"
            raise source.refusal(fix, field=f"dataset.{field}", value=column)
    return column


def _check_types(source: Source, schemas: dict[Path, Any], image: str, label: str) -> None:
    for file, schema in schemas.items():
        values, images = schema.field(label).type, schema.field(image).type
        if not _holds_labels(values):
            raise source.refusal(
                f"name a column of integers or words, not {values} as in {file.name}",
                field="dataset.label_field",
                value=label,
            )
        if not _holds_images(images):
            raise source.refusal(
                f"name a column of encoded images, not {images} as in {file.name}",
                field="dataset.image_field",
                value=image,
            )


def _holds_labels(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    known = pa.types
    words = (known.is_string, known.is_large_string)
    return any(is_kind(kind) for is_kind in (known.is_integer, known.is_floating, known.is_boolean, *words))


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(source: Source, file: Path, schema: Any, label: str) -> tuple[str, ...]:
    """The names in the ClassLabel of a schema; none if there is none."""
    written = (schema.metadata or {}).get(b"huggingface")
    if written is None:
        return ()
    try:
        feature = json.loads(written).get("info", {}).get("features", {}).get(label, {})
        names = tuple(unicodedata.normalize("NFC", name) for name in feature.get("names", ()))
    except (ValueError, AttributeError, TypeError) as error:
        raise source.refusal(f"write {file.name} anew: what its schema says of the classes is damaged") from error
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise source.refusal(f"give every class a name of its own: {file.name} has two that are called {twice[0]!r}")
    return names


def _pictures(source: Source, root: Path, files: Sequence[Path], image: str, count: int) -> EncodedPictures:
    def encoded(numbers: Labels | None) -> Iterator[Encoded]:
        first = 0
        for file in files:
            with readable(source, file):
                count, name = rows_of(file), str(file.relative_to(root))
                rows = numbers if numbers is None else numbers[(numbers >= first) & (numbers < first + count)] - first
                for row, cell in cells_of(file, image, rows):
                    yield f"{name} row {row}", cell["bytes"] if isinstance(cell, dict) else cell
                first += count

    return EncodedPictures(source, count, encoded)


def _all_values(source: Source, files: Sequence[Path], label: str) -> NDArray[Any]:
    return np.concatenate([_values(source, file, label) for file in files])


def _values(source: Source, file: Path, label: str) -> NDArray[Any]:
    """The values of the label column, of whatever type they are."""
    with readable(source, file):
        column = column_of(file, label)
    if column.null_count:
        raise source.refusal(
            f"give every image a label: {file.name} has {column.null_count} without",
            field="dataset.label_field",
            value=label,
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.to_numpy()
    return np.asarray(values, dtype=np.int64) if pa.types.is_integer(column.type) else np.asarray(values)


def _reader(layout: str, files: Callable[[Path], list[Path]]) -> Reader:
    return Reader(lambda source, path: path if files(path) else None, partial(open_tables, layout, files))


PARQUET = _reader("parquet", parquet_files)
SAVED = _reader("saved", saved_files)
