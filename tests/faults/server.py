"""Commands in forked processes: each is the command line in a process of its own, without the seconds of its imports.

The server imports everything and does one small run; then it forks for every command that it is asked for. A forked
process may be killed, halted and limited like any other. Left out are Ray, whose commands start as a shell starts
them, the measurement of this machine, which takes seconds, and the drawing of pictures, three quarters of a tiny run:
a report has the same files, with a picture of one point in place of each.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 240.0


@dataclass(frozen=True)
class Ended:
    """What a command left.

    Attributes:
        exit: the exit code; negative: the signal; None: it did not end.
        out: its standard output.
        err: its standard error.
        mib: the largest resident size, in MiB.
        seconds: from its start to its end.
        cpu: seconds of the processor that it took.
    """

    exit: int | None
    out: str
    err: str
    mib: int
    seconds: float
    cpu: float = 0.0


class Server:
    """The side of the test; close it at the end.

    Args:
        folder: for its outputs and the temporary files of the commands.
        environment: beside that of this process.
        warm: the words of a command that is done once, in the server itself.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], warm: tuple[str, ...] = ()) -> None:
        self.folder, self.temporary = folder, folder / "temporary"
        self.temporary.mkdir()
        self._ended: dict[int, tuple[int, int, float, float]] = {}
        self._began: dict[int, float] = {}
        self._buffer = b""
        more = {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(self.temporary), **environment}
        self._errors = (folder / "server.err").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", *warm],
            cwd=folder,
            env=os.environ | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._line(START_SECONDS) == {"ready": True}, (folder / "server.err").read_text()

    def start(self, *words: str, cwd: Path | None = None, memory: int = 0) -> int:
        """Start a command; returns its process number.

        Args:
            words: of the command line.
            cwd: its current folder.
            memory: MiB of address space that it may have beyond the server's; 0: no limit.
        """
        assert self._process.stdin is not None
        order = {"words": words, "cwd": str(cwd or self.folder), "memory": memory, "outputs": str(self.folder)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        while "started" not in (line := self._line(30.0)):
            self._note(line)
        self._began[line["started"]] = time.monotonic()
        return int(line["started"])

    def wait(self, pid: int, seconds: float) -> Ended:
        """Wait for a command's end; one that is still there after these seconds is killed and has no exit code."""
        deadline, late = time.monotonic() + seconds, False
        while pid not in self._ended:
            try:
                self._note(self._line(max(deadline - time.monotonic(), 0.01)))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                deadline, late = time.monotonic() + 30, True
        code, mib, at, cpu = self._ended.pop(pid)
        out, err = (self.folder / f"{pid}.out", self.folder / f"{pid}.err")
        texts = [path.read_text(errors="replace") for path in (out, err)]
        out.unlink(), err.unlink()
        return Ended(None if late else code, *texts, mib, at - self._began.pop(pid), cpu)

    def run(self, *words: str, seconds: float = 120.0, cwd: Path | None = None, memory: int = 0) -> Ended:
        """Do a command to its end."""
        return self.wait(self.start(*words, cwd=cwd, memory=memory), seconds)

    def ended(self, pid: int) -> bool:
        """Whether a command has ended."""
        with suppress(TimeoutError):
            while True:
                self._note(self._line(0.0))
        return pid in self._ended

    def close(self) -> None:
        """End the server and what it started."""
        for pid in self._began.keys() - self._ended.keys():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._errors.close()

    def _note(self, line: dict[str, Any]) -> None:
        self._ended[line["ended"]] = line["exit"], line["mib"], time.monotonic(), line["cpu"]

    def _line(self, seconds: float) -> dict[str, Any]:
        """The next line of the server.

        Raises:
            TimeoutError: there was none within the seconds.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not readable:
                raise TimeoutError
            fresh = os.read(self._process.stdout.fileno(), 65536)
            assert fresh, f"the server is gone: {(self.folder / 'server.err').read_text()}"
            self._buffer += fresh
        line, _, self._buffer = self._buffer.partition(b"\n")
        document: dict[str, Any] = json.loads(line)
        return document


# The side of the commands.


def serve(answers: int) -> None:
    """Fork for every line of standard input until that ends; each start and each end is a line for `answers`."""
    children: dict[int, int] = {}
    source = sys.stdin.buffer.raw
    buffer, more = b"", True
    while more or children:
        readable, _, _ = select.select([*([source] if more else []), *children], [], [])
        for descriptor in set(readable) & children.keys():
            pid = children.pop(descriptor)
            os.close(descriptor)
            _, status, usage = os.wait4(pid, 0)
            code, cpu = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
            _say(answers, {"ended": pid, "exit": code, "mib": usage.ru_maxrss // 1024, "cpu": cpu})
        if source in readable:
            fresh = source.read(65536)
            more, buffer = bool(fresh), buffer + (fresh or b"")
            for pid in children.values() if not more else ():  # nobody waits for them any more
                os.kill(pid, signal.SIGKILL)
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                pid = os.fork()
                if not pid:
                    _become(json.loads(line), answers)
                children[os.pidfd_open(pid)] = pid
                _say(answers, {"started": pid})


def _say(answers: int, document: dict[str, Any]) -> None:
    os.write(answers, json.dumps(document).encode() + b"\n")


def _become(order: dict[str, Any], answers: int) -> NoReturn:
    """Be the command line."""
    import resource

    code = 70
    try:
        os.setpgid(0, 0)
        os.close(answers)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{order['outputs']}/{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.chdir(order["cwd"])
        tempfile.tempdir = None
        if order["memory"]:
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + (order["memory"] << 20),) * 2)
        code = _run(order["words"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _run(words: list[str]) -> int:
    """Do a command in this process, as `main` does; its exit code. `decode PATH` reads a data set whole."""
    from orchestrator import launch

    if words[:1] == ["decode"]:
        return _decode(Path(words[1]))
    sys.argv = ["pdd", *words]
    try:
        launch.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 71


def _decode(path: Path) -> int:
    from jobs.errors import BadInput
    from workers.data import sources

    try:
        sources.read(sources.Source(layout="auto", path=path, place="decode"))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main() -> None:
    from jobs.machines import Slowness
    from orchestrator.reports import images
    from workers.training import speed

    speed.Timing.__init__ = lambda *_, **__: None
    speed.Timing.slowness = lambda _: Slowness(1.0, 1.0)
    point = images.png(images.Image.new("RGB", (1, 1)))
    images.png = lambda _: point
    answers = os.dup(1)
    os.dup2(2, 1)
    if len(sys.argv) > 1:
        _run(sys.argv[1:])
    _say(answers, {"ready": True})
    serve(answers)


if __name__ == "__main__":
    main()
