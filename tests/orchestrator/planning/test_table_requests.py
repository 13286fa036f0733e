"""`orchestrator.planning.table_requests`: what is asked of tables can be run, or is refused before anything starts."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import cost, machines
from jobs import table as tables
from jobs.datasets import DATASETS
from jobs.errors import BadInput
from jobs.experiment import DatasetChoice
from jobs.recipe import Scale
from jobs.specs import DistilSpec
from jobs.table import TablesPlan, load, walk
from jobs.table_filling import DASH, Circumstances, Data, fill
from orchestrator.planning.requests import methods_fit
from orchestrator.planning.table_requests import ResolvedTables, TableRequest, resolve_tables

DIGITS = replace(DATASETS["digits"], train_per_class=(131,) * 10)
SVHN = replace(DATASETS["svhn"], train_per_class=(4659,) * 10)
FACTS = {**DATASETS, "digits": DIGITS, "svhn": SVHN}
PAPER = ("cifar10", "cifar100", "tiny-imagenet")


def filled(scale: Scale, instead: str = "") -> TablesPlan:
    """All tables on the paper's datasets, or with one dataset in the place of all."""
    data = {name: Data(DatasetChoice(name=name), FACTS[name]) for name in ((instead,) if instead else PAPER)}
    files = [load(name) for name in tables.names()]
    return fill(files, Circumstances(scale=scale, data=data, substitute=instead))


# Every distillation can be run.


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("instead", ["", *FACTS])
def test_the_method_of_every_distillation_of_all_tables_accepts_its_settings(scale: Scale, instead: str) -> None:
    plan = filled(scale, instead)
    methods_fit(plan.plan, "test")
    stages = {(job.spec.method, job.spec.ipc_per_stage) for job in plan.plan.graph if isinstance(job.spec, DistilSpec)}
    assert {method for method, _ in stages} == {"dc", "dsa", "cafe", "cafe_dsa", "dm", "mtt", "idc", "dream"}
    assert {entry.absent for _, entry in walk(plan.tables) if entry.cell is None} == set()
    if not instead:
        assert ("mtt", 4) in stages  # PDD+MTT in Table 7


def own_table(tmp_path: Path, **fields: Any) -> str:
    path = tmp_path / "mine.yaml"
    document = {
        "name": "mine",
        "title": "Mine",
        "caption": "One cell.",
        "common": {"dataset": "cifar10", "method": "mtt", "ipc_total": 10, **fields},
        "columns": {"a": {}},
        "rows": {"b": {}},
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.mark.parametrize("allow_missing_data", [True, False])
def test_a_plan_makes_the_checks_of_a_run(tmp_path: Path, allow_missing_data: bool) -> None:
    table = own_table(tmp_path, dataset="digits", set={"distil.settings.syn_steps": 0})
    with pytest.raises(BadInput, match="distil.settings.syn_steps is 0: must be at least 1"):
        resolve_tables(TableRequest(tables=(table,), scale="tiny"), allow_missing_data)


# Datasets in their layouts.


def write_cifar(folder: Path, batches: Sequence[str], labels: str, names: dict[str, list[str]], meta: str) -> None:
    """Batches of pixels and labels as the authors of CIFAR wrote them, with 8 images of a class in each."""
    folder.mkdir()
    classes = max(map(len, names.values()))
    for batch in batches:
        rows = (np.arange(8 * classes) % 256).astype(np.uint8)[:, None].repeat(3072, axis=1)
        content = {"data": rows, labels: [row % classes for row in range(len(rows))]}
        (folder / batch).write_bytes(pickle.dumps(content))
    (folder / meta).write_bytes(pickle.dumps(names))


def write_tiny_imagenet(folder: Path) -> None:
    """Two hundred classes of 8 training and 1 validation pictures of 64 pixels, as in the archive."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for number in range(200):
        name = f"n{number:08}"
        (folder / "train" / name / "images").mkdir(parents=True)
        for image in range(8):
            (folder / "train" / name / "images" / f"{name}_{image}.JPEG").write_bytes(stream.getvalue())
        (folder / "val" / "images" / f"val_{number}.JPEG").write_bytes(stream.getvalue())
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_datasets(tmp_path_factory.mktemp("data"))


def write_datasets(root: Path) -> dict[str, str]:
    """Small fakes of the paper's datasets in a folder; where each lies, by name, as `cluster.yaml` says it."""
    ten, hundred = ([f"class {number}" for number in range(count)] for count in (10, 100))
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    write_cifar(root / "cifar-10-batches-py", batches, "labels", {"label_names": ten}, "batches.meta")
    coarse = {"fine_label_names": hundred, "coarse_label_names": ten}
    write_cifar(root / "cifar-100-python", ["train", "test"], "fine_labels", coarse, "meta")
    write_tiny_imagenet(root / "tiny-imagenet-200")
    return {
        "cifar10": str(root / "cifar-10-batches-py"),
        "cifar100": str(root / "cifar-100-python"),
        "tiny-imagenet": str(root / "tiny-imagenet-200"),
    }


@pytest.mark.parametrize("allow_missing_data", [True, False])
def test_all_tables_are_accepted_with_the_papers_datasets_in_their_layouts(
    data: dict[str, str], allow_missing_data: bool
) -> None:
    """As `plan --all` and as `reproduce --all` ask; classes are small, so stages are, and notes say it."""
    found: ResolvedTables = resolve_tables(TableRequest(scale="paper", data=data), allow_missing_data)
    assert found.missing_datasets == ()
    shapes = {(job.spec.classes, job.spec.height) for job in found.tables.plan.graph if job.kind == "dataset"}  # type: ignore[attr-defined]
    assert {(10, 32), (100, 32), (20, 32), (200, 64)} == shapes
    assert all(entry.cell is not None for _, entry in walk(found.tables.tables))


def test_with_none_of_the_datasets_every_cell_is_absent_with_where_to_get_its_data() -> None:
    found = resolve_tables(TableRequest(scale="paper"))
    assert len(found.missing_datasets) == 3 and len(found.tables.plan.graph) == 0
    assert {entry.absent for _, entry in walk(found.tables.tables)} == set(found.missing_datasets)


# Dashes.


def test_dashes_are_left_out_on_request_with_their_jobs_and_what_is_printed_stays() -> None:
    whole, printed = (
        resolve_tables(TableRequest(tables=("table1",), scale="paper", with_dashes=wanted), allow_missing_data=True)
        for wanted in (True, False)
    )
    left_out = [entry for _, entry in walk(printed.tables.tables) if entry.cell is None]
    assert len(left_out) == 16 and {entry.absent for entry in left_out} == {DASH}
    assert all(entry.published is not None and entry.published.mean is None for entry in left_out)
    kept = [entry for _, entry in walk(printed.tables.tables) if entry.cell is not None]
    assert kept == [
        entry
        for _, entry in walk(whole.tables.tables)
        if entry.published is not None and entry.published.mean is not None
    ]
    graph = printed.tables.plan.graph
    assert set(graph.jobs) == graph.ancestors(printed.tables.plan.wanted()) < set(whole.tables.plan.graph.jobs)
    assert not any(job.spec.method == "idc" and "tiny" in job.key for job in graph if isinstance(job.spec, DistilSpec))


def test_a_dash_whose_jobs_other_cells_need_is_filled_all_the_same() -> None:
    """With digits for all datasets the columns are the same jobs."""
    found = resolve_tables(TableRequest(scale="tiny", dataset="digits", with_dashes=False))
    assert all(entry.cell is not None for _, entry in walk(found.tables.tables))


def test_the_lines_of_a_figure_without_printed_numbers_are_no_dashes() -> None:
    plan = filled("paper")
    assert {table.kind for table, entry in walk(plan.tables) if tables.is_dash(table, entry)} == {"table"}


def test_the_command_of_a_table_repeats_the_flag() -> None:
    assert TableRequest(with_dashes=True).command("table1").endswith("--with-dashes")
    assert "--with-dashes" not in replace(TableRequest(), with_dashes=False).command("table1")


def test_the_cifar10_columns_of_table_1_at_medium_are_a_night_of_two_cores_and_an_hour_of_a_gpu() -> None:
    request = TableRequest(tables=("table1",), scale="medium")
    plan = resolve_tables(request, allow_missing_data=True).tables.plan
    hours = {}
    for ipc, machine in ((10, machines.CORE), (50, machines.GPU)):
        cells = [cell for cell in plan.cells if (cell.dataset, cell.ipc_total) == ("cifar10", ipc)]
        jobs = plan.graph.ancestors(key for cell in cells for key in cell.jobs)
        efforts = [cost.effort(plan.graph[key], plan.graph) for key in jobs]
        hours[ipc] = sum(machines.estimate(each, machine) for each in efforts) / 3600
    assert 6 < hours[10] < 24  # twelve hours of two cores at most; prices are of a fast one
    assert 0.5 < hours[50] < 1.2
