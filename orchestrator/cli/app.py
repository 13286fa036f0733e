"""The command line: its commands in the order of `--help`. Without a command the quickstart runs."""

from __future__ import annotations

import typer

from orchestrator.cli import job, monitor, planning, runs, store, trust
from orchestrator.cli import options as cli
from workers.runtime import plugins

app = typer.Typer(
    name="pdd",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Progressive dataset distillation on one machine or a cluster. Without a command: the quickstart.",
)


@app.callback(invoke_without_command=True)
@cli.with_options(cli.TARGET, cli.REQUEST, cli.LAUNCH)
def start(options: cli.Options, context: typer.Context) -> None:
    """Progressive dataset distillation on one machine or a cluster."""
    context.obj = options
    plugins.before_import = trust.confirm
    if context.invoked_subcommand is None:
        runs.run_experiments(None, options)


for command in (
    runs.run,
    runs.reproduce,
    runs.sweep,
    planning.plan,
    planning.explain,
    monitor.status,
    monitor.logs,
    monitor.cancel,
    monitor.report,
    store.export,
    store.verify,
    store.gc,
    monitor.doctor,
    job.job,
):
    app.command()(command)
