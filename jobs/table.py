"""Tables: the paper's tables and figures as data, and the one graph of jobs that fills all of them.

A file of `jobs/tables` is one table: what all its cells are about (`common`), what a row and a column add, and the
published numbers as a grid. Nothing in it says what is shared. Every cell is expanded like an arm of an experiment,
and equal keys are equal jobs: the prefixes of a chain, the pool of experts of a first stage, a draw of random images.

A dataset that is not here leaves its cells without jobs and with the reason; only a plan, from which nothing is run,
may count them (`allow_missing_data`). `--dataset` puts one dataset in the place of all others, and every caption says
so. Left out: what the networks reached (`orchestrator.results.tables`) and how it is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from jobs.datasets import Facts, split
from jobs.documents import Name, named_file, read_yaml, validate
from jobs.errors import BadInput
from jobs.expansion import expand
from jobs.experiment import Arm, Cell, DatasetChoice, Experiment, Plan
from jobs.graph import Graph
from jobs.recipe import Recipe, Scale, Setting, resolve
from jobs.specs import Architecture, Count, Frozen, Index, Mode

FOLDER = Path(__file__).parent / "tables"
NETWORKS: Mapping[Scale, int] = {"paper": 5, "small": 3, "tiny": 2}
"""Networks whose accuracies are averaged; the paper's own number is 5 (section 5.1)."""
ORDERS: Mapping[Scale, int] = {"paper": 5, "small": 2, "tiny": 1}
"""At most so many random orders of the classes in class-incremental learning."""
LEVELS = 5
"""At reduced scales networks are trained too briefly for forgetting scores to reach the published partitions; there
stages are cut by the rank of the score into so many parts."""
REDUCED: Mapping[Scale, Mapping[str, Any]] = {"tiny": {"dataset.train_per_class": 150}}
"""Recipe numbers for tables of a scale: `tiny` keeps fewer images than the 50 of a class that tables ask for."""
DASH = "the paper prints a dash here; --with-dashes fills it, too"
"""Why a cell that could be filled is left out."""
LEAST_TILE = 8
"""Pixels of a side below which a tile of a stored image (multi-formation) is too coarse to train on."""

Kind = Literal["table", "curve", "pictures"]
Names = Annotated[tuple[str, ...], Field(strict=False)]
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


@dataclass(frozen=True)
class Data:
    """A dataset as it is here."""

    choice: DatasetChoice
    facts: Facts
    absent: str = ""
    """Why no job can read it, and where to get it; the facts are the published ones then."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """Under which tables are filled: the scale, the seeds, and where the datasets are."""

    scale: Scale = "paper"
    seeds: tuple[int, ...] = (0,)
    data: Mapping[str, Data]
    """By the name that tables use."""
    substitute: str = ""
    """The dataset that stands in for all others, as captions name it."""
    allow_missing_data: bool = False
    """Whether datasets that are absent are planned with, too."""

    def of(self, dataset: str) -> Data:
        """The dataset from which a cell about `dataset` is filled."""
        return self.data[self.substitute or dataset]


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
    published: dict[str, tuple[Any, ...]] = {}
    """By row, a number for each column."""
    notes: Names = ()

    @field_validator("published", mode="before")
    @classmethod
    def _as_tuples(cls, grid: Any) -> Any:
        return {row: tuple(line) for row, line in grid.items()} if isinstance(grid, Mapping) else grid

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


# The graph.


def fill(files: Sequence[TableFile], under: Circumstances) -> TablesPlan:
    """The one graph of all tables.

    Raises:
        BadInput: a file asks for something that no circumstances could give.
    """
    filler = _Filler(under)
    tables = tuple(filler.table(file) for file in files)
    filler.plan.exclusive.clear()  # a chain is serial by its parents; different chains may be at work at a time
    filler.plan.limits.clear()
    return _limited_to(tables, filler.plan, tuple(filler.experiments))


def without_dashes(tables: TablesPlan) -> TablesPlan:
    """The tables without cells in which the paper prints a dash, unless jobs of other cells fill them anyway."""
    printed = {
        key
        for table, entry in walk(tables.tables)
        if entry.cell and not is_dash(table, entry)
        for key in entry.cell.jobs
    }

    def kept(table: Table, entry: TableCell) -> TableCell:
        if entry.cell is None or not is_dash(table, entry) or printed.issuperset(entry.cell.jobs):
            return entry
        return replace(entry, cell=None, absent=DASH)

    smaller = tuple(replace(table, cells=tuple(kept(table, entry) for entry in table.cells)) for table in tables.tables)
    return _limited_to(smaller, tables.plan, tables.experiments)


def is_dash(table: Table, entry: TableCell) -> bool:
    """Whether the paper prints a dash there; a figure prints no numbers at all, which is no dash."""
    return table.kind == "table" and entry.published is not None and entry.published.mean is None


def _limited_to(tables: tuple[Table, ...], plan: Plan, experiments: tuple[Experiment, ...]) -> TablesPlan:
    """The plan of these tables: of a larger one the cells that they have, and the jobs behind those."""
    by_table = {
        table.name: tuple(dict.fromkeys(key for entry in table.cells if entry.cell for key in entry.cell.jobs))
        for table in tables
    }
    plan = replace(plan, cells=[entry.cell for table in tables for entry in table.cells if entry.cell])
    needed = plan.graph.ancestors(plan.wanted())
    jobs = {key: job for key, job in plan.graph.jobs.items() if key in needed}
    graph = Graph(jobs, plan.graph.requested - (len(plan.graph) - len(jobs)))
    return TablesPlan(replace(plan, graph=graph), tables, by_table, experiments)


@dataclass
class _Filler:
    """Expands every cell into one plan."""

    under: Circumstances
    plan: Plan = field(default_factory=Plan)
    experiments: list[Experiment] = field(default_factory=list)
    expansions: dict[str, tuple[Cell, ...] | BadInput] = field(default_factory=dict)
    """By arm and circumstances, as JSON: its cells, whichever table asked first, or why there are none."""

    def table(self, file: TableFile) -> Table:
        notes: list[str] = []
        cells = tuple(self.entry(file, row, column, notes) for row in file.rows for column in file.columns)
        return Table(
            name=file.name,
            title=file.title,
            caption=file.caption,
            kind=file.kind,
            rows=tuple(file.rows),
            columns=tuple(file.columns),
            cells=cells,
            notes=(*file.notes, *dict.fromkeys(notes)),
            scale=self.under.scale,
            dataset_note=self.dataset_note(file),
        )

    def dataset_note(self, file: TableFile) -> str:
        others = [name for name in datasets([file]) if name != self.under.substitute]
        if not self.under.substitute or not others:
            return ""
        return f"measured on {self.under.substitute}, which stands in for {', '.join(others)}"

    def entry(self, file: TableFile, row: str, column: str, notes: list[str]) -> TableCell:
        request, arm = _read(file, row, column)
        published, data = file.number(row, column), self.under.of(request.dataset)
        if data.absent and not self.under.allow_missing_data:
            return TableCell(row, column, published, None, data.absent)
        if arm.partition is not None and self.under.scale != "paper":
            notes.append(
                f"At this scale the partitions are the {LEVELS} equal parts of each class by rank of the score."
            )
        try:
            arm = self.fitted(arm, data, file.name, notes)
            cell = self.cell(file, request, arm, data)
        except BadInput as error:
            return TableCell(row, column, published, None, f"{error.field}: {error.fix}")
        return TableCell(row, column, published, cell, data.absent)

    def cell(self, file: TableFile, request: CellRequest, arm: Arm, data: Data) -> Cell:
        experiment = self.experiment(file, request, arm, data)
        text = experiment.model_dump_json(exclude={"name"})
        if text not in self.expansions:
            self.expansions[text] = self.expanded(experiment, data, f"{file.name}.yaml")
            self.experiments.append(experiment)
        cells = self.expansions[text]
        if isinstance(cells, BadInput):
            raise cells
        stage = 0 if arm.method == "full" else request.stage or arm.stages
        (cell,) = (cell for cell in cells if (cell.stage, cell.phase) == (stage, request.phase))
        return replace(cell, experiment=file.name)

    def experiment(self, file: TableFile, request: CellRequest, arm: Arm, data: Data) -> Experiment:
        changes: dict[str, Any] = {"modes": (request.mode,), "prefixes": "all" if request.stage else "last"}
        if arm.class_incremental is not None:
            orders = min(arm.class_incremental.orders, ORDERS[self.under.scale])
            changes["class_incremental"] = arm.class_incremental.model_copy(update={"orders": orders})
        if arm.partition is not None and self.under.scale != "paper":
            changes["partition"] = arm.partition.model_copy(update={"levels": LEVELS})
        return Experiment(
            name=file.name,
            dataset=data.choice,
            scale=self.under.scale,
            seeds=self.under.seeds,
            architectures=(request.architecture,),
            networks=min(NETWORKS[self.under.scale], request.networks or NETWORKS[self.under.scale]),
            arms=(arm.model_copy(update=changes),),
            set=dict(REDUCED.get(self.under.scale, {})),
        )

    def expanded(self, experiment: Experiment, data: Data, place: str) -> tuple[Cell, ...] | BadInput:
        before = len(self.plan.cells)
        try:
            expand(experiment, data.facts, place, self.plan)
        except BadInput as error:
            return error
        return tuple(self.plan.cells[before:])

    def fitted(self, arm: Arm, data: Data, name: str, notes: list[str]) -> Arm:
        """The arm with as many images per class and stage as the smallest class can give; a note says so."""
        wanted = arm.ipc_per_stage
        if wanted is None:
            return arm
        numbers = self.numbers(arm, wanted, data, name)
        notes.extend(_coarse(arm.method, numbers, data.facts.height))
        _, kept = split(data.facts, numbers.dataset.validation_fraction, numbers.dataset.train_per_class)
        fits = max(1, min(min(kept) // arm.stages, min(kept) // _real_in_one(numbers)))
        if fits >= wanted:
            return arm
        notes.append(
            f"{arm.stages} x {wanted} images per class are {arm.stages} x {fits} here: a class has {min(kept)}"
        )
        return arm.model_copy(update={"ipc_per_stage": fits})

    def numbers(self, arm: Arm, ipc_per_stage: int, data: Data, name: str) -> Recipe:
        """The recipe's numbers for an arm of so many images per class and stage."""
        setting = Setting(
            scale=self.under.scale,
            dataset=data.choice.name,
            size=data.facts.height,
            stages=arm.stages,
            ipc_per_stage=ipc_per_stage,
            protocol=arm.protocol,
            class_incremental=arm.class_incremental is not None,
        )
        return resolve(arm.method, setting, arm.set, name, REDUCED.get(self.under.scale)).recipe


def _coarse(method: str, numbers: Recipe, side: int) -> Iterator[str]:
    """A note where a stored image is cut into tiles too small to show what is in an image."""
    factor = numbers.distil.factor if numbers.distil is not None else 1
    tile = side // factor
    if factor > 1 and tile < LEAST_TILE:
        yield (
            f"{method.upper()} keeps {factor**2} images of {tile} x {tile} pixels in one of {side} x {side}; networks "
            "trained on images so coarse know little of the test images, so these numbers are no measure of the method."
        )


def _real_in_one(numbers: Recipe) -> int:
    """How many real images one synthetic image starts from."""
    return numbers.distil.factor**2 if numbers.distil is not None and numbers.distil.init != "noise" else 1


def _read(file: TableFile, row: str, column: str) -> tuple[CellRequest, Arm]:
    """What a cell is about: the words of the table, of its row and of its column together."""
    fields = {**file.common, **file.rows[row], **file.columns[column]}
    place = f"{file.name}.yaml"
    request = {name: fields.pop(name) for name in list(fields) if name in CellRequest.model_fields}
    ipc_total, stages = fields.pop("ipc_total", None), fields.get("stages", 1)
    if fields.get("method") == "full":
        fields = {"method": "full"}
    elif ipc_total is not None:
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
