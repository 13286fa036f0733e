"""The folder that leaves the project: pictures, exact pixels, constants, a grid, and the card that explains them.

    README.md                 the card (`orchestrator.export.card`)
    grid.png                  the pictures by class and stage
    data/train-*.parquet      PNG pictures in the Hugging Face layout, with a column `stage`; test-*.parquet beside it
    folders/train/<class>/    the same as files, if asked for; folders/test beside it
    exact/train.parquet       float32 pixels of the training space; test.parquet holds uint8 pixels
    exact/transform.npz       from pixels to the training space and back
    provenance.json           keys, specs, parents, digests

Multi-formation images are decoded, since a stranger has no decoder. Real test images come along only if their licence
is known to allow it, or if the user says so. The folder is built beside its place and renamed into it, so it is there
whole or not at all; a folder that holds anything is never touched. Who may read it is what the umask says.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.text import Text
from torch import Tensor
from torch.nn.functional import one_hot

from jobs.errors import BadInput
from orchestrator.export import card
from orchestrator.export.chain import ExportSource, Measurement
from orchestrator.reports import images
from workers.data import dataset as datasets
from workers.data import synthetic_set
from workers.data.synthetic_set import SyntheticSet
from workers.store.files import sha256_of
from workers.store.processes import Process
from workers.store.store import Manifest, Store

CARD, GRID, PROVENANCE = "README.md", "grid.png", "provenance.json"


@dataclass(frozen=True)
class ExportedFolder:
    """A folder that was written."""

    folder: Path
    stages: int
    images: int
    factor: int
    test: int | None
    """Real test images in the folder; None if they stayed at home."""
    scale: str | None
    protocol: Measurement
    """What the card's program should reach."""
    keys: tuple[str, ...]
    origin: str
    """What was exported, in words."""
    files: dict[str, str]
    """The sha256 of each file."""

    def to_json(self) -> dict[str, Any]:
        """As `export --json` prints it."""
        plain = {name: getattr(self, name) for name in ("stages", "images", "factor", "test", "scale", "files")}
        measured = {"folder": str(self.folder), "keys": list(self.keys), "accuracy": self.protocol.to_json()}
        return {"schema": 1, "exit": 0, **measured, **plain}

    def lines(self) -> Iterator[Text]:
        """The same for people."""
        protocol, stages = self.protocol, "1 stage" if self.stages == 1 else f"{self.stages} stages"
        yield Text(f"{self.folder}: {self.images} images in {stages}")
        yield Text(f"it is {self.origin}")
        accuracy = f"{protocol.mean:.2f} ± {protocol.std:.2f} % test accuracy (n = {len(protocol.values)})"
        yield Text(f"{protocol.spec.network.architecture}: {accuracy}")
        if self.test is None:
            yield Text("without real test images, since no licence is known to allow it (--with-test: you say so)")
        yield Text(f"how to use it: {self.folder / CARD}")


@dataclass(frozen=True)
class _Stage:
    """What networks are trained on in one stage: images of the training space, labels, the learned step size.

    Soft labels are logits and the probabilities that they mean, float32 [n, classes]; None for hard ones.
    """

    images: Tensor
    labels: Tensor
    step_size: float | None
    logits: Tensor | None
    probabilities: Tensor | None

    @classmethod
    def of(cls, stored: SyntheticSet) -> _Stage:
        """The stage of a stored set, each of its tiles an image."""
        images, labels = stored.expanded()
        logits, soft = (
            None if values is None else values.repeat_interleave(stored.factor**2, 0)
            for values in (stored.logits, stored.probabilities())
        )
        return cls(images, labels, stored.step_size, logits, soft)


def write(
    folder: Path, source: ExportSource, store: Store, *, with_test: bool = False, as_files: bool = False
) -> ExportedFolder:
    """Write a set for strangers.

    Args:
        folder: where it shall be; absent or empty.
        source: the set.
        store: where its files are.
        with_test: take the real test images along, whatever is known of their licence.
        as_files: write every picture as a PNG file in the folder of its class, too.

    Raises:
        BadInput: the folder holds something, or cannot be made.
    """
    with new_folder(folder) as beside:
        contents = _fill(beside, source, store, with_test or card.may_travel(source.data.name), as_files)
        files = digests(beside)
    return ExportedFolder(
        folder=folder.expanduser().absolute(),
        stages=len(source.sets),
        images=sum(contents.images),
        factor=contents.factor,
        test=contents.tests,
        scale=source.keys.scale,
        protocol=source.protocol,
        keys=source.keys.sets,
        origin=f"{source.keys.method}, {source.keys.origin}",
        files=files,
    )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which takes its place when the block ends well; what dead writers left there goes.

    Raises:
        BadInput: the place holds something, or cannot be made.
    """
    folder = folder.expanduser().absolute()
    _refuse_taken(folder)
    beside = folder.parent / f"{_prefix(folder)}{Process.current().temporary_name()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f"{escape(_prefix(folder))}*"):
            writer = Process.from_temporary_name(left.name.removeprefix(_prefix(folder)))
            if writer is not None and writer.running() is False:
                shutil.rmtree(left, ignore_errors=True)
        beside.mkdir()
    except OSError as error:
        fix = f"give a folder that can be made ({error.strerror})"
        raise BadInput("command line", "--out", str(folder), fix) from error
    try:
        yield beside
        _refuse_taken(folder)
        os.rename(beside, folder)  # onto an empty folder at most
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _prefix(folder: Path) -> str:
    """How the name of the folder begins in which an export is built; the process that builds it follows."""
    return f".{folder.name}."


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInput("command line", "--out", str(folder), "is there already; name a folder that is not, or is empty")


def _fill(folder: Path, source: ExportSource, store: Store, with_test: bool, as_files: bool) -> card.Contents:
    """All files."""
    for name in ("data", "exact"):
        (folder / name).mkdir()
    key = source.dataset.key
    transform = datasets.read_transform(store.path(key, datasets.TRANSFORM))
    tested, answers, class_names = datasets.read_split(store.path(key, "test.arrow"))
    sets = synthetic_set.newest(store, [manifest.key for manifest in source.sets])
    stages = [_Stage.of(stored) for stored in sets]
    pixels = [(transform.inverse(stage.images), stage.labels, stage.probabilities) for stage in stages]
    _write_pictures(folder / card.PICTURES["train"], pixels, class_names, first=1)
    _write_exact(folder / "exact" / "train.parquet", stages)
    shutil.copyfile(store.path(key, datasets.TRANSFORM), folder / "exact" / "transform.npz")
    if with_test:
        certain = (
            None if sets[0].logits is None else one_hot(answers, len(class_names)).float()
        )  # readers want one form
        real = [(tested.float() / 255, answers, certain)]
        _write_pictures(folder / card.PICTURES["test"], real, class_names, first=0)
        pq.write_table(_pixels(tested, answers), folder / "exact" / "test.parquet")
    contents = card.Contents(
        images=tuple(len(stage.labels) for stage in stages),
        factor=sets[0].factor,
        step_sizes=tuple(stage.step_size for stage in stages),
        class_names=class_names,
        transform=transform,
        tests=len(answers) if with_test else None,
        as_files=as_files,
        temperature=None if sets[-1].logits is None else sets[-1].temperature,
    )
    if as_files:
        for split in ("train", "test") if with_test else ("train",):
            _write_files(folder / card.FOLDERS / split, folder / card.PICTURES[split], class_names)
    (folder / GRID).write_bytes(_grid(folder / card.PICTURES["train"], source))
    (folder / PROVENANCE).write_text(_provenance(source, store), encoding="utf-8")
    (folder / CARD).write_text(card.render(source, contents), encoding="utf-8")
    return contents


def _write_pictures(
    path: Path, stages: Sequence[tuple[Tensor, Tensor, Tensor | None]], class_names: Sequence[str], *, first: int
) -> None:
    """Pixels in [0, 1], labels, and soft ones if there are any; `stage` counts from `first`, 0 being real images."""
    tables = [synthetic_set.picture_table(images, labels, class_names, soft) for images, labels, soft in stages]
    numbers = np.repeat(np.arange(first, first + len(tables)), [len(table) for table in tables])
    table = pa.concat_tables(tables).append_column("stage", pa.array(numbers, pa.int64()))
    described = json.loads(tables[0].schema.metadata[b"huggingface"])
    described["info"]["features"]["stage"] = {"dtype": "int64", "_type": "Value"}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), path)


def _write_files(folder: Path, pictures: Path, class_names: Sequence[str]) -> None:
    """The pictures of a Parquet file as PNG files, each in the folder of its class."""
    table, names = pq.read_table(pictures), card.folder_names(class_names)
    for name in names:
        (folder / name).mkdir(parents=True)
    for number, row in enumerate(table.to_pylist()):
        path = folder / names[row["label"]] / f"stage{row['stage']}-{number:06d}.png"
        path.write_bytes(row["image"]["bytes"])


def _write_exact(path: Path, stages: Sequence[_Stage]) -> None:
    images, labels = torch.cat([stage.images for stage in stages]), torch.cat([stage.labels for stage in stages])
    numbers = np.repeat(np.arange(1, len(stages) + 1), [len(stage.labels) for stage in stages])
    table = _pixels(images, labels)
    soft = [stage.logits for stage in stages if stage.logits is not None]
    if soft:
        table = table.append_column("logits", synthetic_set.rows_of(torch.cat(soft)))
    pq.write_table(table.append_column("stage", pa.array(numbers, pa.int64())), path)


def _pixels(images: Tensor, labels: Tensor) -> pa.Table:
    """Images [n, C, H, W] as lists of C * H * W numbers of their own dtype, and labels."""
    return pa.table({"pixels": synthetic_set.rows_of(images), "label": labels.numpy()})


def _grid(path: Path, source: ExportSource) -> bytes:
    """The exported pictures by class and stage, read back from the file."""
    whole, numbers = images.read_pictures(path), pq.read_table(path).column("stage").to_pylist()
    by_stage = [
        images.PictureSet(
            [image for image, number in zip(whole.images, numbers, strict=True) if number == stage],
            [label for label, number in zip(whole.labels, numbers, strict=True) if number == stage],
            whole.class_names,
        )
        for stage in range(1, len(source.sets) + 1)
    ]
    selected = source.last_distillation is None
    headings = ["real images"] if selected else None
    return images.png(images.grid_by_stage(by_stage, f"{source.keys.method} ({card.name_of(source.data)})", headings))


def _provenance(source: ExportSource, store: Store) -> str:
    """The manifests of the sets, of all they hang on as far as it is there, and of the networks in the table."""
    waiting = [*source.keys.sets, *(key for measurement in source.measured for key in measurement.keys)]
    manifests: dict[str, Manifest] = {}
    while waiting:
        key = waiting.pop()
        if key not in manifests and store.has(key):
            manifests[key] = store.manifest(key)
            waiting += [parent for keys in manifests[key].parents.values() for parent in keys]
    names = ("key", "kind", "spec", "parents", "digest", "versions", "device", "seconds", "written", "extra")
    ordered = [{name: getattr(manifests[key], name) for name in names} for key in sorted(manifests)]
    document = {"schema": 1, "sets": list(source.keys.sets), "artifacts": ordered}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of the files by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
