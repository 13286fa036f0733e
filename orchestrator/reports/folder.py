"""A report as a folder: its page in two forms, its pictures, and the data for other programs.

    report.md  report.html     the page, and the same in one file for a browser
    *.png                      the pictures of the page
    *.csv  *.json  *.parquet   the results as each report names them
    jobs.parquet               every job: its seconds, its digest, and what it was made from

The page shows only files beside it, so the folder can be copied anywhere. What it may be read
by is what the umask allows.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.experiment import Plan
from orchestrator.reports.markdown import markdown
from orchestrator.reports.page import Beside, Page
from orchestrator.reports.sections import RunFacts, run_sections
from orchestrator.results.cells import manifest_of
from workers.store.store import Store

REPORT, HTML, JOBS = "report.md", "report.html", "jobs.parquet"
JOBS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "kind", "digest")),
        ("seconds", pa.float64()),
        ("parents", pa.list_(pa.string())),
    ]
)
"""`digest` and `seconds` are empty while the job has no artifact; equal digests are equal results, byte for byte."""


def write(
    folder: Path, page: Page, plan: Plan, store: Store, run: RunFacts, data: Mapping[str, bytes], about: str
) -> list[Path]:
    """Write a report over an earlier one in the same folder.

    Args:
        folder: made if absent.
        page: what the report says of its subject; the sections on the run are added to it.
        plan: the jobs behind it.
        store: where seconds, versions and digests are looked up.
        run: the run that it is about.
        data: by name, the files for other programs.
        about: what these hold, in words.

    Returns:
        The files written, `report.md` first.
    """
    from orchestrator.reports.html import html  # takes Jinja and Pillow along

    beside = (
        Beside(tuple(data), about),
        Beside((JOBS,), "every job with its seconds, its digest and the jobs it was made from"),
        Beside((HTML,), "this report in one file, for a browser"),
    )
    page = replace(page, sections=(*page.sections, *run_sections(plan, store, run, beside)))
    files = {REPORT: markdown(page).encode(), HTML: html(page).encode()}
    files |= {picture.name: picture.png for picture in page.pictures()}
    files |= {**data, JOBS: parquet(_job_rows(plan, store), JOBS_SCHEMA)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def parquet(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """The rows as a Parquet file, with the types of the schema whatever is empty."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    return buffer.getvalue()


def _job_rows(plan: Plan, store: Store) -> Iterable[dict[str, Any]]:
    """Every job of the plan once, parents before children."""
    for job in plan.graph:
        manifest = manifest_of(store, job.key)
        artifact = {"digest": manifest.digest, "seconds": manifest.seconds} if manifest else {}
        yield {"key": job.key, "kind": job.kind, "parents": list(job.parent_keys()), **artifact}
