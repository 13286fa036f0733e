"""The command on one job: `job`, which shows it or does it in this process, for a debugger or a profile."""

from __future__ import annotations

import cProfile
import pstats
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.cli import options as cli

if TYPE_CHECKING:
    from jobs.graph import Graph, Job
    from workers.store.store import Store

RUN = "here"
"""The folder in `runs/` that has the logs of jobs done by this command."""
EXIT = {"done": 0, "found": 0, "yielded": 130}
"""The exit code by how the job ended; 3 otherwise."""
MOST_LINES = 20
"""The functions of a profile that are printed."""


@cli.with_options(cli.STORE, cli.REQUEST, cli.JSON, cli.VERBOSE)
def job(
    options: cli.Options,
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="A job's key or a part of it.", show_default=False)],
    experiments: cli.Names = None,
    here: Annotated[
        bool, typer.Option("--here", help="Do it in this process, with its parents from the store.")
    ] = False,
    profile: Annotated[Path | None, typer.Option("--profile", help="With --here: write a cProfile profile.")] = None,
) -> None:
    """Show one job of the experiments or tables named, else of the latest run that has it; or do it here."""
    if profile is not None and not here:
        raise BadInput("command line", "--profile", str(profile), "say --here, too")
    store = cli.open_store(options) if experiments else cli.existing_store(options)
    graph = _graph(experiments, options) if experiments else _graph_of_run(key, store, context)
    chosen = _chosen(key, graph)
    if here:
        _do(chosen, key, store, profile, options)
    else:
        _show(chosen, store, options)


def _show(job: Job, store: Store, options: cli.Options) -> None:
    """Print the job and how it stands in the store."""
    missing = [parent for parent in job.parent_keys() if not store.has(parent)]
    stored = store.has(job.key)
    document = {"key": job.key, "stored": stored, "missing_parents": missing, **job.to_json()}
    state = "in the store" if stored else f"parents missing: {', '.join(missing)}" if missing else "can be done"
    lines = [Text(f"{job.key}: {state}")]
    lines += [Text(f"    {role}: {', '.join(keys)}") for role, keys in job.parents.items()]
    lines += [Text(f"    {name} = {value}") for name, value in job.spec.model_dump(mode="json").items()]
    cli.say(document, lines, options)


def _do(job: Job, key: str, store: Store, profile: Path | None, options: cli.Options) -> None:
    """Do the job, which was asked for by `key`, as a worker does; print how it ended, and end with its exit code.

    Raises:
        BadInput: a parent is not in the store.
    """
    if missing := [parent for parent in job.parent_keys() if not store.has(parent)]:
        words = shlex.join(missing[0] if word == key else word for word in sys.argv[1:])
        fix = f"{missing[0]} is not in the store; run its experiment, or do `pdd {words}` first"
        raise BadInput("command line", "a parent of KEY", job.key, fix)
    if store.has(job.key):
        text = f"{job.key}: is in the store already" + ("; there is nothing to profile" if profile else "")
        cli.say({"exit": 0, "status": "found", "key": job.key, "profile": None}, [Text(text)], options)
        return
    from orchestrator.runs.pool import prepare_worker
    from workers.execute import execute

    prepare_worker()
    with _profiled(profile):
        result = execute(job.to_json(), str(store.root), RUN)
    code = EXIT.get(result["status"], 3)
    written = str(profile) if profile else None
    busy = result["status"] == "busy"
    ending = "is being done by somebody else" if busy else f"{result['status']} in {result['seconds']:.1f} s"
    lines = [Text(f"{job.key}: {ending}"), Text(f"log: {result['log']}")]
    lines += [Text(result["message"])] if result.get("message") else []
    lines += [Text(f"profile: {written}")] if written else []
    cli.say({"exit": code, **result, "kind": job.kind, "profile": written}, lines, options)
    raise typer.Exit(code)


@contextmanager
def _profiled(path: Path | None) -> Iterator[None]:
    """Write a profile of the block to a file, and what took longest to standard error; without a file, neither."""
    if path is None:
        yield
        return
    profiler = cProfile.Profile()
    try:
        with profiler:
            yield
        profiler.dump_stats(path)
    except OSError as error:
        raise BadInput("command line", "--profile", str(path), f"name a file that can be written ({error})") from error
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(MOST_LINES)


def _chosen(key: str, graph: Graph) -> Job:
    """The one job with this key, or with this part of a key.

    Raises:
        BadInput: there is none, or several.
    """
    if key in graph.jobs:
        return graph[key]
    keys = [known for known in graph.jobs if key in known]
    if len(keys) != 1:
        fix = (
            f"say more of one of {', '.join(keys[:5])}" if keys else "no job's key holds this; `pdd explain` lists them"
        )
        raise BadInput("command line", "KEY", key, fix)
    return graph[keys[0]]


def _graph(names: list[str] | None, options: cli.Options, all_tables: bool = False, with_dashes: bool = False) -> Graph:
    """The graph of experiments or tables."""
    from orchestrator.planning.requests import resolve
    from orchestrator.planning.table_requests import resolve_tables

    if cli.are_tables(names, all_tables):
        return resolve_tables(cli.table_request_of(names, all_tables, None, options, with_dashes)).tables.plan.graph
    return resolve(cli.request_of(names, options)).plan.graph


def _graph_of_run(key: str, store: Store, context: typer.Context) -> Graph:
    """The graph of the latest run whose journal has such a job, from the run's command line.

    Raises:
        BadInput: no run has.
    """
    from orchestrator.runs import journal
    from orchestrator.runs.status import runs
    from orchestrator.workloads.base import split_command

    for run in reversed(runs(store)):
        records = journal.read(store.run_folder(run) / journal.NAME)
        program, words = split_command(next((record["command"] for record in records if "command" in record), ""))
        if program and any(key in record.get("key", "") for record in records):
            return _graph_of_command(words, context)
    fix = "no run of this store has such a job; name its experiment after the key"
    raise BadInput(str(store.root), "KEY", key, fix)


def _graph_of_command(words: list[str], context: typer.Context) -> Graph:
    """The graph of the words of a run, tables or sweep, read by the parser of the command line."""
    group: Any = context.find_root().command
    before = group.make_context("pdd", list(words))
    before.obj = cli.Options.of(before)
    _, rest, _ = group.make_parser(before).parse_args(list(words))
    name, *arguments = rest or ["run"]
    parsed = group.commands[name].make_context(name, arguments, parent=before)
    options, params = cli.Options.of(parsed), parsed.params
    if name == "sweep":
        from orchestrator.workloads.sweep.sweep import SweepWorkload

        return SweepWorkload.of(params["name"], cli.request_of(None, options)).graph
    if name == "reproduce":
        return _graph(params["names"], options, params["all_tables"], params["with_dashes"])
    return _graph(params["experiments"], options)
