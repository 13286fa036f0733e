"""Filling tables: from their files and the circumstances to the one graph of jobs behind all of them.

Nothing says what is shared. Every cell is expanded like an arm of an experiment, and equal keys are equal jobs: the
prefixes of a chain, the pool of experts of a first stage, a draw of random images.

A dataset that is not here leaves its cells without jobs and with the reason; only a plan, from which nothing is run,
may count them (`allow_missing_data`). `--dataset` puts one dataset in the place of all others, and every caption says
so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.datasets import Facts, split
from jobs.errors import BadInput
from jobs.expansion import expand
from jobs.experiment import Arm, Cell, DatasetChoice, Experiment, Plan
from jobs.graph import Graph
from jobs.recipe import Scale, Setting, resolve
from jobs.recipe_numbers import Recipe
from jobs.table import CellRequest, Table, TableCell, TableFile, TablesPlan, datasets, is_dash, read_cell, walk

NETWORKS: Mapping[Scale, int] = {"paper": 5, "medium": 3, "small": 3, "tiny": 2}
"""Networks whose accuracies are averaged; the paper's own number is 5 (section 5.1)."""
ORDERS: Mapping[Scale, int] = {"paper": 5, "medium": 2, "small": 2, "tiny": 1}
"""At most so many random orders of the classes in class-incremental learning."""
LEVELS = 5
"""At reduced scales networks are trained too briefly for forgetting scores to reach the published partitions; there
stages are cut by the rank of the score into so many parts."""
REDUCED: Mapping[Scale, Mapping[str, Any]] = {"tiny": {"dataset.train_per_class": 150}}
"""Recipe numbers for tables of a scale: `tiny` keeps fewer images than the 50 of a class that tables ask for."""
LEAST_TILE = 8
"""Pixels of a side below which a tile of a stored image (multi-formation) is too coarse to train on."""
DASH = "the paper prints a dash here; --with-dashes fills it, too"
"""Why a cell that could be filled is left out."""


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
        request, arm = read_cell(file, row, column)
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
        by_position = {(cell.stage, cell.phase): cell for cell in cells}
        if (stage, request.phase) not in by_position:
            known = ", ".join(f"stage {stage} phase {phase}" for stage, phase in by_position)
            value = f"stage {stage} phase {request.phase}"
            raise BadInput(f"{file.name}.yaml", "stage and phase", value, f"must be one of {known}, not {value}")
        return replace(by_position[stage, request.phase], experiment=file.name)

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
