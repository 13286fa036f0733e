"""The progress of a run for the people who watch it, always on standard error.

It has three forms. On a terminal, one live screen: the pipeline with a bar per kind and stage, the running jobs
with their own words, and what is left. Elsewhere (a log file, a SLURM job), plain lines: each finished job
of experts or distillation, each failure, and now and then a summary, ever more rarely as the run grows
long. Quiet: failures only.

`snapshot` turns the run's state into plain values, with the time left (`orchestrator.runs.time_left`); both are pure,
so a test needs no driver. `Progress` keeps what was said already and does the printing.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs import outcomes
from jobs.experiment import Cell, Plan
from jobs.graph import Job
from jobs.keys import kind_of
from jobs.outcomes import NetworkOutcome
from orchestrator.results.cells import Reader, label, manifest_of
from orchestrator.runs.time_left import Pace, Running, time_left
from orchestrator.runs.timeline import clock_time
from orchestrator.scheduler.job_status import AVAILABLE, UNFINISHED, UNSUCCESSFUL, Status
from orchestrator.scheduler.state import State
from workers.store.claims import Claim
from workers.store.store import Manifest

BEFORE_STAGES = ("dataset", "imported", "forgetting", "select")
STAGED = ("experts", "distil")
AFTER_STAGES = ("evaluate", "full")

_FRAME_SECONDS = 0.25
_LINE_SECONDS = 2.0
_MOST_RUNNING = 10
"""Running jobs shown on the screen; a larger cluster is summed up."""


@dataclass(frozen=True)
class Bar:
    """The jobs of one kind, or of one kind and stage (0: the kind has no stages)."""

    kind: str
    stage: int
    total: int
    whole: int
    running: int
    failed: int
    """Failed or skipped."""
    share: float
    """The share of the bar that is done, with what the running jobs have done so far."""


@dataclass(frozen=True)
class Snapshot:
    """One moment of a run.

    Attributes:
        bars: in pipeline order: what comes before the stages, experts and distil by stage, what comes after.
        total: jobs that are needed, or whole already.
        eta: seconds left by `time_left`; None where it cannot be known.
        best: the best mean accuracy so far, as a phrase; empty at first.
    """

    bars: tuple[Bar, ...]
    running: tuple[Running, ...]
    total: int
    counts: Mapping[Status, int]
    elapsed: float
    eta: float | None = None
    best: str = ""

    @property
    def whole(self) -> int:
        """Jobs whose artifacts are in the store."""
        return sum(self.counts.get(status, 0) for status in AVAILABLE)


def snapshot(
    plan: Plan,
    statuses: Mapping[str, Status],
    claims: Iterable[Claim],
    *,
    elapsed: float,
    now: float,
    slots: int = 0,
    seconds: Callable[[Job], float] | None = None,
    pace: Pace | None = None,
    best: str = "",
) -> Snapshot:
    """The moment described by every job's status and the claims in the store.

    Args:
        plan: the graph whose jobs are counted.
        statuses: of every job of the plan, by key.
        claims: any claims; those on keys that are not open in this plan are passed over.
        elapsed: seconds since the run began.
        now: unix seconds, to which the claims' times are compared.
        slots: workers that are alive.
        seconds: what a job was expected to take from start to end; without it there is no `eta`.
        pace: how long jobs really take; its clock is `elapsed`.
        best: passed through.
    """
    claimed = {claim.key: claim for claim in claims if statuses.get(claim.key) in UNFINISHED}
    running = {
        key: _running(key, claimed.get(key), now)
        for key, status in statuses.items()
        if status is Status.RUNNING or key in claimed
    }
    counts = Counter(statuses.values())
    left = None
    if seconds is not None:
        waiting = {job.key: seconds(job) for job in plan.graph if statuses[job.key] in UNFINISHED}
        left = time_left(plan.graph, waiting, running.values(), pace or Pace(), slots, elapsed)
    return Snapshot(
        bars=_bars(plan, statuses, running),
        running=tuple(sorted(running.values(), key=lambda one: kind_of(one.key) not in STAGED)),
        total=len(statuses) - counts[Status.UNNEEDED],
        counts=counts,
        elapsed=elapsed,
        eta=left,
        best=best,
    )


def best_so_far(cells: Iterable[Cell], accuracies: Mapping[str, float]) -> str:
    """The highest mean accuracy of any cell but full data, over the networks that are measured."""
    best = (0.0, "")
    for cell in cells:
        values = [accuracies[key] for key in cell.jobs if key in accuracies]
        if values and cell.stage and statistics.fmean(values) > best[0]:
            mean = statistics.fmean(values)
            best = mean, f"{mean:.1f} % ({label(cell)}, {cell.architecture}, n = {len(values)})"
    return best[1]


class Progress:
    """Shows a run's progress; a context manager, so that the terminal is given back whatever happens.

    Args:
        plan: what is run.
        store: where the numbers of finished jobs are read.
        quiet: say nothing but failures.
        seconds: what a job is expected to take, for the time left.
        console: standard error by default; live where it is a terminal.
        clock: monotonic seconds.
        wall: unix seconds.
    """

    def __init__(
        self,
        plan: Plan,
        store: Reader,
        *,
        quiet: bool = False,
        seconds: Callable[[Job], float] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._plan, self._store, self._quiet, self._seconds = plan, store, quiet, seconds
        self._console = console or Console(stderr=True)
        self._clock, self._wall = clock, wall
        self._live: Live | None = None
        self._began = self._clock()
        self._shown_at = float("-inf")
        self._show_seconds = 0.0
        self._statuses: dict[str, Status] = {}
        self._counts: Counter[Status] = Counter()
        self._accuracies: dict[str, float] = {}
        self._pace = Pace()

    def __enter__(self) -> Self:
        self._began = self._clock()
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, state: State, claims: Iterable[Claim]) -> None:
        """Show the state after an event; it must be called after every event.

        Args:
            state: what the run has come to. Only its `changes` are looked at, unless it has other jobs than before.
            claims: read only when something is shown, so an iterator that reads them late is welcome.
        """
        first, grown = not self._statuses, len(state.jobs) != len(self._statuses)
        keys = list(state.jobs) if grown else [change.key for change in state.changes]
        changed = [key for key in keys if self._statuses.get(key) is not state.jobs[key].status]
        self._counts.subtract(self._statuses[key] for key in changed if key in self._statuses)
        self._statuses |= {key: state.jobs[key].status for key in changed}
        self._counts.update(self._statuses[key] for key in changed)
        for key in changed:
            self._learn(key, state)
            self._report(key, state)
        ended = any(self._statuses[key] not in UNFINISHED for key in changed)
        if not self._quiet and self._is_due(ended and not first):
            self._shown_at = self._clock()
            self._show(state, claims)
            self._show_seconds = self._clock() - self._shown_at

    def say(self, text: str) -> None:
        """Tell the people who watch; not in quiet mode."""
        if not self._quiet:
            self._line(text)

    def _learn(self, key: str, state: State) -> None:
        """Note when a job was started, and how long it took when it is done."""
        status, elapsed = self._statuses[key], self._clock() - self._began
        if status is Status.RUNNING:
            self._pace.start(key, state.jobs[key].slot, elapsed)
        elif self._seconds is not None:
            expected = self._seconds(self._plan.graph[key]) if status is Status.DONE else None
            self._pace.end(key, elapsed, expected)

    def _report(self, key: str, state: State) -> None:
        """Print a line about a job if it failed or finished a stage."""
        status, job = self._statuses[key], state.jobs[key]
        if status is Status.FAILED:
            log = f"; log: {job.log}" if job.log else ""
            self._line(f"{key} FAILED ({job.reason}): {' '.join(job.because.split())}{log}")
        if status in AVAILABLE and kind_of(key) in AFTER_STAGES and not self._quiet:
            self._remember(key)
        if status is Status.DONE and kind_of(key) in STAGED and self._live is None:
            self.say(f"{short(key)} done{self._said_of(key)}; {self._fraction()}")

    def _remember(self, key: str) -> None:
        manifest = manifest_of(self._store, key)
        if manifest is not None:
            self._accuracies[key] = NetworkOutcome.from_extra(manifest.extra).accuracy

    def _said_of(self, key: str) -> str:
        manifest = manifest_of(self._store, key)
        return "" if manifest is None else f" in {manifest.seconds:.1f} s{held_out(manifest)}"

    def _fraction(self) -> str:
        whole = sum(self._counts[status] for status in AVAILABLE)
        return f"{whole}/{len(self._statuses) - self._counts[Status.UNNEEDED]} jobs"

    def _is_due(self, ended: bool) -> bool:
        """Whether it is time to show the state again, which takes at most a twentieth of the time."""
        waited = self._clock() - self._shown_at
        if self._live is not None:
            return waited >= max(0.0 if ended else _FRAME_SECONDS, 20 * self._show_seconds)
        return waited >= between_lines(self._clock() - self._began)

    def _show(self, state: State, claims: Iterable[Claim]) -> None:
        moment = snapshot(
            self._plan,
            self._statuses,
            claims,
            elapsed=self._clock() - self._began,
            now=self._wall(),
            slots=len(state.slots.keys() - state.cpu_slots),
            seconds=self._seconds,
            pace=self._pace,
            best=best_so_far(self._plan.cells, self._accuracies),
        )
        if self._live is not None:
            self._live.update(screen(moment), refresh=True)
        else:
            self._line(summary(moment))

    def _line(self, text: str) -> None:
        line = f"[{self._clock() - self._began:4.0f} s] {text}"
        self._console.print(Text(line), soft_wrap=True)


def between_lines(elapsed: float) -> float:
    """Seconds between two summaries in a log: two at first, a minute in the end, so that it stays short."""
    return min(max(_LINE_SECONDS, elapsed / 30), 60.0)


def summary(moment: Snapshot) -> str:
    """The moment in one line."""
    parts = [f"{moment.whole}/{moment.total} jobs", *_troubles(moment)]
    staged = [job for job in moment.running if kind_of(job.key) in STAGED]
    parts += [f"{short(job.key)}: {job.note}" for job in staged[:1] if job.note]
    parts += [f"{len(moment.running)} running"] if moment.running else []
    parts += [f"best {moment.best}"] if moment.best else []
    parts += _left(moment)
    return "; ".join(parts)


def screen(moment: Snapshot) -> RenderableType:
    """The moment as the live screen."""
    parts: list[RenderableType] = [_pipeline(moment.bars)]
    if moment.running:
        parts += [Text(""), _running_table(moment.running)]
    foot = [f"{moment.whole}/{moment.total} jobs", *_troubles(moment)]
    foot += [f"{found} found in the store"] if (found := moment.counts.get(Status.CACHED, 0)) else []
    foot += [f"elapsed {clock_time(moment.elapsed)}"]
    foot += _left(moment)
    best = [Text(f"best so far: {moment.best}")] if moment.best else []
    return Group(*parts, Text(""), *best, Text("; ".join(foot)))


def _left(moment: Snapshot) -> list[str]:
    """The time left in words; nothing where it is not known, or below a second."""
    return [f"about {clock_time(moment.eta)} left"] if moment.eta and moment.eta >= 1 else []


def short(key: str) -> str:
    """A key with as much of its digest as tells jobs apart."""
    return key[:-10]


def held_out(manifest: Manifest) -> str:
    """` (held-out 91.9 %)`, if the finished job knows its accuracy on the held-out split."""
    accuracy = outcomes.of(manifest.kind, manifest.extra).held_out
    return "" if accuracy is None else f" (held-out {accuracy:.1f} %)"


def _running(key: str, claim: Claim | None, now: float) -> Running:
    if claim is None:
        return Running(key)
    return Running(key, claim.done, claim.note, max(0.0, now - claim.claimed_at))


def _bars(plan: Plan, statuses: Mapping[str, Status], running: Mapping[str, Running]) -> tuple[Bar, ...]:
    members: dict[tuple[str, int], list[str]] = {}
    for job in plan.graph:
        if statuses[job.key] is not Status.UNNEEDED:
            members.setdefault((job.kind, getattr(job.spec, "stage", 0)), []).append(job.key)
    order = sorted(members, key=_pipeline_place)
    return tuple(_bar(kind, stage, members[kind, stage], statuses, running) for kind, stage in order)


def _bar(
    kind: str,
    stage: int,
    keys: Collection[str],
    statuses: Mapping[str, Status],
    running: Mapping[str, Running],
) -> Bar:
    whole = sum(statuses[key] in AVAILABLE for key in keys)
    active = [running[key] for key in keys if key in running]
    share = (whole + sum(job.done for job in active)) / len(keys)
    failed = sum(statuses[key] in UNSUCCESSFUL for key in keys)
    return Bar(kind, stage, len(keys), whole, len(active), failed, share)


def _pipeline_place(group: tuple[str, int]) -> tuple[int, int, int]:
    kind, stage = group
    for part, kinds in enumerate((BEFORE_STAGES, STAGED, AFTER_STAGES)):
        if kind in kinds:
            return part, stage, kinds.index(kind)
    return len(STAGED) + 1, stage, 0


def _troubles(moment: Snapshot) -> list[str]:
    bad = (Status.FAILED, Status.SKIPPED)
    return [f"{moment.counts[status]} {status}" for status in bad if moment.counts.get(status)]


def _pipeline(bars: Iterable[Bar]) -> Table:
    """One line per kind; the stages as `stage i`, experts then distil on one line."""
    grid = Table.grid(padding=(0, 1))
    rows: dict[str, list[RenderableType]] = {}
    for bar in bars:
        row = rows.setdefault(f"stage {bar.stage}" if bar.stage else bar.kind, [])
        style = "green" if bar.whole == bar.total else "red" if bar.failed else "yellow"
        picture = ProgressBar(1.0, bar.share, width=20, complete_style=style, finished_style=style)
        count = Text(f"{bar.whole}/{bar.total}", justify="right")
        row += [Text(bar.kind if bar.stage else ""), picture, count]
    for name, cells in rows.items():
        grid.add_row(Text(name, style="bold"), *cells)
    return grid


def _running_table(running: Collection[Running]) -> Table:
    grid = Table.grid(padding=(0, 2))
    shown = list(running)[:_MOST_RUNNING]
    for job in shown:
        note = Text(job.note, style="cyan")
        grid.add_row(Text(short(job.key)), f"{job.done:4.0%}", note, clock_time(job.seconds))
    if len(running) > len(shown):
        grid.add_row(Text(f"and {len(running) - len(shown)} more"))
    return grid
