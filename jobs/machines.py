"""How fast workers are: the numbers by which `jobs.cost` makes seconds of work."""

from __future__ import annotations

from dataclasses import dataclass, replace

RATE = 4.0e10
"""FLOP/s where no rate is given; it and the next three fit loops at width 32 from 8x8 to 32x32 pixels to a tenth."""
INNER_RATE = 2.25e10
"""The same in what is differentiated twice: its norms move more memory for each FLOP."""
CALL = 0.7e-3
"""Seconds that one layer costs in one SGD step, however small it is."""
INNER_CALL = 1.75e-3
"""The same in an inner step, which is differentiated twice."""
START = 0.04
"""Seconds to load the parents and to write the artifact."""


@dataclass(frozen=True)
class Machine:
    """How fast a worker is: FLOP/s, also in what is differentiated twice; seconds of a layer in either, of a begin.

    `overlaps` says that it computes while later calls are made, as a card does: the slower of the two counts.
    """

    name: str
    rate: float
    inner_rate: float
    call: float
    inner_call: float
    start: float = START
    overlaps: bool = False

    def slower(self, factor: float) -> Machine:
        """A machine that takes `factor` times as long for everything."""
        times = {name: getattr(self, name) * factor for name in ("call", "inner_call", "start")}
        return replace(self, rate=self.rate / factor, inner_rate=self.inner_rate / factor, **times)


CORE = Machine("CPU core", RATE, INNER_RATE, CALL, INNER_CALL)
GPU = Machine("GPU", 2.0e13, 2.0e13, 1.0e-3, 2.4e-3, overlaps=True)
"""One H200 as measured (docs/performance.md): of its convolutions' 114 TFLOP/s in TF32 loops keep 20, since others wait
for memory; a call is what autograd and Python take on its host to start the kernels of a layer."""
