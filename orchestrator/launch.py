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
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.errors import BadInput, PddError
from orchestrator.cluster import Place, choose

SCHEMA = 1
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words it does not know; click's, of which newer versions carry a copy inside."""

app = typer.Typer(
    name="pdd",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Progressive dataset distillation on one machine or a cluster. Without a command: the quickstart.",
)
people = Console(stderr=True)
"""Where words for people go; standard output is for results."""

Names = Annotated[list[str] | None, typer.Argument(help="Experiment files or names.", show_default=False)]
ClusterName = Annotated[str | None, typer.Option("--cluster", help="A cluster of cluster.yaml.")]
ClusterPath = Annotated[Path | None, typer.Option("--cluster-file", help="Instead of ./cluster.yaml.")]
StoreRoot = Annotated[str | None, typer.Option("--store", help="Folder of all results.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Worker processes, one core each.")]
ScaleName = Annotated[str | None, typer.Option("--scale", help="paper, small or tiny.")]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="A dataset's name or path.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Instead of the experiment's seeds.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="path.to.field=value; repeatable.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")]
Detach = Annotated[bool, typer.Option("--detach/--follow", help="On SLURM: submit and leave, or watch to the end.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but failures.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
RunName = Annotated[str | None, typer.Argument(help="A run; the latest by default.", show_default=False)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The common options; those before a command's name hold unless they stand again behind it."""

    cluster: str | None = None
    cluster_file: Path | None = None
    store: str | None = None
    workers: int | None = None
    scale: str | None = None
    dataset: str | None = None
    seed: int | None = None
    settings: tuple[str, ...] = ()
    fail_fast: bool = False
    detach: bool = False
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, context: typer.Context) -> Options:
        """The options of a command; what it leaves open was perhaps said before its name. `--set`s add up."""
        names = {field.name for field in fields(cls)}
        given = {name: value for name, value in context.params.items() if name in names}
        said = {name: value for name, value in given.items() if value is not None and value is not False}
        earlier = context.obj if isinstance(context.obj, Options) else cls()
        said["settings"] = (*earlier.settings, *said.get("settings", ()))
        return replace(earlier, **said)

    def place(self) -> Place:
        """The cluster and the store."""
        return choose(self.cluster_file, self.cluster, self.store, self.workers)


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
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Try many experiments that differ in a few fields, and find the best by held-out accuracy."""
    from orchestrator import sweeping
    from orchestrator.request import Request
    from workers.store import Store

    options = Options.of(context)
    request = Request(scale=options.scale, dataset=options.dataset, seed=options.seed, settings=options.settings)
    asked, place = sweeping.ask(name, request), options.place()
    done = sweeping.run(
        asked,
        Store.open(place.store),
        place,
        command=_command(),
        quiet=options.quiet,
        fail_fast=options.fail_fast,
    )
    _say(done.to_json(), done.lines(), options)
    raise typer.Exit(done.exit)


@app.command()
def plan(
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
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and take; start nothing."""
    from orchestrator import planning

    options = Options.of(context)
    asked, opened = _asked(experiments, options)
    forecast = planning.forecast(asked, opened, options.place().cluster.count())
    _say(forecast.to_json(), forecast.tables(), options)


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
    from orchestrator import explain as explaining

    options = Options.of(context)
    asked, opened = _asked(experiments, options)
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
    _say(document, lines, options)


@app.command()
def status(context: typer.Context, name: RunName = None, store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Tell what a run is doing, from any shell that sees the store."""
    from orchestrator import status as standing

    options = Options.of(context)
    opened = _existing_store(options)
    found = standing.status(opened, standing.chosen_run(opened, name))
    ending = f", exit {found.exit}" if found.exit is not None else ""
    eta = f", about {found.eta_seconds:.0f} s left" if found.eta_seconds else ""
    lines = [
        Text(f"{found.run}: {found.state}{ending}{eta}" + (f": {found.why}" if found.why else "")),
        Text("  " + ", ".join(f"{count} {name}" for name, count in found.jobs.items() if count)),
        *[Text(f"  {job['key']} on {job['host']}: {job['note']} ({job['seconds']:.0f} s)") for job in found.running],
        *[Text(f"  SLURM: {line}") for line in found.slurm],
        *[
            Text(f"  FAILED {one['key']} ({one['reason']}): {one['message']}; log {one['log']}")
            for one in found.failures
        ],
    ]
    _say(found.to_json(), lines, options)


@app.command()
def logs(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(help="A job's key or a part of it.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option("--run", help="A run; the latest by default.")] = None,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of a job of a run."""
    from orchestrator import status as standing

    options = Options.of(context)
    opened = _existing_store(options)
    chosen = standing.chosen_run(opened, name)
    path = standing.log_of(opened, chosen, key)
    text = path.read_text(errors="replace")
    _say(
        {"schema": SCHEMA, "run": chosen, "key": path.stem, "path": str(path), "text": text},
        [Text(text)],
        options,
    )


@app.command()
def cancel(context: typer.Context, name: RunName = None, store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Ask a run to save its work and end, from any shell that sees the store."""
    from orchestrator import status as standing
    from orchestrator.driver import STOP, StopFile
    from orchestrator.lent import Lent

    options = Options.of(context)
    opened = _existing_store(options)
    chosen = standing.chosen_run(opened, name)
    state = standing.status(opened, chosen).state
    if going := state in ("running", "queued"):
        StopFile(opened.run_folder(chosen) / STOP).write("cancelled")
        if (lent := Lent.of(opened, chosen)) is not None:
            lent.cancel(opened)
    words = "asked to save and end" if going else f"not going on ({state}), so there is nothing to cancel"
    _say({"schema": SCHEMA, "run": chosen, "asked": going}, [Text(f"{chosen}: {words}")], options)


@app.command()
def report(
    context: typer.Context,
    experiments: Names = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("report"),
    store: StoreRoot = None,
    scale: ScaleName = None,
    dataset: DatasetName = None,
    seed: Seed = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of what the store has for some experiments: tables, pictures, timing."""
    from orchestrator import running

    options = Options.of(context)
    asked, opened = _asked(experiments, options)
    paths = running.write_report(out, asked.plan, opened, running.latest_run(asked, opened), _command())
    _say({"schema": SCHEMA, "files": [str(path) for path in paths]}, [Text(str(paths[0]))], options)


@app.command()
def doctor(
    context: typer.Context,
    cluster: ClusterName = None,
    cluster_file: ClusterPath = None,
    store: StoreRoot = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Check what would stop a run here, with the mend of each finding."""
    from orchestrator.doctor import examine

    options = Options.of(context)
    findings = examine(options.place())
    table = Table("check", "", "found", "mend", box=None)
    for one in findings:
        table.add_row(one.name, "ok" if one.well else "MEND", one.found, "" if one.well else one.mend)
    document = {
        "schema": SCHEMA,
        "well": all(one.well for one in findings),
        "findings": [vars(one) for one in findings],
    }
    _say(document, [table], options)
    if not document["well"]:
        raise typer.Exit(2)


def _run(experiments: list[str] | None, options: Options) -> None:
    """Run and print the table; the process ends with the run's exit code."""
    from orchestrator import running

    asked, opened = _asked(experiments, options)
    place, command, quiet, fail_fast = options.place(), _command(), options.quiet, options.fail_fast
    done: running.Done | str
    if place.cluster.kind == "slurm":
        request, follow = _request(experiments, options), not options.detach
        done = running.run_on_slurm(
            request, asked, opened, place, command=command, quiet=quiet, fail_fast=fail_fast, follow=follow
        )
    else:
        done = running.run(asked, opened, place, command=command, quiet=quiet, fail_fast=fail_fast)
    if isinstance(done, str):
        words = f"{done} is with SLURM; see `pdd status`, `pdd logs`, `pdd cancel`"
        _say({"schema": SCHEMA, "run": done, "exit": None, "store": str(opened.root)}, [Text(words)], options)
        return
    _say(done.to_json(), done.lines(), options)
    raise typer.Exit(done.exit)


def _asked(experiments: list[str] | None, options: Options) -> tuple[Any, Any]:
    """The request answered and the store opened; everything that can be refused is refused here."""
    from orchestrator.request import answer
    from workers.store import Store

    asked = answer(_request(experiments, options))
    return asked, Store.open(options.place().store)


def _request(experiments: list[str] | None, options: Options) -> Any:
    """What stands on the command line, as one value."""
    from orchestrator.request import QUICKSTART, Request

    return Request(
        experiments=tuple(experiments or (QUICKSTART,)),
        scale=options.scale,
        dataset=options.dataset,
        seed=options.seed,
        settings=options.settings,
    )


def _existing_store(options: Options) -> Any:
    """The store that a run has made.

    Raises:
        BadInput: there is none; reading commands make no folders.
    """
    from workers.store import Store

    root = options.place().store
    if not (Store(root).root / "runs").is_dir():
        raise BadInput("--store", "store", root, "no store is there; name the one the run was started with")
    return Store.open(root)


def _say(document: dict[str, Any], lines: Iterable[Any], options: Options) -> None:
    """The result, for a script or for a person."""
    if options.as_json:
        print(json.dumps(document, allow_nan=False))
        return
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, Text))


def _command() -> str:
    """The command line as a person would type it again."""
    return shlex.join(["python", "-m", "orchestrator.launch", *sys.argv[1:]])


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
        parts = ("place", "field", "value", "mend") if isinstance(error, BadInput) else ()
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
