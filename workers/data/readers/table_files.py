"""Files with a table in them: Parquet, and the Arrow streams that `save_to_disk` of the `datasets` library writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.data.layouts import Labels, Source

_ARROW = ".arrow"
_ROWS = 1024
"""Rows of Parquet that are read at a time."""


@contextmanager
def readable(source: Source, file: Path) -> Iterator[None]:
    """What goes wrong with a file inside, as a refusal that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        kind = "Arrow" if file.suffix == _ARROW else "Parquet"
        raise source.refusal(f"replace {file.name}, which is no readable {kind} file ({error})") from error


def schema_of(file: Path) -> Any:
    """The schema of a file."""
    if file.suffix != _ARROW:
        return pq.read_schema(file)
    with pa.memory_map(str(file)) as memory, pa.ipc.open_stream(memory) as stream:
        return stream.schema


def column_of(file: Path, column: str) -> Any:
    """One column of a file as a chunked array."""
    batches = [batch for _, batch in _batches(file, column, None)]
    return pa.Table.from_batches(batches, pa.schema([schema_of(file).field(column)])).column(column)


def rows_of(file: Path) -> int:
    """How many rows a file has."""
    if file.suffix != _ARROW:
        return int(pq.read_metadata(file).num_rows)
    with pa.memory_map(str(file)) as memory, pa.ipc.open_stream(memory) as stream:
        return sum(len(batch) for batch in stream)


def cells_of(file: Path, column: str, rows: Labels | None) -> Iterator[tuple[int, Any]]:
    """The number and the cell of each of some rows.

    Args:
        file: Parquet or Arrow.
        column: which of its columns.
        rows: int64 [n], ascending; None takes all.
    """
    for first, batch in _batches(file, column, rows):
        whole = np.arange(first, first + len(batch))
        own = whole if rows is None else rows[(rows >= first) & (rows < first + len(batch))]
        yield from zip(own.tolist(), batch.column(0).take(pa.array(own - first)).to_pylist(), strict=True)


def _batches(file: Path, column: str, rows: Labels | None) -> Iterator[tuple[int, Any]]:
    """The column in pieces, each with the number of its first row; of Parquet only groups with some of the rows."""
    first = 0
    if file.suffix == _ARROW:
        with pa.memory_map(str(file)) as memory, pa.ipc.open_stream(memory) as stream:
            for batch in stream:
                own = batch.select([column])
                own.validate(full=True)  # Arrow trusts the offsets in a file, and would follow a damaged one anywhere
                yield first, own
                first += len(batch)
        return
    with pq.ParquetFile(file) as shard:
        for group in range(shard.num_row_groups):
            count = shard.metadata.row_group(group).num_rows
            if rows is None or ((rows >= first) & (rows < first + count)).any():
                begin = first
                for batch in shard.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[column]):
                    yield begin, batch
                    begin += len(batch)
            first += count
