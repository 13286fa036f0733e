"""A synthetic set on disk, in two forms.

`set.arrow` is exact: float32 pixels in the training space (normalised or ZCA), labels, and the learned step
size without which the set cannot be evaluated as it was meant (facts 4.3). `set.parquet` is for everybody
else: PNG pictures in the Hugging Face image layout. Each file holds one stage's new images; a union is the
concatenation of the stages, earlier ones first.

A set may have soft labels beside its classes: logits by image, in a column of `set.arrow`, which `set.parquet` shows as
the probabilities they mean. Files of a set without them hold the same bytes as before there were any.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from workers.data import multi_formation
from workers.data.preprocess import Affine, Zca
from workers.store.store import Store

EXACT = "set.arrow"
PICTURES = "set.parquet"
EARLIER = "earlier.arrow"
"""Beside the two, if a stage moved the earlier images too (A3.2): S_1..S_{i-1} as they are since then."""


@dataclass(frozen=True)
class SyntheticSet:
    """Images float32 [n, C, H, W] in the training space, labels int64 [n], and their learned step size.

    `step_size` is None for sets of real images, which are trained at the recipe's learning rate. With a `factor` f
    above 1 each image holds f*f training images (`workers.data.multi_formation`). `logits` float32 [n, classes] are the
    soft labels, whose probabilities are softmax(logits / temperature); None for a set that has its classes alone.
    """

    images: Tensor
    labels: Tensor
    step_size: float | None
    factor: int = 1
    logits: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> SyntheticSet:
        """The same set with its tensors on a device."""
        logits = None if self.logits is None else self.logits.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), logits=logits)

    def probabilities(self, temperature: float | None = None) -> Tensor | None:
        """What the soft labels mean, float32 [n, classes], at the set's temperature or another; None without any."""
        return None if self.logits is None else torch.softmax(self.logits / (temperature or self.temperature), 1)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """The training images float32 [n * f * f, C, H, W] and their classes int64 [n * f * f]."""
        return multi_formation.decode(self.images, self.factor), self.labels.repeat_interleave(self.factor**2)

    def training_data(self, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """What a network is trained on.

        Args:
            temperature: of soft labels, instead of the set's own.

        Returns:
            Images float32 [n * f * f, C, H, W], and their classes int64 [n * f * f], or, where the set has soft labels,
            probabilities float32 [n * f * f, classes].
        """
        images, labels = self.expanded()
        soft = self.probabilities(temperature)
        return images, labels if soft is None else soft.repeat_interleave(self.factor**2, 0)


def union(sets: Sequence[SyntheticSet]) -> SyntheticSet:
    """S_1 + ... + S_p, earlier images first, with the step size of the last set.

    Raises:
        ValueError: there is no set, their factors differ, or some have soft labels of another temperature or none.
    """
    if not sets:
        raise ValueError("a union needs at least one set, got none")
    factors = {one.factor for one in sets}
    if len(factors) > 1:
        raise ValueError(f"a union needs sets of one factor, got {sorted(factors)}")
    soft = [one.logits for one in sets if one.logits is not None]
    if len(soft) not in (0, len(sets)) or len({one.temperature for one in sets}) > 1:
        raise ValueError("a union needs sets that all have soft labels of one temperature, or none")
    images = torch.cat([one.images for one in sets])
    labels = torch.cat([one.labels for one in sets])
    logits = torch.cat(soft) if soft else None
    return SyntheticSet(images, labels, sets[-1].step_size, sets[-1].factor, logits, sets[-1].temperature)


def newest(store: Store, keys: Sequence[str]) -> list[SyntheticSet]:
    """The sets S_1..S_p by their keys, with the images that the last of these stages left of the earlier ones."""
    sets = [read(store.path(key, EXACT)) for key in keys]
    if not keys or EARLIER not in store.manifest(keys[-1]).files:
        return sets
    moved = torch.split(read(store.path(keys[-1], EARLIER)).images, [len(one) for one in sets[:-1]])
    return [*(replace(one, images=images) for one, images in zip(sets[:-1], moved, strict=True)), sets[-1]]


def write(folder: Path, made: SyntheticSet, transform: Affine | Zca, class_names: Sequence[str]) -> None:
    """Write both forms of a set; pixels are clamped to [0, 1] in the pictures only.

    Args:
        folder: where the two files go.
        made: the set, in the training space.
        transform: between the training space and pixels in [0, 1].
        class_names: in the order of the labels.
    """
    write_exact(folder / EXACT, made)
    made = made.to(torch.device("cpu"))
    pixels = transform.inverse(made.images.detach())
    pq.write_table(picture_table(pixels, made.labels, class_names, made.probabilities()), folder / PICTURES)


def write_exact(path: Path, made: SyntheticSet) -> None:
    """Write the exact form."""
    images = made.images.detach().cpu().contiguous()
    shape = ",".join(map(str, images.shape[1:]))
    metadata = {
        "shape": shape,
        "step_size": "" if made.step_size is None else made.step_size.hex(),
        **({} if made.factor == 1 else {"factor": str(made.factor)}),  # without tiles the bytes are as they were before
        **({} if made.logits is None else {"temperature": made.temperature.hex()}),
    }
    columns = {"pixels": rows_of(images), "label": made.labels.cpu().numpy()}
    if made.logits is not None:
        columns["logits"] = rows_of(made.logits.detach().cpu())
    table = pa.table(columns).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read(folder_or_file: Path) -> SyntheticSet:
    """The exact form, from the file or the folder that holds it."""
    path = folder_or_file / EXACT if folder_or_file.is_dir() else folder_or_file
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
        metadata = table.schema.metadata
        shape = tuple(int(number) for number in metadata[b"shape"].split(b","))
        pixels = table.column("pixels").chunk(0).flatten().to_numpy().reshape(-1, *shape).copy()
        labels = table.column("label").to_numpy().copy()
        logits = _logits(table)
    step_size = metadata[b"step_size"].decode()
    return SyntheticSet(
        torch.from_numpy(pixels),
        torch.from_numpy(labels),
        float.fromhex(step_size) if step_size else None,
        int(metadata.get(b"factor", b"1")),
        logits,
        float.fromhex(metadata.get(b"temperature", b"0x1p+0").decode()),
    )


def rows_of(values: Tensor) -> pa.FixedSizeListArray:
    """A column of lists: the numbers of each row of a tensor [n, ...] on the CPU, in their own dtype."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.contiguous().numpy().ravel()), values[0].numel())


def _logits(table: pa.Table) -> Tensor | None:
    """The soft labels float32 [n, classes] of a table; None if it has none."""
    if "logits" not in table.column_names:
        return None
    numbers = table.column("logits").chunk(0).flatten().to_numpy().copy()
    return torch.from_numpy(numbers).view(len(table), -1)


def to_uint8(images: Tensor) -> np.ndarray:
    """[n, C, H, W] in [0, 1] (clamped here) -> uint8 [n, H, W] or [n, H, W, 3]."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def picture_table(
    images: Tensor, labels: Tensor, class_names: Sequence[str], soft_labels: Tensor | None = None
) -> pa.Table:
    """Images as PNG pictures in the Hugging Face image layout.

    Args:
        images: pixels [n, C, H, W] in [0, 1], clamped here.
        labels: int64 [n].
        class_names: in the order of the labels.
        soft_labels: probabilities float32 [n, classes], a column of their own if they are given.
    """
    encoded = [{"bytes": _png(picture), "path": None} for picture in to_uint8(images)]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields, columns = (
        [("image", picture), ("label", pa.int64())],
        [pa.array(encoded, picture), pa.array(labels.cpu().numpy())],
    )
    if soft_labels is not None:
        columns.append(pa.array(soft_labels.cpu().tolist(), pa.list_(pa.float32())))
        fields.append(("soft_label", columns[-1].type))
    metadata = {"huggingface": _features(class_names, None if soft_labels is None else soft_labels.shape[1])}
    return pa.table(columns, schema=pa.schema(fields, metadata=metadata))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _features(class_names: Sequence[str], probabilities: int | None) -> str:
    """What the Hugging Face reader must know of the columns; `probabilities` is the length of a soft label."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    if probabilities is not None:
        number = {"dtype": "float32", "_type": "Value"}
        features["soft_label"] = {"feature": number, "length": probabilities, "_type": "Sequence"}
    return json.dumps({"info": {"features": features}})
