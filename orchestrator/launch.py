"""The command line: `python -m orchestrator.launch`, also installed as `pdd`.

The commands stand in `orchestrator.cli`; here is how the process ends.
With `--json` one JSON document stands on standard output and nothing else (`{schema, exit, error}` for what was
refused); everything for people then goes to standard error. Exit codes: 0 done, 2 bad input (nothing was started),
3 ended but some jobs failed, 130 interrupted, 1 our own bug.
"""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any, NoReturn, cast

import typer
from rich.text import Text

from jobs.errors import BadInput, PddError
from orchestrator.cli.app import app
from orchestrator.cli.options import SCHEMA, people

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words it does not know; click's, of which newer versions carry a copy inside."""


def main() -> None:
    """The entry of `pdd` and of `python -m orchestrator.launch`."""
    try:
        code = app(standalone_mode=False)
    except USAGE_ERROR as error:
        complaint = " ".join(cast(Any, error).format_message().split()).rstrip(".")
        _refuse(BadInput("command line", "words", shlex.join(sys.argv[1:]), f"{complaint}; see --help"), 2)
    except BadInput as error:
        _refuse(error, 2)
    except PddError as error:
        _refuse(error, 1)
    sys.exit(code)


def _refuse(error: PddError, code: int) -> NoReturn:
    """End with one line for people and, with `--json`, one document for scripts."""
    message = " ".join(str(error).splitlines())
    if "--json" in sys.argv[1:]:
        parts = ("place", "field", "value", "fix") if isinstance(error, BadInput) else ()
        named = {part: _plain(getattr(error, part)) for part in parts}
        print(json.dumps({"schema": SCHEMA, "exit": code, "error": {**named, "message": message}}))
    people.print(Text(message, style="bold"), soft_wrap=True)
    sys.exit(code)


def _plain(value: object) -> Any:
    """The value as JSON has it, else as Python writes it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)


if __name__ == "__main__":
    main()
