"""The commands that run something: `run`, `reproduce`, `sweep`. Each makes a workload and launches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.cli.options import (
    LAUNCH,
    REQUEST,
    SCHEMA,
    TABLE_REQUEST,
    TARGET,
    AllTables,
    Budget,
    Names,
    Options,
    TableNames,
    WithDashes,
    command_line,
    open_store,
    request_of,
    say,
    table_request_of,
    with_options,
)

if TYPE_CHECKING:
    from orchestrator.workloads.base import Workload


@with_options(TARGET, REQUEST, LAUNCH)
def run(options: Options, experiments: Names = None) -> None:
    """Run experiments: what is done is left out, what failed is tried again."""
    run_experiments(experiments, options)


def run_experiments(experiments: list[str] | None, options: Options) -> None:
    """Run experiments, by default the quickstart, and end with the run's exit code."""
    from orchestrator.workloads.experiments import ExperimentWorkload

    _launch(ExperimentWorkload.of(request_of(experiments, options)), options)


@with_options(TARGET, TABLE_REQUEST, LAUNCH)
def reproduce(
    options: Options,
    names: TableNames = None,
    all_tables: AllTables = False,
    with_dashes: WithDashes = False,
    budget: Budget = None,
) -> None:
    """Fill the paper's tables and figures: one graph, one run, one report beside the published numbers."""
    from jobs import table
    from orchestrator.planning.table_requests import resolve_tables
    from orchestrator.workloads.tables import TableWorkload

    if not names and not all_tables:
        raise BadInput("command line", "table", None, f"name some of {', '.join(table.names())}, or say --all")
    resolved = resolve_tables(table_request_of(names, all_tables, budget, options, with_dashes))
    _launch(TableWorkload.of(resolved, open_store(options), options.target().cluster.count()), options)


@with_options(TARGET, REQUEST, LAUNCH)
def sweep(
    options: Options,
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's file or name.", show_default=False)],
) -> None:
    """Try many experiments that differ in a few fields, and find the best by held-out accuracy."""
    from orchestrator.workloads.sweep.sweep import SweepWorkload

    _launch(SweepWorkload.of(name, request_of(None, options)), options)


def _launch(workload: Workload, options: Options) -> None:
    """Run a workload, print its result and end with its exit code; of one left with a queue there is only a name."""
    from orchestrator.workloads import launcher
    from orchestrator.workloads.base import LaunchOptions

    store = open_store(options)
    how = LaunchOptions(
        command=command_line(),
        quiet=options.quiet,
        verbose=options.verbose,
        fail_fast=options.fail_fast,
        follow=not options.detach,
    )
    result = launcher.launch(workload, options.target(), store, how)
    if isinstance(result, str):
        words = f"{result} is with SLURM; see `pdd status`, `pdd logs`, `pdd cancel`"
        say({"schema": SCHEMA, "run": result, "exit": None, "store": str(store.root)}, [Text(words)], options)
        return
    say(result.to_json(), result.lines(), options)
    raise typer.Exit(result.exit)
