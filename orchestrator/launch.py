"""The command line: `python -m orchestrator.launch`, also installed as `pdd`.

The commands stand in `orchestrator.cli`, and so does how the process ends on an error (`orchestrator.cli.errors`).
With `--json` one JSON document stands on standard output and nothing else (`{schema, exit, error}` for what was
refused); everything for people then goes to standard error. Exit codes: 0 done, 2 bad input (nothing was started),
3 ended but some jobs failed or the disk, the memory or Ray refused, 130 interrupted, 1 our own bug.
"""

from __future__ import annotations

import gc
import sys

from orchestrator.cli.app import app
from orchestrator.cli.errors import end_with, show_any_letter


def main() -> None:
    """The entry of `pdd` and of `python -m orchestrator.launch`."""
    show_any_letter()
    gc.set_threshold(100_000)  # a large graph is many objects without circles, which are gone through in vain
    try:
        code = app(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        end_with(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
