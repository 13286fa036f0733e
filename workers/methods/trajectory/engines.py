"""The engines of trajectory matching by name; all take the same arguments and give the same, up to rounding."""

from __future__ import annotations

from collections.abc import Callable

from jobs.methods import Engine
from workers.methods.trajectory.compiled import compiled
from workers.methods.trajectory.graphs import graphs
from workers.methods.trajectory.trajectory_matching import Matched, adjoint, unrolled

ENGINES: dict[Engine, Callable[..., Matched]] = {
    "unrolled": unrolled,
    "adjoint": adjoint,
    "compiled": compiled,
    "graphs": graphs,
}
