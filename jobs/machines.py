"""How fast workers are: by them the work that `jobs.cost` counts becomes seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

RATE = 2.0e11
"""FLOP/s of convolutions beside everything else; this and the next five fit one core of an AMD EPYC within 1.3, SGD
steps and inner steps alike, at widths 4 to 128, on 8x8 to 32x32 pixels, and ResNets (docs/performance.md)."""
CALL = 0.24e-3
"""Seconds that one layer costs in one SGD step, however small it is."""
INNER_CALL = 0.79e-3
"""The same in an inner step, which is differentiated twice."""
NUMBER = 4.6e-9
"""Seconds for each number that a layer gives, in an SGD step: norms, activations and pooling move memory."""
INNER_NUMBER = 18e-9
"""The same in an inner step."""
WEIGHT = 3.0e-9
"""Seconds for each weight of the network in an SGD step."""
START = 0.015
"""Seconds to load the parents and to write the artifact."""
APART = 4.0
"""How far the two factors of a core that was timed may be from what both timed efforts together took."""


@dataclass(frozen=True)
class Effort:
    """FLOPs, how many times a layer is called in SGD steps and in inner steps, and the memory that both move.

    `numbers` are what layers give in SGD steps, `inner_numbers` in inner steps, `weights` those that SGD steps move;
    `seconds` are of a core where prices were calibrated, for what is not a network's work.
    """

    flops: float
    calls: float = 0.0
    inner_calls: float = 0.0
    numbers: float = 0.0
    inner_numbers: float = 0.0
    weights: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.flops + other.flops,
            self.calls + other.calls,
            self.inner_calls + other.inner_calls,
            self.numbers + other.numbers,
            self.inner_numbers + other.inner_numbers,
            self.weights + other.weights,
            self.seconds + other.seconds,
        )

    def times(self, count: float) -> Effort:
        """The effort of doing the same `count` times."""
        return Effort(
            self.flops * count,
            self.calls * count,
            self.inner_calls * count,
            self.numbers * count,
            self.inner_numbers * count,
            self.weights * count,
            self.seconds * count,
        )


@dataclass(frozen=True)
class Machine:
    """How fast a worker is: FLOP/s, and seconds of a layer's call, of a number that it gives and of a weight.

    `host` is how many times as long as at the calibration its core takes for what is not a network's work. `overlaps`
    says that it computes while later calls are made, as a card does: the slower of the two counts.
    """

    name: str
    rate: float
    call: float
    inner_call: float
    number: float = 0.0
    inner_number: float = 0.0
    weight: float = 0.0
    host: float = 1.0
    overlaps: bool = False

    def slower(self, calls: float, work: float) -> Machine:
        """A machine that takes `calls` times as long to make its calls, and `work` times as long for what they do."""
        by_call = {name: getattr(self, name) * calls for name in ("call", "inner_call", "host")}
        by_work = {name: getattr(self, name) * work for name in ("number", "inner_number", "weight")}
        return replace(self, rate=self.rate / work, **by_call, **by_work)

    def to_json(self) -> dict[str, float | str | bool]:
        """Its numbers, and two by which documents said them before: `inner_rate` and the seconds of a job's `start`."""
        return {**vars(self), "inner_rate": self.rate, "start": START * self.host}


CORE = Machine("CPU core", RATE, CALL, INNER_CALL, NUMBER, INNER_NUMBER, WEIGHT)
GPU = Machine("GPU", 2.0e13, 1.0e-3, 2.4e-3, overlaps=True)
"""One H200 as measured (docs/performance.md): of its convolutions' 114 TFLOP/s in TF32 loops keep 20, since others wait
for memory; a call is what autograd and Python take on its host to start the kernels of a layer."""


def estimate(needed: Effort, machine: Machine = CORE) -> float:
    """Seconds of an effort on one worker of this machine."""
    calling, computing = _calling(needed, machine), _computing(needed, machine)
    elsewhere = machine.host * (START + needed.seconds)
    return elsewhere + (max(calling, computing) if machine.overlaps else calling + computing)


def _calling(needed: Effort, machine: Machine) -> float:
    return machine.call * needed.calls + machine.inner_call * needed.inner_calls


def _computing(needed: Effort, machine: Machine) -> float:
    moving = (machine.number, needed.numbers), (machine.inner_number, needed.inner_numbers)
    return needed.flops / machine.rate + sum(one * many for one, many in (*moving, (machine.weight, needed.weights)))


class Slowness(NamedTuple):
    """How many times as long as at the calibration a core takes to make calls, and for what they do."""

    calls: float
    work: float


def slowness(calling: tuple[Effort, float], working: tuple[Effort, float]) -> Slowness:
    """How slow a core is by two efforts that were timed on it.

    Args:
        calling: an effort bound by its calls, and its seconds.
        working: one bound by what its calls do, and its seconds.

    Returns:
        The two factors that give both seconds, neither further than `APART` times from what both together took; so what
        else ran at the moment of one of them cannot make the other absurd.
    """
    parts = [(_calling(needed, CORE), _computing(needed, CORE)) for needed, _ in (calling, working)]
    (a, b), (c, d) = parts
    first, second = calling[1], working[1]
    both = (first + second) / (a + b + c + d)
    determinant = a * d - b * c
    found = ((d * first - b * second) / determinant, (a * second - c * first) / determinant)
    return Slowness(*(min(max(factor, both / APART), both * APART) for factor in found))
