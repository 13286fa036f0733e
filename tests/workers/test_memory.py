"""What a job needs of a card is estimated to 20 % of what is counted on the pretended card, for all methods."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import memory
from jobs.memory import BYTES, GRAPH_COPIES, footprint, peak_bytes
from jobs.methods import SETTINGS, Engine, TrajectorySettings
from jobs.specs import NetworkSpec
from tests.pretended import DEVICE, card
from tests.workers.workshop import Workshop
from workers.data import dataset
from workers.execute import perform
from workers.methods.matching.cafe import real_side
from workers.methods.trajectory import mtt
from workers.methods.trajectory.engines import ENGINES
from workers.runtime.context import JobContext
from workers.training.networks import ConvNet, build

SIZES = [(16, 1, 2), (32, 2, 3), (64, 4, 6)]
"""Width, images per class, and inner steps or rounds."""
METHODS = [*SETTINGS, "adjoint", "full"]
STEPS = {
    "mtt": "syn_steps",
    "dc": "outer",
    "dsa": "outer",
    "idc": "rounds",
    "dream": "rounds",
    "dd": "syn_steps",
    "rat_bptt": "window",
}


def _counted(tmp_path: Path, method: str, width: int, ipc: int, numbers: dict[str, Any]) -> dict[str, float]:
    """By kind of job, the estimate as a multiple of the bytes that were live at once."""
    arm = {"method": method} if method == "full" else {"method": method, "ipc_per_stage": ipc}
    short = {"network.width": width, **({} if method == "full" else {"distil.iterations": 2}), **numbers}
    shop = Workshop.open(tmp_path, arm, networks=1, set=short)
    ratios = {}
    for job in shop.plan.graph:
        if peak_bytes(job, shop.plan.graph) == 0:
            perform(JobContext.alone(job, shop.store))
            continue
        dataset._load.cache_clear()
        gc.collect()
        with card() as there:
            perform(JobContext.alone(job, shop.store))
            ratios[job.kind] = peak_bytes(job, shop.plan.graph) / there.peak
            dataset._load.cache_clear()
    return ratios


@pytest.mark.parametrize(("width", "side", "depth"), [(128, 32, 3), (128, 64, 4), (16, 8, 2)])
def test_the_graph_is_counted_by_the_outputs_of_all_layers(width: int, side: int, depth: int) -> None:
    sizes = {"channels": 3, "size": side, "classes": 10, "width": width, "depth": depth}
    network = build("convnet", **sizes, norm="instance", generator=torch.Generator())
    maps = footprint(NetworkSpec(architecture="convnet", width=width, depth=depth), 3, side, 10).maps
    outputs: list[int] = []
    for layer in network.modules():
        if next(layer.children(), None) is None:
            layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.numel()))
    network(torch.zeros(1, 3, side, side))
    assert GRAPH_COPIES * maps == pytest.approx(1.9 * sum(outputs), rel=0.05)


@pytest.mark.parametrize(("limit", "engine"), [(1e12, "unrolled"), (1.0, "adjoint")])
def test_trajectory_matching_takes_the_engine_that_is_chosen_by_the_spec(
    limit: float, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Engine] = []
    monkeypatch.setattr(memory, "GRAPH_LIMIT", limit)
    engines = {name: lambda *args, name=name: taken.append(name) or ENGINES[name](*args) for name in ENGINES}
    monkeypatch.setattr(mtt, "ENGINES", engines)
    shop = Workshop.open(tmp_path, {"method": "mtt", "ipc_per_stage": 1}, networks=1)
    shop.make(shop.job("distil"))
    assert set(taken) == {engine}


def test_cafe_keeps_the_real_maps_of_one_class() -> None:
    """Eight classes more cost their mean maps and the features of their images, and not the maps of 8 * 20 images."""
    sizes = {"channels": 1, "size": 16, "classes": 12, "width": 8, "depth": 2}
    peaks = {}
    for classes in (4, 12):
        with card() as there:
            network = build("convnet", **sizes, norm="instance", generator=torch.Generator()).to(DEVICE)
            assert isinstance(network, ConvNet)
            there.reset()
            began = there.live
            real_side(network, (torch.zeros(20, 1, 16, 16).to(DEVICE) for _ in range(classes)))
            peaks[classes] = (there.peak - began) // BYTES
    maps, features = 8 * (16**2 + 8**2), 8 * 4**2
    kept = 8 * (maps + features + 20 * (features + 2))  # labels are int64
    assert kept <= peaks[12] - peaks[4] <= 2 * kept < 8 * 20 * maps / 4


@pytest.mark.slow
@pytest.mark.parametrize(("width", "ipc", "steps"), SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_the_estimate_is_what_is_counted(method: str, width: int, ipc: int, steps: int, tmp_path: Path) -> None:
    numbers: dict[str, Any] = {f"distil.settings.{STEPS[method]}": min(steps, 3)} if method in STEPS else {}
    if method == "adjoint" or issubclass(SETTINGS.get(method, object), TrajectorySettings):
        numbers = {"distil.settings.syn_steps": steps}
    if method == "adjoint":
        method, numbers["distil.settings.engine"] = "mtt", "adjoint"
    ratios = _counted(tmp_path, method, width, ipc, numbers)
    assert ratios and all(0.8 <= ratio <= 1.2 for ratio in ratios.values()), ratios
