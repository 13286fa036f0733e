"""Loggers of experiments that others make: a run's journal is told to Weights & Biases, MLflow or TensorBoard.

`logger:` of cluster.yaml names one; its library is imported only then. It is told, in a thread of its own, of each job
that is done, and at the end of every cell; what goes wrong there never touches the run. Where it writes to and whether
it is online is its own business: `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI=…`.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from jobs import outcomes
from jobs.errors import BadInput
from jobs.keys import kind_of
from orchestrator.clusters.config import LoggerName
from orchestrator.results.cells import Result, label, manifest_of
from orchestrator.runs import journal
from orchestrator.runs.records import Record
from workers.store.store import Store

PROJECT = "pdd"
"""The project of Weights & Biases, and the experiment of MLflow, in which runs appear."""
LAST_SECONDS = 60.0
"""For how long the end of a run waits for a logger."""
_ODD = re.compile(r"[^\w\-. /]")
"""What MLflow refuses in a name."""


class Logger(Protocol):
    """One run in a library."""

    def log(self, metrics: Mapping[str, float], step: int) -> object:
        """Take metrics at a step."""

    def end(self, summary: Mapping[str, float]) -> object:
        """Take the last values and close the run."""


class _Wandb:
    """A run of Weights & Biases; its files lie in the run's folder."""

    def __init__(self, wandb: Any, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._run = wandb.init(
            project=PROJECT, name=name, id=name, resume="allow", dir=str(folder), config=dict(config)
        )

    def log(self, metrics: Mapping[str, float], step: int) -> object:
        return self._run.log(dict(metrics), step=step)

    def end(self, summary: Mapping[str, float]) -> object:
        self._run.summary.update(dict(summary))
        return self._run.finish()


class _Mlflow:
    """A run of MLflow, where its own settings say."""

    def __init__(self, mlflow: Any, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._mlflow = mlflow
        mlflow.set_experiment(PROJECT)
        self._id = mlflow.start_run(run_name=name).info.run_id
        mlflow.log_params(dict(config))

    def log(self, metrics: Mapping[str, float], step: int) -> object:
        plain = {_ODD.sub(" ", name): value for name, value in metrics.items()}
        return self._mlflow.log_metrics(plain, step=step, run_id=self._id)

    def end(self, summary: Mapping[str, float]) -> object:
        self.log(summary, 0)
        return self._mlflow.end_run()


class _TensorBoard:
    """TensorBoard's event files in the run's folder; `tensorboard --logdir` of the runs' folder shows all."""

    def __init__(self, tensorboard: Any, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._writer = tensorboard.SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("run", "\n".join(f"{field}: {value}" for field, value in {"run": name, **config}.items()))

    def log(self, metrics: Mapping[str, float], step: int) -> object:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        return self._writer.flush()

    def end(self, summary: Mapping[str, float]) -> object:
        self.log(summary, 0)
        return self._writer.close()


_LOGGERS: Mapping[LoggerName, tuple[str, Callable[[Any, str, Path, Mapping[str, Any]], Logger]]] = {
    "wandb": ("wandb", _Wandb),
    "mlflow": ("mlflow", _Mlflow),
    "tensorboard": ("tensorboardX", _TensorBoard),
}
"""The library of each and what talks to it."""


def check(name: LoggerName | None) -> None:
    """Refuse a logger whose library is not installed.

    Raises:
        BadInput: it is not.
    """
    if name is not None and find_spec(_LOGGERS[name][0]) is None:
        fix = f"its library is not installed here: pip install {_LOGGERS[name][0]}, or leave the logger out"
        raise BadInput("cluster.yaml", "logger", name, fix)


@contextmanager
def logging_to(
    name: LoggerName | None, run: str, store: Store, config: Mapping[str, Any], say: Callable[[str], object]
) -> Iterator[RunLogger | None]:
    """Tell a logger of a run while the block goes on.

    Args:
        name: which logger; None is none.
        run: the run's name.
        store: where its journal and the numbers of its jobs are.
        config: what to write down of the run.
        say: tells people one line.

    Raises:
        BadInput: the logger cannot begin.
    """
    if name is None:
        yield None
        return
    library, begin = _LOGGERS[name]
    try:
        logger = begin(import_module(library), run, store.run_folder(run), config)
    except Exception as error:  # whatever a library of others raises
        fix = f"it cannot begin ({' '.join(str(error).split())}); see to it, or leave the logger out"
        raise BadInput("cluster.yaml", "logger", name, fix) from error
    told = RunLogger(logger, run, store, say)
    try:
        yield told
    except BaseException:
        told.close({})
        raise


@dataclass
class RunLogger:
    """Follows the journal of a run in a thread and tells a logger; to `begin` once the journal has begun."""

    logger: Logger
    run: str
    store: Store
    say: Callable[[str], object]

    def __post_init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._done = Counter[str]()

    def begin(self) -> None:
        """Begin to follow; a second time does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="logger", daemon=True)
            self._thread.start()

    def end(self, results: Sequence[Result]) -> None:
        """Wait until all is told, then tell the mean test accuracy of each cell and close the run."""
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
        cells = {_name_of(result): result.mean for result in results if result.mean is not None}
        self.close(cells)

    def close(self, cells: Mapping[str, float]) -> None:
        """Tell the last values and close the run."""
        self._safely(lambda: self.logger.end(cells))

    def _follow(self) -> None:
        folder = self.store.run_folder(self.run)

        def tell() -> None:
            for record in journal.follow(folder / journal.NAME):
                self.take(record)

        self._safely(tell)

    def take(self, record: Record) -> None:
        """Tell of a job that is done: its seconds, how many there are, and its accuracy if it measures one."""
        if record["event"] != "job_done":
            return
        kind = kind_of(record["key"])
        self._done[kind] += 1
        metrics = {f"seconds/{kind}": float(record["job_seconds"]), f"done/{kind}": float(self._done[kind])}
        manifest = manifest_of(self.store, record["key"])
        outcome = None if manifest is None else outcomes.of(kind, manifest.extra)
        for name, field in (("test accuracy", "accuracy"), ("held-out accuracy", "held_out")):
            value = getattr(outcome, field, None)
            if value is not None:
                metrics[f"{name}/{kind}"] = float(value)
        self.logger.log(metrics, self._done.total())

    def _safely(self, tell: Callable[[], object]) -> None:
        try:
            tell()
        except Exception as error:  # a network, a full disk, a bug of theirs: the run goes on
            why = " ".join(str(error).split())
            self.say(f"the logger failed and is not told any more; the run goes on ({why})")


def _name_of(result: Result) -> str:
    """What the mean of a cell is called."""
    images = f"{result.ipc_total} per class" if result.ipc_total else "all images"
    return f"cells/{result.experiment}/{label(result)}/{images}/{result.architecture}"
