"""The errors a user can meet, one small tree.

    PddError                 anything we raise on purpose
    |-- BadInput             what the user wrote cannot work; nothing was started (exit 2)
    |-- Damaged              an artifact's bytes are not what its manifest says; quarantined and made again
    `-- JobError             a job ended without its artifact
        |-- Diverged         the optimisation left the numbers (NaN, step size <= 0); never retried
        `-- Yielded          not a failure: the job saved a checkpoint and stepped aside

Every message names the place, the field, the value and the fix.
"""

from __future__ import annotations

LONGEST_VALUE = 200
"""Letters of a refused value in a message; the rest is left out."""


class PddError(Exception):
    """Root of the errors this project raises on purpose."""


class BadInput(PddError):
    """Something the user wrote cannot work; raised before any job starts.

    Args:
        place: the file, option or environment variable in which the value stands.
        field: the field's dotted path inside that place.
        value: the value found there.
        fix: what to write instead, as an imperative.
    """

    def __init__(self, place: str, field: str, value: object, fix: str) -> None:
        self.place, self.field, self.value, self.fix = place, field, value, fix
        shown = repr(value)
        if len(shown) > LONGEST_VALUE:
            shown = f"{shown[:LONGEST_VALUE]}..."
        super().__init__(f"{place}: {field} is {shown}: {fix}")

    def __reduce__(self) -> tuple[type[BadInput], tuple[str, str, object, str]]:
        """All four arguments, so that the error survives the way home from another process."""
        return type(self), (self.place, self.field, self.value, self.fix)


class Damaged(PddError):
    """Something in the store is not as it was written: an artifact, or the journal of a run."""


class JobError(PddError):
    """A job ended without its artifact."""


class Diverged(JobError):
    """The optimisation left the range of usable numbers."""


class Yielded(JobError):
    """The job saved a checkpoint and stepped aside because it was asked to."""
