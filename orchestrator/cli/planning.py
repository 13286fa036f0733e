"""The commands that start nothing and say what a run would do: `plan` and `explain`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from jobs.errors import BadInput
from orchestrator.cli import options as cli


@cli.with_options(cli.TARGET, cli.REQUEST, cli.JSON)
def plan(
    options: cli.Options,
    experiments: cli.Names = None,
    all_tables: cli.AllTables = False,
    with_dashes: cli.WithDashes = False,
    budget: cli.Budget = None,
) -> None:
    """Show what a run of experiments or tables would do and take; start nothing."""
    target = options.target()
    from orchestrator.clusters.config import card_gigabytes, has_only_own_cores
    from orchestrator.planning.budget import parse_budget
    from orchestrator.planning.card_memory import require_room
    from orchestrator.planning.forecast import Planned, forecast
    from orchestrator.planning.host_speed import begin_timing
    from orchestrator.planning.requests import require_compiler, resolve
    from orchestrator.planning.table_requests import resolve_tables

    seconds = None if budget is None else parse_budget(budget)
    tables = cli.are_tables(experiments, all_tables)
    if (options.scale or ("paper" if tables else "")) != "paper":
        begin_timing(target.cluster.count())
    if tables:
        request = cli.table_request_of(experiments, all_tables, budget, options, with_dashes)
        planned = Planned.of(resolve_tables(request, allow_missing_data=True))
    else:
        planned = Planned.of(resolve(cli.request_of(experiments, options)))
    document = forecast(planned, cli.readable_store(options), target.cluster.count(), seconds)
    require_room(document.peaks, planned.plan.graph, card_gigabytes(target.cluster), target.name)
    if has_only_own_cores(target.cluster):
        require_compiler(planned.plan.graph[key] for key in document.peaks)
    cli.say(document.to_json(), document.lines(), options)


@cli.with_options(cli.STORE, cli.REQUEST, cli.JSON)
def explain(
    options: cli.Options,
    experiments: cli.Names = None,
    key: Annotated[str | None, typer.Option("--key", help="Only jobs whose key holds this.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Also every number with its source.")] = False,
) -> None:
    """Say of every job whether it is cached and, if not, which field makes it a new one."""
    from orchestrator.planning import explain as explaining
    from orchestrator.planning.requests import resolve

    resolved = resolve(cli.request_of(experiments, options))
    jobs = [
        job for job in explaining.explain(resolved.plan, cli.readable_store(options)) if key is None or key in job.key
    ]
    if not jobs:
        raise BadInput("command line", "--key", key, "no job's key holds this; leave it out to see all")
    numbers = {job.key: explaining.sources_of(resolved.plan, job.key) for job in jobs} if recipe else {}
    visits = explaining.image_visits(resolved.plan)
    document = {
        "image_visits": [vars(cell) for cell in visits],
        "jobs": [
            job.to_json() | ({"recipe": [list(row) for row in numbers[job.key]]} if recipe else {}) for job in jobs
        ],
    }
    lines: list[Text] = []
    for job in jobs:
        lines += [Text(f"{job.key}: {job.reason}"), *[Text(f"    {change}") for change in job.changed]]
        lines += [Text(f"    {path} = {value}   [{source}]") for path, value, source in numbers.get(job.key, ())]
    for cell in visits:
        stages = "1 stage" if cell.stage == 1 else f"{cell.stage} stages"
        lines.append(Text(f"{cell.method}, {stages}, {cell.mode}: {cell.visits:,} image visits"))
    cli.say(document, lines, options)
