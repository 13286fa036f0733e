"""The commands on the paper's tables: `reproduce`, and what `plan` and `report` say where tables are named."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.cli.options import (
    SCHEMA,
    AsJson,
    ClusterName,
    ClusterPath,
    DatasetName,
    Detach,
    FailFast,
    Options,
    Quiet,
    ScaleName,
    Seed,
    StoreRoot,
    Verbose,
    Workers,
    carry_out,
    command_line,
    say,
)

TableNames = Annotated[
    list[str] | None, typer.Argument(help="Tables and figures, by name or file.", show_default=False)
]
Everything = Annotated[bool, typer.Option("--all", help="All tables and figures of the paper.")]
Budget = Annotated[str | None, typer.Option("--budget", help="Hours of one worker, as 40gpu-h.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(reproduce)


def reproduce(
    context: typer.Context,
    names: TableNames = None,
    everything: Everything = False,
    budget: Budget = None,
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    fail_fast: FailFast = False,
    detach: Detach = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fill the paper's tables and figures: one graph, one run, one report beside the published numbers."""
    from jobs import table
    from orchestrator.planning import table_requests
    from orchestrator.workloads import tables
    from workers.store.store import Store

    options = Options.of(context)
    if not names and not everything:
        raise BadInput("command line", "table", None, f"name some of {', '.join(table.names())}, or say --all")
    place = options.place()
    asked = table_requests.resolve_tables(_request(names, everything, budget, options))
    opened = Store.open(place.store)
    on_slurm = partial(tables.run_on_slurm, asked, opened, place)
    carry_out(partial(tables.run, asked, opened, place), on_slurm, place, opened, options)


def are_tables(names: list[str] | None, everything: bool) -> bool:
    """Whether tables are named, and not experiments.

    Raises:
        BadInput: both are.
    """
    from jobs import table

    found = [name for name in names or () if table.is_table(name)]
    if found and len(found) < len(names or ()):
        raise BadInput("command line", "experiments", ", ".join(names or ()), "name experiments or tables, not both")
    return everything or bool(found)


def plan_tables(names: list[str] | None, everything: bool, budget: str | None, options: Options) -> None:
    """Show what tables would compute, share and take; datasets that are not here are planned with, too."""
    from orchestrator.planning import quote, table_requests
    from workers.store.store import Store

    place, request = options.place(), _request(names, everything, budget, options)
    asked = table_requests.resolve_tables(request, allow_missing_data=True)
    offer = quote.quote(asked.tables, Store.open(place.store), place.cluster.count(), asked.absent, request.seconds())
    say(offer.to_json(), offer.lines(), options)


def report_tables(names: list[str] | None, everything: bool, out: Path, options: Options) -> None:
    """Write the report of what the store has for tables."""
    from orchestrator.planning import table_requests
    from orchestrator.workloads import tables
    from workers.store.store import Store

    asked, opened = (
        table_requests.resolve_tables(_request(names, everything, None, options)),
        Store.open(options.place().store),
    )
    paths = tables.write_report(out, asked, opened, None, command_line())
    say({"schema": SCHEMA, "files": [str(path) for path in paths]}, [Text(str(paths[0]))], options)


def _request(names: list[str] | None, everything: bool, budget: str | None, options: Options) -> Any:
    from orchestrator.planning.table_requests import TableRequest

    if options.settings:
        fix = "tables have their numbers from their files; use `run` with an experiment, or a table's file of your own"
        raise BadInput("command line", "--set", options.settings[0], fix)
    return TableRequest(
        tables=tuple(names or ()) if not everything else (),
        scale=options.scale or "paper",
        dataset=options.dataset,
        seed=options.seed,
        budget=budget,
        data=options.place().data,
    )
