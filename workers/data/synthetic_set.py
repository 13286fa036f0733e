"""A synthetic set on disk, in two forms.

`set.arrow` is exact: float32 pixels in the training space (normalised or ZCA), labels, and the learned step
size without which the set cannot be evaluated as it was meant (facts 4.3). `set.parquet` is for everybody
else: PNG pictures in the Hugging Face image layout. Each file holds one stage's new images; a union is the
concatenation of the stages, earlier ones first.
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
    above 1 each image holds f*f training images (`workers.data.multi_formation`).
    """

    images: Tensor
    labels: Tensor
    step_size: float | None
    factor: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def expanded(self) -> tuple[Tensor, Tensor]:
        """What a network is trained on: images float32 [n * f * f, C, H, W] and labels int64 [n * f * f]."""
        return multi_formation.decode(self.images, self.factor), self.labels.repeat_interleave(self.factor**2)


def union(sets: Sequence[SyntheticSet]) -> SyntheticSet:
    """S_1 + ... + S_p, earlier images first, with the step size of the last set.

    Raises:
        ValueError: there is no set, or their factors differ.
    """
    if not sets:
        raise ValueError("a union needs at least one set, got none")
    factors = {one.factor for one in sets}
    if len(factors) > 1:
        raise ValueError(f"a union needs sets of one factor, got {sorted(factors)}")
    images = torch.cat([one.images for one in sets])
    labels = torch.cat([one.labels for one in sets])
    return SyntheticSet(images, labels, sets[-1].step_size, sets[-1].factor)


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
    pixels = transform.inverse(made.images.detach().cpu())
    pq.write_table(picture_table(pixels, made.labels, class_names), folder / PICTURES)


def write_exact(path: Path, made: SyntheticSet) -> None:
    """Write the exact form."""
    images = made.images.detach().cpu().contiguous()
    shape = ",".join(map(str, images.shape[1:]))
    metadata = {
        "shape": shape,
        "step_size": "" if made.step_size is None else made.step_size.hex(),
        **({} if made.factor == 1 else {"factor": str(made.factor)}),  # without tiles the bytes are as they were before
    }
    size = images[0].numel()
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.numpy().ravel()), size)
    table = pa.table({"pixels": pixels, "label": made.labels.cpu().numpy()}).replace_schema_metadata(metadata)
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
    step_size = metadata[b"step_size"].decode()
    return SyntheticSet(
        torch.from_numpy(pixels),
        torch.from_numpy(labels),
        float.fromhex(step_size) if step_size else None,
        int(metadata.get(b"factor", b"1")),
    )


def to_uint8(images: Tensor) -> np.ndarray:
    """[n, C, H, W] in [0, 1] (clamped here) -> uint8 [n, H, W] or [n, H, W, 3]."""
    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def picture_table(images: Tensor, labels: Tensor, class_names: Sequence[str]) -> pa.Table:
    """Pixels [n, C, H, W] in [0, 1] (clamped here) and labels int64 [n] as PNG in the Hugging Face image layout."""
    encoded = [{"bytes": _png(picture), "path": None} for picture in to_uint8(images)]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("label", pa.int64())], metadata={"huggingface": _features(class_names)})
    return pa.table([pa.array(encoded, picture), pa.array(labels.cpu().numpy())], schema=schema)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _features(class_names: Sequence[str]) -> str:
    label = {"names": list(class_names), "_type": "ClassLabel"}
    return json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
