"""The command line: its commands in the order of `--help`. Without a command the quickstart runs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from orchestrator.cli import job, monitor, planning, runs, shipped, store, trust
from orchestrator.cli import options as cli
from workers.runtime import plugins

app = typer.Typer(
    name="pdd",
    pretty_exceptions_enable=False,
    help="Progressive dataset distillation on one machine or a cluster. Without a command: the quickstart.",
    epilog="Shipped " + "; ".join(f"{kind}: {', '.join(names)}" for kind, names in cli.shipped().items()) + ".",
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"pdd {version('pdd-orchestrator')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
@cli.with_options(cli.TARGET, cli.REQUEST, cli.LAUNCH)
def start(
    options: cli.Options,
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Progressive dataset distillation on one machine or a cluster.

    Args:
        options: hold for the command that follows, unless they stand again behind it.
        context: Typer's, which carries the options to the command.
        version: answered before anything else.
    """
    context.obj = options
    plugins.before_import = trust.confirm
    if context.invoked_subcommand is None:
        runs.run_experiments(None, options)


EXAMPLES = {
    runs.run: "pdd run cifar10 --dataset /data/cifar10 --cluster slurm",
    runs.reproduce: "pdd reproduce table1 --scale small --dataset digits",
    runs.sweep: "pdd sweep stages_x_ipc --dataset digits --scale tiny",
    planning.plan: "pdd plan --all --scale paper",
    planning.explain: "pdd explain tiny --recipe",
    monitor.status: "pdd status --store pdd-store",
    monitor.logs: "pdd logs distil-mtt --run RUN",
    monitor.cancel: "pdd cancel RUN",
    monitor.report: "pdd report mine.yaml --out my-report",
    store.import_: "pdd import buffers/replay_buffer_*.pt",
    store.export: "pdd export tiny --arm PDD+MTT --out my-set",
    store.verify: "pdd verify --quarantine",
    store.gc: "pdd gc --delete",
    monitor.doctor: "pdd doctor --cluster slurm",
    job.job: "pdd job dataset-digits tiny --here --profile profile.out",
    shipped.init: "pdd init mine",
    shipped.show: "pdd show quickstart",
}
"""The commands in the order of `--help`, each with an example."""

for command, example in EXAMPLES.items():
    app.command(command.__name__.strip("_"), epilog=f"Example: {example}")(command)
