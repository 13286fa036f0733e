"""The command line: `python -m orchestrator.launch`, also installed as `pdd`.

Each command reads its words, calls one function of the package and prints; without a command the quickstart runs.
With `--json` one JSON document stands on standard output and nothing else (`{schema, exit, error}` for what was
refused); everything for people then goes to standard error. Exit codes: 0 done, 2 bad input (nothing was started),
3 ended but some jobs failed, 130 interrupted, 1 our own bug.
"""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.table import Table
from rich.text import Text

from jobs.errors import BadInput, PddError
from orchestrator.cli import store as store_commands
from orchestrator.cli import table_commands
from orchestrator.cli.options import (
    SCHEMA,
    AsJson,
    ClusterName,
    ClusterPath,
    DatasetName,
    Detach,
    FailFast,
    Names,
    Options,
    Quiet,
    RunName,
    ScaleName,
    Seed,
    Settings,
    StoreRoot,
    Verbose,
    Workers,
    asked_of,
    carry_out,
    command_line,
    existing_store,
    people,
    request_of,
    say,
)

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words it does not know; click's, of which newer versions carry a copy inside."""

app = typer.Typer(
    name="pdd",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Progressive dataset distillation on one machine or a cluster. Without a command: the quickstart.",
)
store_commands.register(app)
table_commands.register(app)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    fail_fast: FailFast = False,
    detach: Detach = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Progressive dataset distillation on one machine or a cluster."""
    context.obj = Options.of(context)
    if context.invoked_subcommand is None:
        _run(None, context.obj)


@app.command()
def run(
    context: typer.Context,
    experiments: Names = None,
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    fail_fast: FailFast = False,
    detach: Detach = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run experiments: what is done is left out, what failed is tried again."""
    _run(experiments, Options.of(context))


@app.command()
def sweep(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's file or name.", show_default=False)],
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    fail_fast: FailFast = False,
    detach: Detach = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Try many experiments that differ in a few fields, and find the best by held-out accuracy."""
    from orchestrator.planning.requests import Request
    from orchestrator.workloads.sweep import sweep as sweeping
    from workers.store.store import Store

    options = Options.of(context)
    place = options.place()
    request = Request(
        scale=options.scale, dataset=options.dataset, seed=options.seed, settings=options.settings, data=place.data
    )
    asked = sweeping.resolve_sweep(name, request)
    opened = Store.open(place.store)
    on_slurm = partial(sweeping.run_on_slurm, asked, opened, place)
    carry_out(partial(sweeping.run, asked, opened, place), on_slurm, place, opened, options)


@app.command()
def plan(
    context: typer.Context,
    experiments: Names = None,
    everything: table_commands.Everything = False,
    budget: table_commands.Budget = None,
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run of experiments or tables would do and take; start nothing."""
    options = Options.of(context)
    if table_commands.are_tables(experiments, everything):
        return table_commands.plan_tables(experiments, everything, budget, options)
    from orchestrator.planning import forecast as planning

    asked, opened = asked_of(experiments, options)
    forecast = planning.forecast(asked, opened, options.place().cluster.count())
    say(forecast.to_json(), forecast.tables(), options)


@app.command()
def explain(
    context: typer.Context,
    experiments: Names = None,
    key: Annotated[str | None, typer.Option("--key", help="Only jobs whose key holds this.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Also every number with its source.")] = False,
    store: StoreRoot = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say of every job whether it is cached and, if not, which field makes it a new one."""
    from orchestrator.planning import explain as explaining

    options = Options.of(context)
    asked, opened = asked_of(experiments, options)
    found = [one for one in explaining.explain(asked.plan, opened) if key is None or key in one.key]
    if not found:
        raise BadInput("command line", "--key", key, "no job's key holds this; leave it out to see all")
    numbers = {one.key: explaining.sources_of(asked.plan, one.key) for one in found} if recipe else {}
    document = {
        "schema": SCHEMA,
        "jobs": [
            one.to_json() | ({"recipe": [list(row) for row in numbers[one.key]]} if recipe else {}) for one in found
        ],
    }
    lines: list[Any] = []
    for one in found:
        lines += [Text(f"{one.key}: {one.reason}"), *[Text(f"    {change}") for change in one.changed]]
        lines += [Text(f"    {path} = {value}   [{source}]") for path, value, source in numbers.get(one.key, ())]
    say(document, lines, options)


@app.command()
def status(context: typer.Context, name: RunName = None, store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Tell what a run is doing, from any shell that sees the store."""
    from orchestrator.runs import status as standing

    options = Options.of(context)
    opened = existing_store(options)
    found = standing.status(opened, standing.chosen_run(opened, name))
    say(found.to_json(), found.lines(), options)


@app.command()
def logs(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(help="A job's key or a part of it.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option("--run", help="A run; the latest by default.")] = None,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a job of a run."""
    from orchestrator.runs import status as standing

    options = Options.of(context)
    opened = existing_store(options)
    chosen = standing.chosen_run(opened, name)
    path = standing.log_of(opened, chosen, key)
    text = path.read_text(errors="replace")
    say(
        {"schema": SCHEMA, "run": chosen, "key": path.stem, "path": str(path), "text": text},
        [Text(text)],
        options,
    )


@app.command()
def cancel(context: typer.Context, name: RunName = None, store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Ask a run to save its work and end, from any shell that sees the store."""
    from orchestrator.clusters.slurm.follow import SlurmRun
    from orchestrator.runs import status as standing
    from orchestrator.runs.driver import STOP, StopFile

    options = Options.of(context)
    opened = existing_store(options)
    chosen = standing.chosen_run(opened, name)
    state = standing.status(opened, chosen).state
    if going := state in ("running", "queued"):
        StopFile(opened.run_folder(chosen) / STOP).write("cancelled")
        if (slurm_run := SlurmRun.of(opened, chosen)) is not None:
            slurm_run.cancel(opened)
    words = "asked to save and end" if going else f"not going on ({state}), so there is nothing to cancel"
    say({"schema": SCHEMA, "run": chosen, "asked": going}, [Text(f"{chosen}: {words}")], options)


@app.command()
def report(
    context: typer.Context,
    experiments: Names = None,
    everything: table_commands.Everything = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("report"),
    store: StoreRoot = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of what the store has for some experiments or tables."""
    from orchestrator.workloads import experiments as running

    options = Options.of(context)
    if table_commands.are_tables(experiments, everything):
        return table_commands.report_tables(experiments, everything, out, options)
    asked, opened = asked_of(experiments, options)
    paths = running.write_report(out, asked.plan, opened, running.latest_run(asked, opened), command_line())
    say({"schema": SCHEMA, "files": [str(path) for path in paths]}, [Text(str(paths[0]))], options)


@app.command()
def doctor(
    context: typer.Context,
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Check what would stop a run here, with the fix of each finding."""
    from orchestrator.clusters.doctor import examine

    options = Options.of(context)
    findings = examine(options.place())
    table = Table("check", "", "found", "fix", box=None)
    for one in findings:
        table.add_row(one.name, "ok" if one.ok else "FIX", one.found, "" if one.ok else one.fix)
    document = {
        "schema": SCHEMA,
        "ok": all(one.ok for one in findings),
        "findings": [vars(one) for one in findings],
    }
    say(document, [table], options)
    if not document["ok"]:
        raise typer.Exit(2)


def _run(experiments: list[str] | None, options: Options) -> None:
    """Run and print the table; the process ends with the run's exit code."""
    from orchestrator.workloads import experiments as running

    asked, opened = asked_of(experiments, options)
    place = options.place()
    on_slurm = partial(running.run_on_slurm, request_of(experiments, options), asked, opened, place)
    carry_out(partial(running.run, asked, opened, place), on_slurm, place, opened, options)


def main() -> None:
    """The entry of `pdd` and of `python -m orchestrator.launch`."""
    try:
        code = app(standalone_mode=False)
    except USAGE_ERROR as error:
        complaint = " ".join(cast(Any, error).format_message().split()).rstrip(".")
        _refuse(BadInput("command line", "words", shlex.join(sys.argv[1:]), f"{complaint}; see --help"), 2)
    except BadInput as error:
        _refuse(error, 2)
    except PddError as error:
        _refuse(error, 1)
    sys.exit(code)


def _refuse(error: PddError, code: int) -> NoReturn:
    """End with one line for people and, with `--json`, one document for scripts."""
    message = " ".join(str(error).splitlines())
    if "--json" in sys.argv[1:]:
        parts = ("place", "field", "value", "fix") if isinstance(error, BadInput) else ()
        named = {part: _plain(getattr(error, part)) for part in parts}
        print(json.dumps({"schema": SCHEMA, "exit": code, "error": {**named, "message": message}}))
    people.print(Text(message, style="bold"), soft_wrap=True)
    sys.exit(code)


def _plain(value: object) -> Any:
    """The value as JSON has it, else as Python writes it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)


if __name__ == "__main__":
    main()
