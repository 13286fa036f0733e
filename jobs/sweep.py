"""A sweep: many experiments that differ in a few fields, as one YAML file says it.

The file names a base experiment, a space of values for some of its fields, constraints between them, a metric and a
budget. `listed` turns it into trials, each a value for every dimension. Everything here is decided before anything
runs and is the same on every machine: draws come from the sweep's own seed, and a trial that breaks a constraint is
never made.

What it leaves out: when a trial runs and whether it is ended early (`orchestrator.workloads.sweep.tune`), and what a
trial's experiment consists of (`jobs.experiment`).
"""

from __future__ import annotations

import ast
import math
import operator
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from jobs.documents import Name, named_file, read_yaml, validate
from jobs.errors import BadInput
from jobs.fields import Count, Frozen, Index, Positive

FOLDER = Path(__file__).parent / "sweeps"
METRICS: Mapping[str, str] = {
    "held_out": "held-out accuracy (percent) with which a stage's images were kept, mean over seeds",
    "loss": "matching loss of a stage's last iteration, mean over seeds",
}
"""What a trial reports after every stage. Test accuracy is not among them: it must not steer."""
ATTEMPTS = 1000
"""Draws after which a sample counts as impossible under the constraints."""
LONGEST_CONSTRAINT = 500
MOST_TRIALS = 10_000
"""Points of a grid, and samples, above which a sweep is refused: they are all listed before anything runs."""

Scalar = bool | int | float | str | None
Values = dict[str, Scalar]
"""A trial: the value of each dimension, by the dimension's name."""
Options = Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)]


class Dimension(Frozen):
    """One field of the experiment or of its recipe, and the values it may take; exactly one way is given.

    `path` is what `--set` takes, such as `arms.0.stages` or `distil.image.lr`; None means the dimension's own name.
    `grid` takes every value, the others are drawn from. With `whole`, numbers of a range are rounded to integers.
    """

    path: str | None = None
    grid: Options | None = None
    choice: Options | None = None
    uniform: tuple[float, float] | None = Field(default=None, strict=False)
    log_uniform: tuple[float, float] | None = Field(default=None, strict=False)
    whole: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("grid", "choice", "uniform", "log_uniform") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise PydanticCustomError("ways", "give exactly one of grid, choice, uniform and log_uniform")
        if self.range is not None and not (-math.inf < self.range[0] < self.range[1] < math.inf):
            raise PydanticCustomError("range", "write [low, high] with low < high")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise PydanticCustomError("range", "a logarithmic range begins above 0")
        if self.whole and self.range is None:
            raise PydanticCustomError("whole", "`whole` rounds a range; write integers in the list instead")
        return self

    @property
    def range(self) -> tuple[float, float] | None:
        """The bounds of a range; None for a list."""
        return self.uniform or self.log_uniform

    @property
    def options(self) -> tuple[Scalar, ...]:
        """The values of a list; empty for a range."""
        return self.grid or self.choice or ()

    def draw(self, source: random.Random) -> Scalar:
        """One value; those of a range are rounded to six digits, so that a table shows what was run."""
        if self.range is None:
            return source.choice(self.options)
        low, high = self.range
        drawn = source.uniform(low, high)
        if self.log_uniform is not None:
            drawn = math.exp(source.uniform(math.log(low), math.log(high)))
        return round(drawn) if self.whole else float(f"{drawn:.6g}")


class Budget(Frozen):
    """Where the sweep ends; None is no limit. No stage is begun once one of them is used up."""

    trials: Count | None = None
    gpu_hours: Positive | None = None
    """Hours of workers, whatever they compute on."""
    wall_hours: Positive | None = None


class SchedulerSpec(Frozen):
    """Which trials are ended early.

    `asha` lets the best 1/`reduction` of those that reached a rung go on (Li et al., MLSys 2020); `median` ends a
    trial that is worse than the median of the others (Golovin et al., KDD 2017). Rungs count stages, or images per
    class where trials differ in them: a stage of one image must not compete with a stage of ten.
    """

    name: Literal["none", "asha", "median"] = "none"
    rung: Literal["stage", "ipc_total"] = "stage"
    grace: Count = 1
    """No trial is ended before it has reached this rung."""
    reduction: Annotated[int, Field(ge=2)] = 3
    minimum: Count = 3
    """`median` compares with at least so many others."""


def _reported(metric: str) -> str:
    if metric not in METRICS:
        known = {"known": ", ".join(METRICS)}
        raise PydanticCustomError(
            "metric", "not reported after a stage; must be one of {known} (test accuracy never steers a sweep)", known
        )
    return metric


class Sweep(Frozen):
    """A whole sweep as its YAML file says it.

    `base` is an experiment of one arm: a file, a name, or the mapping itself. With the searcher `grid` there are
    `samples` trials for each point of the grid, with `random` and `optuna` there are `samples` trials in all, and a
    `grid` is drawn from like a `choice`.
    """

    name: Name
    about: str = ""
    base: str | dict[str, Any]
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    constraints: Annotated[tuple[str, ...], Field(strict=False)] = ()
    metric: Annotated[str, AfterValidator(_reported)] = "held_out"
    mode: Literal["max", "min"] = "max"
    samples: Annotated[int, Field(ge=1, le=MOST_TRIALS)] = 1
    searcher: Literal["grid", "random", "optuna"] = "grid"
    scheduler: SchedulerSpec = SchedulerSpec()
    budget: Budget = Budget()
    seed: Index = 0
    winners: Count = 1
    """How many of the best trials are evaluated on test images at the end."""
    at_once: Count | None = None
    """Trials that may be under way at a time; None is twice the workers, at most 16."""

    @field_validator("space")
    @classmethod
    def _names(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        for name in space:
            if not name.isidentifier():
                raise PydanticCustomError(
                    "name",
                    "{name} is no name for constraints; write a word and put the field into `path`",
                    {"name": name},
                )
        return space

    @field_validator("constraints")
    @classmethod
    def _constraints(cls, constraints: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for text in constraints if "space" in info.data else ():
            try:
                Constraint(text, info.data["space"])
            except ValueError as error:
                raise PydanticCustomError("constraint", "{why}", {"why": str(error)}) from None
        return constraints

    def path(self, name: str) -> str:
        """The field that a dimension sets."""
        return self.space[name].path or name

    def allows(self, values: Values) -> bool:
        """Whether the values satisfy every constraint; a division by zero does not."""
        return all(Constraint(text, self.space).holds(values) for text in self.constraints)


def load(name: str) -> tuple[Sweep, str]:
    """The sweep of a YAML file or of a name in `jobs/sweeps`, and its place.

    Raises:
        BadInput: there is no such file or name, or the file does not validate.
    """
    path = named_file(name, FOLDER, "sweep")
    place = path.name if path.parent == FOLDER else str(path)
    raw = read_yaml(path)
    if raw.get("space") == {}:
        raise BadInput(place, "space", {}, "name at least one field and its values; without any, use `run`")
    return validate(Sweep, raw, place), place


def listed(sweep: Sweep, place: str) -> list[Values]:
    """The trials of a sweep whose searcher does not learn, in order, each once.

    Args:
        sweep: the sweep.
        place: where it stands, for complaints.

    Raises:
        BadInput: no trial satisfies the constraints, or samples are asked for and nothing is there to draw.
    """
    grid = {
        name: dimension.grid
        for name, dimension in sweep.space.items()
        if dimension.grid is not None and sweep.searcher == "grid"
    }
    drawn = {name: dimension for name, dimension in sweep.space.items() if name not in grid}
    if sweep.samples > 1 and not drawn:
        raise BadInput(place, "samples", sweep.samples, "a grid has nothing to draw; leave it out")
    if (points := math.prod(map(len, grid.values()))) > MOST_TRIALS:
        fix = f"the grid has more than {MOST_TRIALS} points; list fewer values, or draw from it with searcher: random"
        raise BadInput(place, "space", points, fix)
    source = random.Random(sweep.seed)
    trials: dict[tuple[Scalar, ...], Values] = {}
    for point in product(*grid.values()):
        fixed = dict(zip(grid, point, strict=True))
        trials |= _samples(sweep, fixed, drawn, source, trials)
    if not trials:
        raise _contradiction(sweep, place)
    return list(trials.values())[: sweep.budget.trials]


def _samples(
    sweep: Sweep,
    fixed: Values,
    drawn: Mapping[str, Dimension],
    source: random.Random,
    before: Collection[tuple[Scalar, ...]],
) -> dict[tuple[Scalar, ...], Values]:
    """Draw up to `samples` new trials.

    Args:
        sweep: the space, its constraints, and how many are wanted.
        fixed: the values of the grid.
        drawn: the dimensions that are drawn from.
        source: of chance.
        before: the values of trials that there are already.

    Returns:
        The trials, by their values.
    """
    samples: dict[tuple[Scalar, ...], Values] = {}
    for _ in range(sweep.samples):
        for _ in range(ATTEMPTS if drawn else 1):
            values = fixed | {name: dimension.draw(source) for name, dimension in drawn.items()}
            values = {name: values[name] for name in sweep.space}
            trial = tuple(values.values())
            if trial not in samples and trial not in before and sweep.allows(values):
                samples[trial] = values
                break
        else:
            break  # the space has no more
    return samples


def _contradiction(sweep: Sweep, place: str) -> BadInput:
    """Which constraint nobody satisfies alone, or that together they exclude everything."""
    fix = "no trial of the space satisfies {}; change the space or the constraints"
    for number, text in enumerate(sweep.constraints):
        alone = sweep.model_copy(update={"constraints": (text,), "searcher": "random", "samples": 1})
        if not _samples(alone, {}, sweep.space, random.Random(0), ()):
            return BadInput(place, f"constraints.{number}", text, fix.format("it"))
    return BadInput(place, "constraints", list(sweep.constraints), fix.format("all of them"))


_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Constraint:
    """A condition between the dimensions of a space, such as `num_stages * ipc_per_stage == 10`.

    A small part of Python's expressions: names of dimensions, numbers, words, arithmetic without powers, comparisons,
    `and`, `or`, `not`. Nothing else is looked at, so nothing in a file can call or reach anything.

    Raises:
        ValueError: it is not such an expression, with what would be.
    """

    def __init__(self, text: str, names: Mapping[str, object]) -> None:
        self.text = text
        if len(text) > LONGEST_CONSTRAINT:
            raise ValueError(f"write at most {LONGEST_CONSTRAINT} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError):
            raise ValueError("write a condition such as num_stages * ipc_per_stage == 10") from None
        for node in _parts(self._tree):
            self._check(node, names)

    @staticmethod
    def _check(node: ast.AST, names: Mapping[str, object]) -> None:
        match node:
            case ast.Name(id=name) if name in names:
                return
            case ast.Name(id=name):
                raise ValueError(f"{name} is not in the space; known here: {', '.join(names)}")
            case ast.Constant(value=bool() | int() | float() | str()):
                return
            case ast.BinOp(left=ast.Constant(value=str())) | ast.BinOp(right=ast.Constant(value=str())):
                raise ValueError("use arithmetic on numbers only; a word can be compared")
            case ast.BoolOp() | ast.BinOp() | ast.UnaryOp() | ast.Compare():
                return
            case ast.And() | ast.Or():
                return
        if type(node) not in _OPERATORS:
            raise ValueError("use names, numbers, + - * / // %, comparisons, and, or, not")

    def holds(self, values: Mapping[str, Scalar]) -> bool:
        """Whether the values satisfy it; if it cannot be worked out for them, they do not."""
        try:
            return bool(_value(self._tree, values))
        except (TypeError, ZeroDivisionError, OverflowError):
            return False


def _parts(tree: ast.AST) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if not isinstance(node, ast.expr_context))


def _value(node: ast.AST, values: Mapping[str, Scalar]) -> Any:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, values))
        case ast.BinOp(left=left, op=op, right=right):
            sides = [_value(left, values), _value(right, values)]
            if not all(isinstance(side, int | float) for side in sides):
                raise TypeError("arithmetic is on numbers only")
            return _OPERATORS[type(op)](*sides)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, values) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [_value(side, values) for side in (left, *comparators)]
            return reduce(
                operator.and_,
                (bool(_OPERATORS[type(op)](*pair)) for op, *pair in zip(ops, sides, sides[1:], strict=False)),
            )
    raise AssertionError(f"{ast.dump(node)} passed the check")
