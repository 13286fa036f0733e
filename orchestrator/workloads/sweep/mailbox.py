"""Where the trials of a sweep ask for stages, and where they are answered: a folder of small files.

A trial knows nothing of jobs, and the driver nothing of Ray Tune. A trial puts down a request, "stage 2 of these
values", and waits for the answer, the stage's metrics. One file is one message, put in place by a rename and never
changed, so either side may be killed at any moment. Answers stay: a trial that begins again reads its earlier stages
off them.

    <trial>.2.request.json      {"values": {...}, "stage": 2}
    <trial>.2.answer.json    {"metrics": {...}, "last": false}  or  {"failed": "why"}

A trial is known by the digest of its values, whatever Ray Tune calls it. Both sides must see the folder at once, so
trials run on the driver's own host.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import PddError
from jobs.sweep import Values
from workers.store.files import make_folder, names_in, write_file

POLL_SECONDS = 0.1


class TrialFailed(PddError):
    """A job that the trial needs failed, or the values make no experiment."""


@dataclass(frozen=True)
class StageRequest:
    """A trial wants this stage, counted from 1, to be done."""

    values: Values
    stage: int

    @property
    def trial(self) -> str:
        """The name of the trial."""
        return trial_id(self.values)


@dataclass(frozen=True)
class StageMetrics:
    """What a stage came to; `failed` says why there are no metrics."""

    metrics: Mapping[str, float]
    last: bool = False
    failed: str = ""


def trial_id(values: Values) -> str:
    """The name of the trial with these values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def spoken(values: Values) -> str:
    """`num_stages=2, image_lr=0.03`."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def folder_of(values: Values) -> str:
    """The trial's folder among Tune's, which TensorBoard shows as its name: its values, and what tells it apart."""
    words = re.sub(r"[^\w.=,+-]+", "_", spoken(values).replace(", ", ","))
    return f"{words[:100]}-{trial_id(values)[:6]}"


class TrialMailbox:
    """The folder, for both sides; made when it is first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: set[str] = set()

    def ask(self, request: StageRequest, wait: Callable[[], object] = lambda: time.sleep(POLL_SECONDS)) -> StageMetrics:
        """The trial's side: the answer, waited for however long it takes.

        Raises:
            TrialFailed: the stage cannot be had.
        """
        if self.answer_to(request.trial, request.stage) is None:
            self._write(request, "request", {"values": request.values, "stage": request.stage})
        while (answer := self.answer_to(request.trial, request.stage)) is None:
            wait()
        if answer.failed:
            raise TrialFailed(answer.failed)
        return answer

    def answer_to(self, trial: str, stage: int) -> StageMetrics | None:
        """The answer about a stage, if there is one."""
        try:
            return StageMetrics(**json.loads((self.folder / f"{trial}.{stage}.answer.json").read_text()))
        except FileNotFoundError:
            return None

    def new_requests(self) -> list[StageRequest]:
        """The driver's side: the unanswered requests not seen before, those of all stages in order."""
        names = set(names_in(self.folder))
        fresh = {name for name in names - self._read if name.endswith(".request.json")}
        self._read |= fresh
        open_ones = [name for name in fresh if name.replace(".request.", ".answer.") not in names]
        requests = [StageRequest(**json.loads((self.folder / name).read_text())) for name in open_ones]
        return sorted(requests, key=lambda request: (request.stage, request.trial))

    def answer(self, request: StageRequest, answer: StageMetrics) -> None:
        """The driver's side: say what a stage came to."""
        said = {"failed": answer.failed} if answer.failed else {"last": answer.last}
        self._write(request, "answer", {"metrics": dict(answer.metrics), **said})

    def begin_again(self) -> list[Values]:
        """A new driver forgets failures and open requests, which will come again; returns the trials that it knows."""
        known: dict[str, Values] = {}
        requests = sorted(self.folder.glob("*.request.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in requests:
            request = StageRequest(**json.loads(path.read_text()))
            answer = self.answer_to(request.trial, request.stage)
            if answer is None or answer.failed:
                path.with_name(path.name.replace(".request.", ".answer.")).unlink(missing_ok=True)
                path.unlink()
            else:
                known[request.trial] = request.values
        return list(known.values())

    def _write(self, request: StageRequest, what: str, message: Mapping[str, Any]) -> None:
        make_folder(self.folder)
        path = self.folder / f"{request.trial}.{request.stage}.{what}.json"
        unfinished = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
        write_file(unfinished, json.dumps(message, allow_nan=False).encode())
        unfinished.replace(path)
