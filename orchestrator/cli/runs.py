"""The commands that run something: `run`, `reproduce`, `sweep`. Each makes a workload and launches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.cli import options as cli

if TYPE_CHECKING:
    from orchestrator.workloads.base import Workload


@cli.with_options(cli.TARGET, cli.REQUEST, cli.LAUNCH)
def run(options: cli.Options, experiments: cli.Names = None) -> None:
    """Run experiments: what is done is left out, what failed is tried again."""
    run_experiments(experiments, options)


def run_experiments(experiments: list[str] | None, options: cli.Options) -> None:
    """Run experiments, by default the quickstart, and end with the run's exit code."""
    from orchestrator.workloads.experiments import ExperimentWorkload

    _launch(ExperimentWorkload.of(cli.request_of(experiments, options)), options)


@cli.with_options(cli.TARGET, cli.TABLE_REQUEST, cli.LAUNCH)
def reproduce(
    options: cli.Options,
    names: cli.TableNames = None,
    all_tables: cli.AllTables = False,
    with_dashes: cli.WithDashes = False,
    budget: cli.Budget = None,
) -> None:
    """Fill the paper's tables and figures: one graph, one run, one report beside the published numbers."""
    from jobs import table
    from orchestrator.planning.table_requests import resolve_tables
    from orchestrator.workloads.tables import TableWorkload

    if not names and not all_tables:
        raise BadInput("command line", "table", None, f"name some of {', '.join(table.names())}, or say --all")
    resolved = resolve_tables(cli.table_request_of(names, all_tables, budget, options, with_dashes))
    _launch(TableWorkload.of(resolved, cli.open_store(options), options.target().cluster.count()), options)


@cli.with_options(cli.TARGET, cli.REQUEST, cli.LAUNCH)
def sweep(
    options: cli.Options,
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's file or name.", show_default=False)],
) -> None:
    """Try many experiments that differ in a few fields, and find the best by held-out accuracy."""
    from orchestrator.workloads.sweep.sweep import SweepWorkload

    _launch(SweepWorkload.of(name, cli.request_of(None, options)), options)


def _launch(workload: Workload, options: cli.Options) -> None:
    """Run a workload, print its result and end with its exit code; of one left with a queue there is only a name."""
    from orchestrator.workloads import launcher
    from orchestrator.workloads.base import LaunchOptions

    if options.dry_run:
        return _print_scripts(workload, options)
    store = cli.open_store(options)
    how = LaunchOptions(
        command=cli.command_line(),
        quiet=options.quiet,
        verbose=options.verbose,
        fail_fast=options.fail_fast,
        follow=not options.detach,
    )
    result = launcher.launch(workload, options.target(), store, how)
    if isinstance(result, str):
        words = f"{result} is with SLURM; see `pdd status`, `pdd logs`, `pdd cancel`"
        cli.say({"run": result, "exit": None, "store": str(store.root)}, [Text(words)], options)
        return
    cli.say(result.to_json(), result.lines(), options)
    raise typer.Exit(result.exit)


def _print_scripts(workload: Workload, options: cli.Options) -> None:
    """Print what SLURM would get.

    Raises:
        BadInput: the target is not SLURM, or a partition does not allow the walltime.
    """
    from orchestrator.clusters.config import SlurmClusterSpec
    from orchestrator.clusters.slurm.submit import scripts

    target = options.target()
    if not isinstance(target.cluster, SlurmClusterSpec):
        fix = "say --cluster with a cluster of kind slurm; `plan` shows what a run on this machine would do"
        raise BadInput("command line", "--dry-run", target.name, fix)
    texts = scripts(target, workload.run_name())
    lines = [Text(f"# {role}\n{text}") for role, text in texts.items()]
    cli.say({"exit": 0, "scripts": texts}, lines, options)
