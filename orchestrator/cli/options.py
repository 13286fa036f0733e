"""What every command of the command line shares: its options, and how it reads and answers.

A command reads its words into `Options`, asks for the request or the store here, and says its result by `say`: one
JSON document or lines for people. The commands stand in `orchestrator.launch` and in the modules it registers, which
cannot import it back, since as a program it has another name.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.clusters.config import Target, choose_target

SCHEMA = 1
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

    def place(self) -> Target:
        """The cluster and the store."""
        return choose_target(self.cluster_file, self.cluster, self.store, self.workers)


def asked_of(experiments: list[str] | None, options: Options) -> tuple[Any, Any]:
    """The request answered and the store opened; everything that can be refused is refused here."""
    from orchestrator.planning.requests import resolve
    from workers.store.store import Store

    answered = resolve(request_of(experiments, options))
    return answered, Store.open(options.place().store)


def request_of(experiments: list[str] | None, options: Options) -> Any:
    """What stands on the command line, as one value."""
    from orchestrator.planning.requests import QUICKSTART, Request

    return Request(
        experiments=tuple(experiments or (QUICKSTART,)),
        scale=options.scale,
        dataset=options.dataset,
        seed=options.seed,
        settings=options.settings,
        data=options.place().data,
    )


def existing_store(options: Options) -> Any:
    """The store that a run has made.

    Raises:
        BadInput: there is none; reading commands make no folders.
    """
    from workers.store.store import Store

    root = options.place().store
    if not (Store(root).root / "runs").is_dir():
        raise BadInput("--store", "store", root, "no store is there; name the one the run was started with")
    return Store.open(root)


def say(document: dict[str, Any], lines: Iterable[Any], options: Options) -> None:
    """The result, for a script or for a person."""
    if options.as_json:
        print(json.dumps(document, allow_nan=False))
        return
    console = Console()
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, Text))


def carry_out(
    here: Callable[..., Any], on_slurm: Callable[..., Any], place: Target, opened: Any, options: Options
) -> None:
    """Run what is asked for, where the cluster says, and end with what came of it."""
    said = {"command": command_line(), "quiet": options.quiet, "fail_fast": options.fail_fast}
    if place.cluster.kind == "slurm":
        done = on_slurm(**said, follow=not options.detach)
    else:
        done = here(**said)
    ended(done, opened, options)


def ended(done: Any, opened: Any, options: Options) -> None:
    """Print what came of a run and end with its exit code; of one left with SLURM there is only a name."""
    if isinstance(done, str):
        words = f"{done} is with SLURM; see `pdd status`, `pdd logs`, `pdd cancel`"
        say({"schema": SCHEMA, "run": done, "exit": None, "store": str(opened.root)}, [Text(words)], options)
        return
    say(done.to_json(), done.lines(), options)
    raise typer.Exit(done.exit)


def command_line() -> str:
    """The command line as a person would type it again."""
    return shlex.join(["python", "-m", "orchestrator.launch", *sys.argv[1:]])
