"""Expert trajectories on disk: parameters by (expert, epoch) in memory-mapped Arrow IPC.

One record batch per expert, one row per epoch, uncompressed float32, so a matching step touches the two rows
it needs and never the file. The per-example correctness stream of the same training lies beside it, one bit
an image. Snapshots are copies: on a CPU the obvious `parameter.detach().cpu()` aliases the live weights and
every epoch of the trajectory would be the last one (facts 4.1).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

TRAJECTORIES = "trajectories.arrow"
CORRECTNESS = "correctness.arrow"


def write(folder: Path, snapshots: Sequence[NDArray[np.float32]], correctness: Sequence[NDArray[np.bool_]]) -> None:
    """Write a batch of experts.

    Args:
        folder: where the two files go.
        snapshots: one float32 array [epochs + 1, parameters] per expert; row 0 is its start.
        correctness: one bool array [epochs, images] per expert: was the training prediction right.
    """
    write_trajectories(folder / TRAJECTORIES, snapshots)
    packed = [np.packbits(stream, axis=1) for stream in correctness]
    kind = pa.binary(packed[0].shape[1])
    bits = (
        [pa.FixedSizeBinaryArray.from_buffers(kind, len(block), [None, pa.py_buffer(block.tobytes())])]
        for block in packed
    )
    _write(folder / CORRECTNESS, "right", kind, bits, images=correctness[0].shape[1])


def write_trajectories(path: Path, snapshots: Iterable[NDArray[np.float32]]) -> None:
    """Write trajectories, one in memory at a time: float32 [epochs + 1, parameters] of one or more experts."""
    blocks = iter(snapshots)
    first = next(blocks)
    size = first.shape[1]
    rows = ([pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), size)] for block in chain([first], blocks))
    _write(path, "parameters", pa.list_(pa.float32(), size), rows)


def read_correctness(path: Path) -> list[NDArray[np.bool_]]:
    """The correctness stream of each expert of a batch: bool [epochs, images], in order of the experts."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        images = int(reader.schema.metadata[b"images"])
        streams = []
        for number in range(reader.num_record_batches):
            column = reader.get_batch(number).column(0)
            packed = np.frombuffer(column.buffers()[1], np.uint8).reshape(len(column), -1)
            streams.append(np.unpackbits(packed, axis=1, count=images).astype(bool))
    return streams


class Trajectories:
    """All experts of one stage, over the files of its batches, in order."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        self._ends: list[int] = list(accumulate(reader.num_record_batches for reader in self._readers))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def epochs(self) -> int:
        """Epochs trained after the start; rows run from 0 to this number."""
        return int(self._readers[0].get_batch(0).num_rows) - 1

    def parameters(self, expert: int, epoch: int) -> Tensor:
        """A copy of one expert's parameters after `epoch` epochs: float32 [parameters].

        Raises:
            IndexError: no such expert or epoch.
        """
        expert_batch = bisect_right(self._ends, expert)
        if not (0 <= expert < len(self) and 0 <= epoch <= self.epochs):
            raise IndexError(f"expert {expert} epoch {epoch}: have {len(self)} experts and epochs 0..{self.epochs}")
        first = self._ends[expert_batch - 1] if expert_batch else 0
        column = self._readers[expert_batch].get_batch(expert - first).column(0)
        size = column.type.list_size
        values = column.flatten().to_numpy(zero_copy_only=True)
        start = epoch * size
        return torch.from_numpy(values[start : start + size].copy())


def _write(path: Path, name: str, kind: Any, batches: Iterator[list[Any]], **metadata: int) -> None:
    schema = pa.schema([pa.field(name, kind)], metadata={key: str(value) for key, value in metadata.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for columns in batches:
            writer.write_batch(pa.record_batch(columns, schema=schema))
