"""How the command line ends on an error: an exit code, one sentence for people and, with `--json`, one document.

Exit codes: 2 bad input (nothing was started), 3 the world around us refused (a full disk, no memory, Ray), 130
interrupted, 1 a bug of ours, which alone shows its traceback.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import typer
from rich.text import Text

from jobs.documents import closest
from jobs.errors import BadInput, Damaged, PddError
from orchestrator.cli.options import SCHEMA, people

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for words it does not know; click's, of which newer versions carry a copy inside."""
FULL = (errno.ENOSPC, errno.EDQUOT)
PLAIN_LETTERS = {"±": "+/-", "−": "-", "–": "-", "—": "-", "→": "->", "×": "x", "·": "-", "…": "...", "’": "'"}
"""What stands for a letter that a terminal cannot show; for any other it is a question mark."""


@dataclass(frozen=True)
class Ending:
    """How the process ends: its exit code, the sentence, and the parts of what was refused."""

    code: int
    message: str
    parts: tuple[str, ...] = ()
    """Names of the error's attributes that the document has beside the message."""


def ending_of(error: BaseException) -> Ending:
    """How the process ends on an error."""
    match error:
        case BadInput():
            return Ending(2, str(error), ("place", "field", "value", "fix"))
        case Damaged():
            return Ending(3, str(error))
        case PddError():
            return Ending(3 if isinstance(error.__cause__, OSError) else 1, str(error))
        case KeyboardInterrupt() | typer.Abort():
            return Ending(130, "interrupted; nothing that was finished is lost, the same command goes on from there")
        case OSError():
            return Ending(3, _os_sentence(error))
        case MemoryError():
            return Ending(3, "not enough memory: give this process more, or ask for less")
        case RecursionError():
            return Ending(2, "the input is nested too deeply, or refers to itself: write it flat")
        case UnicodeError():
            return Ending(2, f"a name or text cannot be read or written in this locale ({error}): use UTF-8")
        case RuntimeError() if "home directory" in str(error):  # as pathlib says of ~somebody
            return Ending(2, "a path begins with ~ and the name of a user who is not known here: write the path out")
    name = type(error).__name__
    if name == "BrokenProcessPool":
        return Ending(3, "a helper process was ended from outside, perhaps for lack of memory: run the command again")
    if type(error).__module__.partition(".")[0] == "ray":
        return Ending(3, f"Ray: {name}: {error}: see `pdd doctor`; what is finished stays, run the same command again")
    return Ending(1, f"a bug: {name}: {error}; please report it with the lines above")


def end_with(error: BaseException) -> NoReturn:
    """End the process on an error."""
    if isinstance(error, USAGE_ERROR):
        error = _refused_words(cast(Any, error))
    ending = ending_of(error)
    if ending.code == 1 and not isinstance(error, PddError):
        traceback.print_exception(error)
    message = " ".join(ending.message.split())
    if "--json" in sys.argv[1:]:
        parts = {part: _plain(getattr(error, part)) for part in ending.parts}
        print(json.dumps({"schema": SCHEMA, "exit": ending.code, "error": {**parts, "message": message}}))
    people.print(Text(message, style="bold"), soft_wrap=True)
    sys.exit(ending.code)


def _refused_words(error: Any) -> BadInput:
    """What Typer refused: a command or an option that there is not, or a value that an option cannot take."""
    complaint = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx
    page = f"see `{context.command_path if context else 'pdd'} --help`"
    if getattr(error, "option_name", None) is not None and hasattr(error, "possibilities"):
        known = [name for each in context.command.params for name in each.opts] if context else []
        fix = f"no such option here; {page}{closest(error.option_name, known)}"
        return BadInput("command line", "option", error.option_name, fix)
    command = re.search(r"No such command ['\"](.*?)['\"]", complaint)
    if command is not None and context is not None:
        fix = f"no such command; {page}{closest(command[1], context.command.commands)}"
        return BadInput("command line", "command", command[1], fix)
    words = sys.argv[1:]
    option = next((name for name in getattr(getattr(error, "param", None), "opts", []) if name in words[:-1]), None)
    if option is not None:
        return BadInput("command line", option, words[words.index(option) + 1], f"{complaint}; {page}")
    return BadInput("command line", "pdd", shlex.join(words), f"{complaint}; {page}")


def show_any_letter() -> None:
    """Let both outputs show something for letters that the terminal's encoding has not."""
    codecs.register_error("plain letters", _plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="plain letters")


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Say of a folder that the user named that it cannot be written; a full disk is another matter.

    Raises:
        BadInput: it cannot be made, or nothing can be written in it.
    """
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, (str, bytes)) else None
        ours = path is not None and (path.is_relative_to(out.absolute()) or out.absolute().is_relative_to(path))
        if not ours or error.errno in FULL:
            raise
        fix = f"name a folder that you can write to ({error.strerror})"
        raise BadInput("command line", "--out", str(out), fix) from error


def _os_sentence(error: OSError) -> str:
    """What the system refused, with the file and what to do."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    notes = getattr(error, "__notes__", [])
    fixes = notes or (["free space there and run the same command again"] if error.errno in FULL else [])
    return ": ".join([f"{where}{error.strerror or error}", *fixes])


def _plain_letters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(PLAIN_LETTERS.get(letter, "?") for letter in letters), error.end


def _plain(value: object) -> Any:
    """The value as JSON has it, else as Python writes it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return repr(value)
