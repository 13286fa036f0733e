"""Mutated input: YAML files with odd values and broken text, data sets with damaged files. All chance is seeded."""

from __future__ import annotations

import copy
import datetime
import gzip
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

# YAML.

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2,
    10**30,
    -(10**18),
    0.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "no such thing",
    "a" * 5000,
    "../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "digits",
    "mtt",
    "no_module:Name",
    "json:dumps",
    "%s{0}\x07",
    "ä𝔘\u202e",
    datetime.date(2020, 2, 29),
    b"bytes",
    [],
    {},
    [[]],
    {"": None},
    {1: 2, "a": {"b": []}},
    list(range(3000)),
)
ODD_TEXTS = (
    "\t",
    "&a *a",
    "*a",
    "&a [*a]",
    "<<: {}",
    "!!python/object:os.system {}",
    "!!binary x",
    "? ",
    "---\n",
    "...",
    ": :",
    "{" * 300,
    "[" * 3000,
    "- " * 500,
    "'",
    '"',
    "|",
    "\ufeff",
    "\x00",
    "2001-99-99",
    "1e999",
    "0o9",
    "1:60:60",
    "#",
)


def mutated_yaml(text: str, chance: random.Random) -> bytes:
    """A YAML text with one to four things wrong, in its values or in its letters."""
    if chance.random() < 0.6:
        with suppress(yaml.YAMLError, ValueError):
            document = yaml.safe_load(text)
            for _ in range(chance.randint(1, 4)):
                document = _with_odd_value(document, chance)
            text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    if chance.random() < 0.5:
        return text.encode(errors="surrogatepass")
    data = text.encode(errors="surrogatepass")
    for _ in range(chance.randint(1, 3)):
        data = _with_odd_letters(data, chance)
    return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a document with one of its keys or positions."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _with_odd_value(document: Any, chance: random.Random) -> Any:
    """The document with one value replaced, removed, copied, or under another name."""
    places = list(_places(document))
    if not places or chance.random() < 0.02:
        return copy.deepcopy(chance.choice(ODD_VALUES))
    container, key = chance.choice(places)
    match chance.randrange(6):
        case 0:
            del container[key]
        case 1:
            other, other_key = chance.choice(places)
            with suppress(KeyError, IndexError):
                container[key] = json.loads(json.dumps(other[other_key], default=str))
        case 2 if isinstance(container, dict):
            container[chance.choice(["", "nmae", str(key).upper(), f"{key}s", 7])] = container.pop(key)
        case 3:
            container[key] = [container[key]] * chance.choice([1, 2, 50])
        case _:
            container[key] = copy.deepcopy(chance.choice(ODD_VALUES))
    return document


def _with_odd_letters(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 2:
            lines = data.splitlines(keepends=True) or [b""]
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
            return b"".join(lines)
        case 3:
            lines = data.splitlines(keepends=True) or [b""]
            del lines[chance.randrange(len(lines))]
            return b"".join(lines)
        case 4:
            return data[:at] + b" " * chance.choice([1, 2, 7]) + data[at:]
        case _:
            return data[:at] + chance.choice(ODD_TEXTS).encode() + data[at:]


# Data sets: each writer makes a sound one with two classes.

TRAIN, TEST = 30, 8
"""Images of each class."""


def _images(count: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def _labels(count: int, classes: int = 2) -> list[int]:
    return [number % classes for number in range(count)]


def write_idx(folder: Path, zipped: bool = False) -> None:
    folder = folder / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 2 * TRAIN), ("t10k", 2 * TEST)):
        arrays = {"images-idx3": _images(count, (8, 8)), "labels-idx1": np.array(_labels(count, 10), np.uint8)}
        for part, array in arrays.items():
            content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            name = f"{split}-{part}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def write_zipped_idx(folder: Path) -> None:
    write_idx(folder, zipped=True)


def write_cifar(folder: Path) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {"data": _images(12, (3072,)), "labels": _labels(12), "filenames": [f"{n}.png" for n in range(12)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))


def _picture(pixels: np.ndarray[Any, Any], form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write_folders(folder: Path, form: str = "PNG") -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for number, pixels in enumerate(_images(count, (8, 8, 3))):
                (folder / split / name / f"{number}.{form.lower()}").write_bytes(_picture(pixels, form))


def write_jpeg_folders(folder: Path) -> None:
    write_folders(folder, "JPEG")


def write_parquet(folder: Path) -> None:
    for split, count in (("train", 2 * TRAIN), ("test", 2 * TEST)):
        cells = [{"bytes": _picture(pixels, "PNG"), "path": None} for pixels in _images(count, (8, 8, 3))]
        column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"img": column, "label": pa.array(_labels(count))}), folder / f"{split}.parquet")


def write_npz(folder: Path) -> None:
    arrays = {
        f"{split}_{part}": _images(count, (8, 8)) if part == "images" else np.array(_labels(count))
        for split, count in (("train", 2 * TRAIN), ("test", 2 * TEST))
        for part in ("images", "labels")
    }
    np.savez(folder / "data.npz", **arrays)


def write_metadata(folder: Path) -> None:
    for split, count in (("train", 2 * TRAIN), ("test", 2 * TEST)):
        (folder / split).mkdir()
        lines = ["file_name,label"]
        for number, pixels in enumerate(_images(count, (8, 8, 3))):
            (folder / split / f"{number}.png").write_bytes(_picture(pixels, "PNG"))
            lines.append(f"{number}.png,{'ant' if number % 2 else 'bee'}")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "idx": write_idx,
    "zipped idx": write_zipped_idx,
    "CIFAR's pickles": write_cifar,
    "class folders of PNG": write_folders,
    "class folders of JPEG": write_jpeg_folders,
    "Parquet": write_parquet,
    ".npz": write_npz,
    "pictures with metadata.csv": write_metadata,
}


def damage(folder: Path, chance: random.Random) -> None:
    """Damage one to three files of a data set."""
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if paths:
            _damage_file(chance.choice(paths), paths, chance)


def _damage_file(path: Path, paths: list[Path], chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    head = min(len(data), chance.choice([8, 64, 10**9])) or 1
    match chance.randrange(12):
        case 0 | 1 | 2:
            for _ in range(chance.choice([1, 1, 2, 20])):
                if data:
                    data[chance.randrange(head)] = chance.randrange(256)
            path.write_bytes(data)
        case 3:
            path.write_bytes(data[: chance.randrange(len(data) + 1)])
        case 4:
            path.write_bytes(data + bytes(chance.choice([1, 5000])))
        case 5:
            at = chance.randrange(len(data) + 1)
            path.write_bytes(data[:at] + struct.pack(">I", chance.choice([0, 2**31 - 1, 2**32 - 1])) + data[at + 4 :])
        case 6:
            path.unlink()
        case 7:
            path.write_bytes(chance.choice(paths).read_bytes())
        case 8:
            path.rename(path.with_name(chance.choice(["x", "._a", "ä.png", "a.txt", f"{path.name}.bak", "a\nb.png"])))
        case 9:
            path.unlink()
            path.symlink_to(chance.choice([path.name, "..", "/dev/zero", "nowhere"]))
        case 10:
            path.unlink()
            os.mkfifo(path)
        case _:
            path.unlink()
            path.mkdir()
