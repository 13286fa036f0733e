"""The command line: `python -m orchestrator.launch`, also installed as `pdd`.

The commands stand in `orchestrator.cli`, and so does how the process ends on an error (`orchestrator.cli.errors`).
With `--json` one JSON document stands on standard output and nothing else (`{schema, exit, error}` for what was
refused); everything for people then goes to standard error. Exit codes: 0 done, 2 bad input (nothing was started),
3 ended but some jobs failed or the disk, the memory or Ray refused, 130 interrupted, 1 our own bug.

SIGTERM ends a command as Ctrl-C does, from its first moment on; a run that has begun takes over both signals
(`orchestrator.runs.stop_file`).
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from pathlib import Path

from orchestrator.runs.stop_file import SIGNALS, interrupt, signals_to


def main() -> None:
    """Run the command of the command line.

    Raises:
        SystemExit: always, with the exit code.
    """
    early: list[int] = []
    with signals_to(early.append):  # to break an import off would leave half a module
        _import_from_here_last()
        from orchestrator.cli.app import app
        from orchestrator.cli.errors import end_with, show_any_letter

        show_any_letter()
        gc.set_threshold(100_000)  # a large graph is many objects without circles, which are gone through in vain
        atexit.register(_ignore_signals)
        try:
            with signals_to(interrupt):
                if early:
                    raise KeyboardInterrupt
                code = app(standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:
            end_with(error)
        sys.stdout.flush()
    sys.exit(code)


def program() -> None:
    """The entry of `pdd` and of `python -m orchestrator.launch`: `main`, and the end of the process.

    Ray's library can crash while the process is taken down, when a signal came while it started. So once all is said
    and put away the process ends without that.
    """
    try:
        main()
    except SystemExit as end:
        if "ray" not in sys.modules or not isinstance(end.code, int):
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def _ignore_signals() -> None:
    """Let the interpreter end by itself once all is said."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _import_from_here_last() -> None:
    """Let no file of the current folder, which `python -m` looks into first, stand for a module of another's name."""
    here = str(Path.cwd())
    if sys.path[0] == here != str(Path(__file__).resolve().parents[1]):
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    program()
