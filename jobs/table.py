"""Tables: the paper's tables and figures as data, their cells, and the plan that several of them share.

A file of `jobs/tables` is one table: what all its cells are about (`common`), what a row and a column add, and the
published numbers as a grid. Left out: how cells become jobs (`jobs.table_filling`), what the networks reached
(`orchestrator.results.tables`) and how it is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jobs.documents import Name, named_file, read_yaml, validate
from jobs.errors import BadInput
from jobs.experiment import Arm, Cell, Experiment, Plan
from jobs.fields import Count, Frozen, Index
from jobs.recipe import Scale
from jobs.specs import Architecture, Mode

FOLDER = Path(__file__).parent / "tables"

Kind = Literal["table", "curve", "pictures"]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Line = Annotated[tuple[Any, ...], Field(strict=False)]
_NUMBER = re.compile(r"^(?P<mean>\d+\.\d)(?: ± (?P<std>\d+\.\d))?$")


@dataclass(frozen=True)
class Published:
    """What the paper prints: accuracy in percent, and the number behind the plus-minus sign; None for a dash."""

    mean: float | None
    std: float | None

    @classmethod
    def read(cls, text: object) -> Published:
        """The number as a table's file writes it: `26.0 ± 1.2`, `88.1`, or `-`.

        Raises:
            ValueError: it is none of these.
        """
        if text == "-":
            return cls(None, None)
        match = _NUMBER.match(str(text))
        if match is None:
            raise ValueError(f"{text!r} is not a published number; write 26.0 ± 1.2, 88.1 or -")
        std = match["std"]
        return cls(float(match["mean"]), None if std is None else float(std))


@dataclass(frozen=True)
class TableCell:
    """One entry; `absent` says why no job can fill it. A plan may have a cell that is absent here, a run never."""

    row: str
    column: str
    published: Published | None
    """None in a figure, which prints no numbers."""
    cell: Cell | None
    absent: str = ""


@dataclass(frozen=True)
class Table:
    """A table or figure, ready to be measured and set."""

    name: str
    title: str
    caption: str
    kind: Kind
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[TableCell, ...]
    notes: tuple[str, ...]
    scale: Scale
    dataset_note: str = ""
    """What every caption must say when another dataset stands in; '' otherwise."""


@dataclass(frozen=True)
class TablesPlan:
    """The one graph of several tables, and by table the jobs that it asks for."""

    plan: Plan
    tables: tuple[Table, ...]
    by_table: Mapping[str, tuple[str, ...]]
    experiments: tuple[Experiment, ...] = ()


# The files.


class TableFile(Frozen):
    """A table as its YAML file says it."""

    name: Name
    title: str
    caption: str
    kind: Kind = "table"
    common: dict[str, Any] = {}
    """What all cells are about: fields of `CellRequest`, `ipc_total` (images per class), and fields of an arm."""
    columns: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    rows: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    published: dict[str, Line] = {}
    """By row, a number for each column."""
    notes: Names = ()

    @model_validator(mode="after")
    def _grid_fits(self) -> TableFile:
        if self.published and list(self.published) != list(self.rows):
            raise PydanticCustomError("grid", "published must have the rows {rows}", {"rows": list(self.rows)})
        for row, line in self.published.items():
            if len(line) != len(self.columns):
                raise PydanticCustomError("grid", "published.{row} must have a number for each column", {"row": row})
            for text in line:
                Published.read(text)
        return self

    def number(self, row: str, column: str) -> Published | None:
        """What the paper prints there."""
        if row not in self.published:
            return None
        return Published.read(self.published[row][list(self.columns).index(column)])


class CellRequest(Frozen):
    """What one cell is about, apart from its arm."""

    dataset: str
    architecture: Architecture = "convnet"
    mode: Mode = "progressive"
    stage: Count | None = None
    """The prefix of stages; None for all."""
    phase: Index = 0
    """In class-incremental learning, after which phase; 1-based."""
    networks: Count | None = None
    """How many the paper averages, where it is not the usual number; of each order in class-incremental learning."""


class _ImagesInAll(Frozen):
    """The images per class of all stages together; each stage has as many."""

    ipc_total: Count
    stages: Count = 1


def names() -> list[str]:
    """The tables and figures that there are, in the paper's order: tables, appendix, section, figures."""
    order = ("table", "tableA", "sectionA", "figure", "figureA")
    stems = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return sorted(stems, key=lambda stem: order.index(word) if (word := re.split(r"\d", stem)[0]) in order else 9)


def is_table(name: str) -> bool:
    """Whether a name, or a YAML file by what stands in it, is that of a table."""
    path = Path(name)
    if not path.suffix:
        return name in names()
    return path.is_file() and "rows" in read_yaml(path)


def load(name: str) -> TableFile:
    """The table of this name, or of a YAML file.

    Raises:
        BadInput: there is none, or it does not validate.
    """
    path = named_file(name, FOLDER, "table")
    if not path.is_file():
        raise BadInput("command line", "table", name, f"must be a YAML file or one of {', '.join(names())}")
    return validate(TableFile, read_yaml(path), path.name if path.parent == FOLDER else str(path))


def datasets(files: Sequence[TableFile]) -> list[str]:
    """The names of the datasets that these tables are about."""
    parts = (part for file in files for part in (file.common, *file.rows.values(), *file.columns.values()))
    return list(dict.fromkeys(str(part["dataset"]) for part in parts if "dataset" in part))


def is_dash(table: Table, entry: TableCell) -> bool:
    """Whether the paper prints a dash there; a figure prints no numbers at all, which is no dash."""
    return table.kind == "table" and entry.published is not None and entry.published.mean is None


def read_cell(file: TableFile, row: str, column: str) -> tuple[CellRequest, Arm]:
    """What a cell is about: the words of the table, of its row and of its column together.

    Args:
        file: the table.
        row: one of its rows.
        column: one of its columns.
    """
    fields = {**file.common, **file.rows[row], **file.columns[column]}
    place = f"{file.name}.yaml"
    request = {name: fields.pop(name) for name in list(fields) if name in CellRequest.model_fields}
    in_all = {name: fields[name] for name in _ImagesInAll.model_fields if name in fields}
    ipc_total = fields.pop("ipc_total", None)
    if fields.get("method") == "full":
        fields = {"method": "full"}
    elif ipc_total is not None:
        stages = validate(_ImagesInAll, in_all, place, f"rows.{row}").stages
        if ipc_total % stages:
            raise BadInput(
                place, f"rows.{row}", ipc_total, f"{stages} stages cannot share {ipc_total} images per class"
            )
        fields["ipc_per_stage"] = ipc_total // stages
    return validate(CellRequest, request, place, f"rows.{row}"), validate(Arm, fields, place, f"rows.{row}")


def walk(tables: Sequence[Table]) -> Iterator[tuple[Table, TableCell]]:
    """Every cell with its table."""
    for table in tables:
        for cell in table.cells:
            yield table, cell
