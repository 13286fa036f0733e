"""The request of tables, from the command line to the graph: files, datasets as they are here, jobs.

What `orchestrator.planning.requests` is to experiments. A dataset that is not here is no error: its cells say where to
get it, and only a plan, from which nothing is run, counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

from jobs import table as tables
from jobs.datasets import DATASETS
from jobs.errors import BadInput
from jobs.experiment import DatasetChoice
from jobs.recipe import Scale
from jobs.table import TablesPlan
from jobs.table_filling import Circumstances, Data, fill, without_dashes
from orchestrator import SCRIPT
from orchestrator.planning.budget import parse_budget
from orchestrator.planning.requests import inspect_dataset, methods_fit


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """What the user asked for; no table means all of them."""

    tables: Sequence[str] = ()
    scale: str = "paper"
    dataset: str | None = None
    seed: int | None = None
    budget: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    """Where datasets lie, by name."""
    store: str | None = None
    """Where the facts of datasets are remembered."""
    with_dashes: bool = True
    """Whether cells in which the paper prints a dash are filled, too."""

    def seconds(self) -> float | None:
        """The budget in seconds of worker time.

        Raises:
            BadInput: it is not written as a number of hours.
        """
        return None if self.budget is None else parse_budget(self.budget)

    def command(self, table: str) -> str:
        """What fills one table under the same circumstances."""
        words = [f"{SCRIPT} reproduce", table, "--scale", self.scale]
        words += ["--dataset", self.dataset] if self.dataset is not None else []
        words += ["--seed", str(self.seed)] if self.seed is not None else []
        words += ["--with-dashes"] if self.with_dashes else []
        return " ".join(words)


@dataclass(frozen=True)
class ResolvedTables:
    """The tables as they will be filled, and the graph that fills them."""

    request: TableRequest
    tables: TablesPlan
    missing_datasets: tuple[str, ...]
    """The datasets that are not here, each with where to get it."""


def resolve_tables(request: TableRequest, allow_missing_data: bool = False) -> ResolvedTables:
    """The tables asked for, with their one graph.

    Args:
        request: what the user said.
        allow_missing_data: plan with datasets that are not here, too, by their published facts; such a graph must not
        be run.

    Raises:
        BadInput: no such table, scale or dataset; a file that does not validate.
    """
    if request.scale not in get_args(Scale):
        raise BadInput("command line", "--scale", request.scale, f"must be one of {', '.join(get_args(Scale))}")
    files = [tables.load(name) for name in dict.fromkeys(request.tables or tables.names())]
    data, substitute = _data(tables.datasets(files), request)
    under = Circumstances(
        scale=cast(Scale, request.scale),
        seeds=(request.seed or 0,),
        data=data,
        substitute=substitute,
        allow_missing_data=allow_missing_data,
    )
    filled = fill(files, under)
    if not request.with_dashes:
        filled = without_dashes(filled)
    methods_fit(filled.plan, "jobs/tables")
    return ResolvedTables(request, filled, tuple(dataset.absent for dataset in data.values() if dataset.absent))


def _data(names: Sequence[str], request: TableRequest) -> tuple[dict[str, Data], str]:
    """The datasets by the name that tables use, and the one that stands in for all others, if one does."""
    if request.dataset is None:
        return {name: _found(name, request) for name in names}, ""
    by_path = "/" in request.dataset or request.dataset.startswith(".")
    path = request.dataset if by_path else request.data.get(request.dataset)
    choice = DatasetChoice(name="auto" if by_path else request.dataset, path=path)
    name = Path(request.dataset).name if by_path else request.dataset
    return {name: Data(choice, inspect_dataset(choice, "command line", request.store))}, name


def _found(name: str, request: TableRequest) -> Data:
    choice = DatasetChoice(name=name, path=request.data.get(name))
    try:
        return Data(choice, inspect_dataset(choice, "cluster.yaml", request.store))
    except BadInput as error:
        if name not in DATASETS:
            raise
        return Data(choice, DATASETS[name], f"{name}: {error.fix} (cluster.yaml, data.{name})")
