"""The commands on the files that come with the program: `init` writes some to start from, `show` prints them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from jobs.documents import NAME, NAME_FORM, closest
from jobs.errors import BadInput
from orchestrator.cli import options as cli

TEMPLATES = Path(__file__).parent / "templates"


@cli.with_options(cli.JSON)
def init(
    options: cli.Options,
    name: Annotated[str, typer.Argument(help="What the experiment is called.")] = "mine",
) -> None:
    """Write a commented experiment, NAME.yaml, and a cluster.yaml to start from; nothing is overwritten."""
    if NAME.fullmatch(name) is None:
        raise BadInput("command line", "NAME", name, NAME_FORM)
    experiment, cluster = Path(f"{name}.yaml"), Path("cluster.yaml")
    if experiment.exists():
        raise BadInput("command line", "NAME", name, f"{experiment} is there already; choose another name")
    texts = {experiment: (TEMPLATES / "experiment.yaml").read_text(encoding="utf-8").format(name=name)}
    if not cluster.exists():
        texts[cluster] = (TEMPLATES / "cluster.yaml").read_text(encoding="utf-8")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    lines = [Text(f"{path}: written") for path in texts]
    plan, run = (shlex.join([*cli.program(), command, str(experiment)]) for command in ("plan", "run"))
    lines.append(Text(f"next: {plan}, then {run}"))
    cli.say({"files": [str(path) for path in texts]}, lines, options)


@cli.with_options(cli.JSON)
def show(
    options: cli.Options,
    name: Annotated[str | None, typer.Argument(help="An experiment, a table or a sweep.", show_default=False)] = None,
) -> None:
    """Print a shipped experiment, table or sweep, to be copied and changed; without a name list them."""
    known = cli.shipped()
    if name is None:
        lines = [Text(f"{kind}: {', '.join(files)}") for kind, files in known.items()]
        cli.say({kind: list(files) for kind, files in known.items()}, lines, options)
        return
    path = next((files[name] for files in known.values() if name in files), None)
    if path is None:
        names = [name for files in known.values() for name in files]
        raise BadInput("command line", "NAME", name, f"`pdd show` lists what there is{closest(name, names)}")
    text = path.read_text(encoding="utf-8")
    cli.say({"name": name, "text": text}, [Text(text.rstrip("\n"))], options)
