"""The commands that look after runs: `status`, `logs`, `cancel`, `report`, and `doctor` for what would stop one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from orchestrator.cli import options as cli
from orchestrator.cli.errors import writing_to


@cli.with_options(cli.STORE, cli.JSON)
def status(options: cli.Options, name: cli.RunName = None) -> None:
    """Tell what a run is doing, from any shell that sees the store."""
    from orchestrator.clusters.slurm.follow import status_of
    from orchestrator.runs.status import chosen_run

    store = cli.existing_store(options)
    current = status_of(store, chosen_run(store, name))
    cli.say(current.to_json(), current.lines(), options)


@cli.with_options(cli.STORE, cli.JSON)
def logs(
    options: cli.Options,
    key: Annotated[str | None, typer.Argument(help="A job's key or a part of it.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option("--run", help="A run; the latest by default.")] = None,
) -> None:
    """Print the log of a job of a run."""
    from orchestrator.runs.status import chosen_run, log_of

    store = cli.existing_store(options)
    run = chosen_run(store, name)
    path = log_of(store, run, key)
    text = path.read_text(errors="replace")
    document = {"run": run, "key": path.stem, "path": str(path), "text": text}
    cli.say(document, [Text(text)], options)


@cli.with_options(cli.STORE, cli.JSON)
def cancel(options: cli.Options, name: cli.RunName = None) -> None:
    """Ask a run to save its work and end, from any shell that sees the store."""
    from orchestrator.clusters.slurm.follow import SlurmRun, status_of
    from orchestrator.runs.status import chosen_run
    from orchestrator.runs.stop_file import STOP, StopFile

    store = cli.existing_store(options)
    run = chosen_run(store, name)
    state = status_of(store, run).state
    if going := state in ("running", "queued"):
        StopFile(store.run_folder(run) / STOP).write("cancelled")
        if (slurm_run := SlurmRun.of(store, run)) is not None:
            slurm_run.cancel(store)
    words = "asked to save and end" if going else f"not going on ({state}), so there is nothing to cancel"
    cli.say({"run": run, "asked": going}, [Text(f"{run}: {words}")], options)


@cli.with_options(cli.STORE, cli.REQUEST, cli.JSON)
def report(
    options: cli.Options,
    experiments: cli.Names = None,
    all_tables: cli.AllTables = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("report"),
) -> None:
    """Write the report of what the store has for some experiments or tables."""
    if cli.are_tables(experiments, all_tables):
        from orchestrator.planning.table_requests import resolve_tables
        from orchestrator.workloads.tables import TableWorkload

        resolved = resolve_tables(cli.table_request_of(experiments, all_tables, None, options))
        tables = TableWorkload(resolved, resolved.tables.plan)
        with writing_to(out):
            paths = tables.write_report(out, cli.readable_store(options), None, cli.command_line())
        cli.say_files(paths, options)
        return
    from orchestrator.planning.requests import resolve
    from orchestrator.workloads.experiments import latest_run, write_report

    request = resolve(cli.request_of(experiments, options))
    store = cli.readable_store(options)
    with writing_to(out):
        paths = write_report(out, request.plan, store, latest_run(request, store), cli.command_line())
    cli.say_files(paths, options)


@cli.with_options(cli.TARGET, cli.JSON)
def doctor(
    options: cli.Options,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="On SLURM: look at so many nodes at once.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Also time this machine's card, for prices: ten seconds.")] = False,
) -> None:
    """Check what would stop a run here, with the fix of each finding."""
    from orchestrator.clusters.doctor import examine, time_card

    target = options.target()
    findings = examine(target) + ([time_card()] if gpu else [])
    if target.cluster.kind == "slurm":
        from orchestrator.clusters.slurm import doctor as slurm_doctor  # only where it is asked for

        findings += slurm_doctor.examine(target, nodes)
    table = Table("check", "", "found", "fix", box=None)
    for finding in findings:
        table.add_row(finding.name, "ok" if finding.ok else "FIX", finding.found, "" if finding.ok else finding.fix)
    ok = all(finding.ok for finding in findings)
    cli.say({"ok": ok, "findings": [vars(finding) for finding in findings]}, [table], options)
    if not ok:
        raise typer.Exit(2)
