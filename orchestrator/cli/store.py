"""The commands on what a store holds: `import`, `export`, `verify`, `gc`. They start no run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from jobs.errors import BadInput
from jobs.keys import kind_of
from orchestrator.cli import options as cli
from orchestrator.cli.errors import writing_to


@cli.with_options(cli.STORE, cli.JSON)
def import_(
    options: cli.Options,
    files: Annotated[list[Path], typer.Argument(help="replay_buffer_*.pt, or images_best.pt labels_best.pt.")],
    step_size: Annotated[float | None, typer.Option("--step-size", help="That was learned with the set.")] = None,
    normalise: Annotated[
        str, typer.Option("--normalise", help="What the set's images were normalised with: zca, cifar10, ...")
    ] = "",
) -> None:
    """Take expert trajectories or a synthetic set of others into the store; print the key that experiments name.

    Args:
        options: the common options.
        files: of the published code.
        step_size: that was learned with the set; None if it is not known or there is no set.
        normalise: what the set's images were normalised with; '' if it is not said.
    """
    from jobs.graph import Job
    from workers.data import published
    from workers.execute import perform
    from workers.runtime.context import JobContext

    job = Job.make(published.inspect(files, step_size, normalise), {})
    store = cli.open_store(options)
    if not (known := store.has(job.key)):
        perform(JobContext.alone(job, store))
    content = job.spec.model_dump(mode="json", exclude={"files"})
    field = f"imported_{content['what']}"
    state = "is in the store already" if known else "in the store"
    lines = [Text(f"{job.key}: {state}"), Text(f"in an arm of an experiment: {field}: {job.key}")]
    cli.say({"exit": 0, "key": job.key, "found": known, **content}, lines, options)


@cli.with_options(cli.STORE, cli.REQUEST, cli.JSON)
def export(
    options: cli.Options,
    experiments: cli.Names = None,
    arm: Annotated[str | None, typer.Option("--arm", help="An arm with sets, as tables call it.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Instead of an arm: a set's key or a part of it.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Instead: a run, whose best held-out set is taken.")] = None,
    stages: Annotated[int | None, typer.Option("--stages", help="Only the first stages.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")] = Path("export"),
    as_files: Annotated[bool, typer.Option("--folders", help="Also as PNG files in class folders.")] = False,
    with_test: Annotated[bool, typer.Option("--with-test", help="Real test images too, whatever the licence.")] = False,
    wanted: Annotated[
        str | None,
        typer.Option("--for", help="Instead the files of mtt (also experts, by --key), or of ddranking."),
    ] = None,
) -> None:
    """Write a synthetic set as a folder that any PyTorch or Hugging Face user can use."""
    from orchestrator.export import chain as chains
    from orchestrator.export import formats, writer
    from orchestrator.planning.requests import resolve
    from orchestrator.runs.status import chosen_run

    ways = {"experiment": experiments, "--key": key, "--run": run}
    given = [name for name, value in ways.items() if value] or ["experiment"]
    if len(given) > 1 or (arm and given != ["experiment"]):
        raise BadInput("command line", given[-1], ways[given[-1]], "name an experiment with --arm, or --key, or --run")
    if wanted not in (None, *formats.FORMATS):
        raise BadInput("command line", "--for", wanted, f"must be {' or '.join(formats.FORMATS)}")
    if wanted is not None and (as_files or with_test):
        raise BadInput("command line", "--for", wanted, "leave --folders and --with-test out; there are no pictures")
    opened = cli.existing_store(options)
    if wanted is not None and key and kind_of(key) == "experts":
        with writing_to(out):
            files = formats.write_experts(out, wanted, key, opened)
        return cli.say(files.to_json(), files.lines(), options)
    if key:
        keys = chains.of_key(opened, key)
    elif run:
        keys = chains.best_of_run(opened, chosen_run(opened, run))
    else:
        keys = chains.of_experiment(resolve(cli.request_of(experiments, options)).plan, arm)
    with writing_to(out):
        source = chains.gather(keys.prefix(stages), opened)
        exported = (
            writer.write(out, source, opened, with_test=with_test, as_files=as_files)
            if wanted is None
            else formats.write_set(out, wanted, source, opened)
        )
    cli.say(exported.to_json(), exported.lines(), options)


@cli.with_options(cli.STORE, cli.JSON)
def verify(
    options: cli.Options,
    key: Annotated[str | None, typer.Argument(help="A key or a part of it; all if none.", show_default=False)] = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Move the damaged away, to be made anew.")] = False,
) -> None:
    """Compare every byte of the artifacts with the digests in their manifests; exit 3 if one is damaged."""
    from orchestrator.runs import garbage

    store = cli.existing_store(options)
    verification = garbage.verify(store, key or "")
    damaged = {name: complaints for name, complaints in verification.damaged.items() if complaints}
    for name, complaints in damaged.items() if quarantine else ():
        store.quarantine(name, "; ".join(complaints))
    code, checked, uncovered = 3 if damaged else 0, len(verification.damaged), verification.uncovered
    lines = [Text(f"DAMAGED {name}: {'; '.join(complaints)}") for name, complaints in damaged.items()]
    lines.append(Text(f"{checked - len(damaged)} of {checked} artifacts are what their manifests say"))
    if uncovered:
        why = "their manifests were written by an earlier version, without a digest of their own"
        lines.append(Text(f"the numbers of {len(uncovered)} of them cannot be checked: {why}"))
    if damaged:
        fix = "moved to the quarantine; run" if quarantine else "`--quarantine` moves them away; then run"
        lines.append(Text(f"{fix} the experiment again, which makes them anew"))
    document = {
        "exit": code,
        "checked": checked,
        "damaged": damaged,
        "uncovered": uncovered,
        "quarantined": quarantine,
    }
    cli.say(document, lines, options)
    raise typer.Exit(code)


@cli.with_options(cli.STORE, cli.REQUEST, cli.JSON)
def gc(
    options: cli.Options,
    experiments: cli.Names = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only listed.")] = False,
) -> None:
    """List the artifacts that no run refers to, nor any experiment named here; remove them if asked."""
    from orchestrator.clusters.slurm.follow import status_of
    from orchestrator.planning.requests import resolve
    from orchestrator.runs import garbage

    store = cli.existing_store(options)
    wanted = resolve(cli.request_of(experiments, options)).plan.graph.jobs if experiments else ()
    unused = garbage.unused(store, wanted)
    obstacles = garbage.obstacles(store, status_of)
    if delete:
        garbage.remove(store, unused, status_of)
    size = sum(artifact.size for artifact in unused)
    lines = [Text(f"{artifact.key}: {artifact.size / 2**20:.1f} MiB") for artifact in unused]
    outcome = (
        "removed"
        if delete
        else "to remove by `--delete`; what old runs used is free once their folders in runs/ are gone"
    )
    lines.append(Text(f"{len(unused)} artifacts, {size / 2**20:.1f} MiB {outcome}"))
    lines += [Text(f"`--delete` is refused for now: {name} {why}") for name, why in obstacles.items()]
    document = {
        "exit": 0,
        "deleted": delete,
        "bytes": size,
        "unused": [{"key": artifact.key, "bytes": artifact.size} for artifact in unused],
        "obstacles": obstacles,
    }
    cli.say(document, lines, options)
