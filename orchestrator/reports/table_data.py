"""The cells of tables for other programs: one row a cell, with the same columns in CSV and in Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from jobs.table import Published, TablesPlan
from jobs.table import Table as PaperTable
from orchestrator.reports.folder import parquet
from orchestrator.results.tables import MeasuredCell

_WORDS, _COUNT, _NUMBER = pa.string(), pa.int64(), pa.float64()
SCHEMA = pa.schema(
    [
        *((name, _WORDS) for name in ("table", "title", "row", "column", "scale", "dataset", "dataset_note")),
        *((name, _WORDS) for name in ("method", "base_method", "architecture", "mode")),
        *((name, _COUNT) for name in ("ipc_total", "ipc_per_stage", "stages", "stage")),
        ("status", _WORDS),
        *((name, _NUMBER) for name in ("mean", "std")),
        ("n", _COUNT),
        *((name, _NUMBER) for name in ("low", "high", "published_mean", "published_std", "difference")),
        ("significant", pa.bool_()),
        *((name, _WORDS) for name in ("why", "command")),
        ("jobs", pa.list_(_WORDS)),
        ("values", pa.list_(_NUMBER)),
    ]
)
"""Accuracies in percent; `low` and `high` bound the 95 % interval of the mean; `values` are the
single networks', in the order of `jobs` as far as these are there."""

_OF_CELL = ("dataset", "method", "base_method", "architecture", "mode", "ipc_total", "ipc_per_stage", "stages", "stage")
_OF_MEASUREMENT = ("status", "mean", "std", "n", "difference", "significant", "why", "command")


def records(tables: TablesPlan, measured: Mapping[str, Sequence[MeasuredCell]]) -> list[dict[str, Any]]:
    """Every cell of every table, in order, as plain values."""
    return [_record(table, cell) for table in tables.tables for cell in measured[table.name]]


def csv_of(tables: TablesPlan, measured: Mapping[str, Sequence[MeasuredCell]]) -> bytes:
    """The cells as CSV (RFC 4180, UTF-8), empty where there is no value; jobs and values with spaces between them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, SCHEMA.names)
    writer.writeheader()
    lists = ("jobs", "values")
    for record in records(tables, measured):
        writer.writerow(record | {name: " ".join(map(str, record[name])) for name in lists})
    return text.getvalue().encode()


def parquet_of(tables: TablesPlan, measured: Mapping[str, Sequence[MeasuredCell]]) -> bytes:
    """The cells as Parquet."""
    return parquet(records(tables, measured), SCHEMA)


def _record(table: PaperTable, measured: MeasuredCell) -> dict[str, Any]:
    entry = measured.entry
    cell, published = entry.cell, entry.published or Published(None, None)
    low, high = measured.interval or (None, None)
    return {
        "table": table.name,
        "title": table.title,
        "row": entry.row,
        "column": entry.column,
        "scale": table.scale,
        "dataset_note": table.dataset_note,
        **{name: getattr(cell, name, None) for name in _OF_CELL},
        **{name: getattr(measured, name) for name in _OF_MEASUREMENT},
        "low": low,
        "high": high,
        "published_mean": published.mean,
        "published_std": published.std,
        "jobs": list(cell.jobs) if cell else [],
        "values": list(measured.values),
    }
