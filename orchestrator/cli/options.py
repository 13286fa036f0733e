"""What every command of the command line shares: its options, and how it reads and answers.

A command is a function of `Options` and of its own words. `with_options` adds the options of whole groups to it, and
`say` prints its result: one JSON document or lines for people.
"""

from __future__ import annotations

import inspect
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from jobs.errors import BadInput
from orchestrator import MODULE, SCRIPT
from orchestrator.clusters.config import Target, choose_target

if TYPE_CHECKING:  # each takes much along that not every command needs
    from orchestrator.planning.requests import Request
    from orchestrator.planning.table_requests import TableRequest
    from workers.store.store import Store

SCHEMA = 1
people = Console(stderr=True)
"""Where words for people go; standard output is for results."""

Group = tuple[Parameter, ...]
"""Options that stand together in several commands."""


def option(name: str, kind: Any, *flags: str, help: str, default: Any = None) -> Parameter:
    """One option of a group, as a parameter of a command."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=typer.Option(default, *flags, help=help), annotation=kind)


STORE: Group = (option("store", str | None, "--store", help="Folder of all results."),)
TARGET: Group = (
    option("cluster", str | None, "--cluster", help="A cluster of cluster.yaml."),
    option("cluster_file", Path | None, "--cluster-file", help="Instead of ./cluster.yaml."),
    *STORE,
    option(
        "workers",
        int | None,
        "--workers",
        help="Worker processes, one core each; 0: in this process, one job at a time, for a debugger.",
    ),
)
TABLE_REQUEST: Group = (
    option("scale", str | None, "--scale", help="paper, medium, small or tiny."),
    option("dataset", str | None, "--dataset", help="A dataset's name or path."),
    option("seed", int | None, "--seed", help="Instead of the experiment's seeds."),
)
REQUEST: Group = (
    *TABLE_REQUEST,
    option("settings", list[str] | None, "--set", help="path.to.field=value; repeatable."),
)
JSON: Group = (option("as_json", bool, "--json", default=False, help="One JSON document on standard output."),)
VERBOSE: Group = (
    option("verbose", bool, "--verbose", "-v", default=False, help="Also print log lines to standard error."),
)
LAUNCH: Group = (
    option("fail_fast", bool, "--fail-fast", default=False, help="Stop at the first failure."),
    option(
        "detach",
        bool,
        "--detach/--follow",
        default=False,
        help="On SLURM: submit and leave, or watch to the end; the last one said holds.",
    ),
    option("dry_run", bool, "--dry-run", default=False, help="On SLURM: print every sbatch script, submit nothing."),
    *JSON,
    option("quiet", bool, "--quiet", "-q", default=False, help="Say nothing but failures."),
    *VERBOSE,
)


def shipped() -> Mapping[str, Mapping[str, Path]]:
    """The shipped files by kind and name."""
    from jobs import experiment, sweep, table

    folders = {"experiments": experiment.FOLDER, "tables": table.FOLDER, "sweeps": sweep.FOLDER}
    return {kind: {path.stem: path for path in sorted(folder.glob("*.yaml"))} for kind, folder in folders.items()}


def _shipped_names(incomplete: str) -> list[str]:
    """What the name of an experiment, a table or a sweep may become, for a shell that completes it."""
    return [name for names in shipped().values() for name in names if name.startswith(incomplete)]


Names = Annotated[
    list[str] | None,
    typer.Argument(help="Experiment files or names.", show_default=False, autocompletion=_shipped_names),
]
TableNames = Annotated[
    list[str] | None,
    typer.Argument(help="Tables and figures, by name or file.", show_default=False, autocompletion=_shipped_names),
]
RunName = Annotated[str | None, typer.Argument(help="A run; the latest by default.", show_default=False)]
AllTables = Annotated[bool, typer.Option("--all", help="All tables and figures of the paper.")]
WithDashes = Annotated[bool, typer.Option("--with-dashes", help="Also fill cells in which the paper prints a dash.")]
Budget = Annotated[str | None, typer.Option("--budget", help="Hours of one worker, as 40gpu-h.")]


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
    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @classmethod
    def of(cls, context: typer.Context) -> Options:
        """The options of a command; what it leaves open was perhaps said before its name. `--set`s add up."""
        names = {field.name for field in fields(cls)}
        given = {
            name: value
            for name, value in context.params.items()
            if name in names and (source := context.get_parameter_source(name)) and source.name != "DEFAULT"
        }
        earlier = context.obj if isinstance(context.obj, Options) else cls()
        given["settings"] = (*earlier.settings, *given.get("settings", ()))
        return replace(earlier, **given)

    def target(self) -> Target:
        """The cluster and the store."""
        return choose_target(self.cluster_file, self.cluster, self.store, self.workers)


def with_options(*groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command that has the options of these groups beside its own parameters.

    The function's first parameter, `options`, gets their values; a parameter `context` gets Typer's context.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        wanted = dict(inspect.signature(function, eval_str=True).parameters)
        context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        own = {"context": context, **wanted}
        del own["options"]
        shared = [parameter for group in groups for parameter in group]
        parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own.values(), *shared)]

        def command(**words: Any) -> None:
            options = Options.of(words["context"])
            if options.verbose:
                _log_to_people()
            try:
                function(options, **{name: words[name] for name in own if name in wanted})
            except KeyboardInterrupt:  # Typer would end the process without a document
                raise typer.Abort from None

        command.__name__ = function.__name__
        command.__doc__ = (function.__doc__ or "").partition("\n    Args:")[0]  # which options tell of themselves
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return add


def _log_to_people() -> None:
    """Send log lines to standard error: all of the orchestrator's, of others what is worth a note."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("orchestrator").setLevel(logging.DEBUG)


def request_of(experiments: list[str] | None, options: Options) -> Request:
    """The experiments that the command line asks for."""
    from orchestrator.planning.requests import QUICKSTART, Request

    return Request(
        experiments=tuple(experiments or (QUICKSTART,)),
        scale=options.scale,
        dataset=options.dataset,
        seed=options.seed,
        settings=options.settings,
        data=options.target().data,
        store=options.target().store,
    )


def table_request_of(
    names: list[str] | None, all_tables: bool, budget: str | None, options: Options, with_dashes: bool = True
) -> TableRequest:
    """The tables that the command line asks for.

    Args:
        names: tables by name or file.
        all_tables: whether all are asked for instead.
        budget: hours of one worker, as 40gpu-h.
        options: the common options.
        with_dashes: whether cells in which the paper prints a dash are filled, too.

    Raises:
        BadInput: numbers are set, which tables have from their files.
    """
    from orchestrator.planning.table_requests import TableRequest

    if options.settings:
        fix = "tables have their numbers from their files; use `run` with an experiment, or a table's file of your own"
        raise BadInput("command line", "--set", options.settings[0], fix)
    return TableRequest(
        tables=() if all_tables else tuple(names or ()),
        scale=options.scale or "paper",
        dataset=options.dataset,
        seed=options.seed,
        budget=budget,
        data=options.target().data,
        store=options.target().store,
        with_dashes=with_dashes,
    )


def are_tables(names: list[str] | None, all_tables: bool) -> bool:
    """Whether tables are named, and not experiments.

    Raises:
        BadInput: both are.
    """
    from jobs import table

    tables = [name for name in names or () if table.is_table(name)]
    if tables and len(tables) < len(names or ()):
        raise BadInput("command line", "experiments", ", ".join(names or ()), "name experiments or tables, not both")
    return all_tables or bool(tables)


def open_store(options: Options) -> Store:
    """The store, made if it is not there: for what was resolved before, since a refusal makes no folders."""
    from workers.store.store import Store

    target = options.target()
    return Store.open(target.store, shared=target.shared)


def readable_store(options: Options) -> Store:
    """The store for a command that makes nothing: it may be read-only, full, or not there yet."""
    from workers.store.store import Store

    return Store.for_reading(options.target().store)


def existing_store(options: Options) -> Store:
    """The store that a run has made.

    Raises:
        BadInput: there is none; reading commands make no folders.
    """
    from workers.store.store import Store

    root = options.target().store
    if not (Store(root).root / "runs").is_dir():
        raise BadInput("--store", "store", root, "no store is there; name the one the run was started with")
    return Store.for_reading(root)


def say(document: dict[str, Any], lines: Iterable[Any], options: Options) -> None:
    """Print a result.

    Args:
        document: for a script, without its schema's number.
        lines: for a person; what `rich` can print.
        options: which of the two is asked for.
    """
    if options.as_json:
        print(json.dumps({"schema": SCHEMA} | document, allow_nan=False))
        return
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, Text))


def say_files(paths: Iterable[Path], options: Options) -> None:
    """Print which files were written; for people only the page for a browser, or the first."""
    files = [str(path) for path in paths]
    shown = next((file for file in files if file.endswith(".html")), files[0])
    say({"files": files}, [Text(shown)], options)


def command_line() -> str:
    """The command line as a person would type it again in this folder."""
    return shlex.join([*program(), *sys.argv[1:]])


def program() -> list[str]:
    """The words that call this program in this folder, with or without an activated environment."""
    typed = Path(sys.argv[0])
    if typed.name == SCRIPT:
        return [SCRIPT if shutil.which(SCRIPT) == sys.argv[0] else sys.argv[0]]
    python, here = Path(sys.executable), Path.cwd()
    if shutil.which(python.name) == str(python):
        return [python.name, "-m", MODULE]
    return [str(python.relative_to(here) if python.is_relative_to(here) else python), "-m", MODULE]
