"""The tables as data, and the graph that fills them."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import table as tables
from jobs.cost import image_visits
from jobs.datasets import DATASETS as KNOWN
from jobs.errors import BadInput
from jobs.experiment import DatasetChoice
from jobs.graph import Job
from jobs.recipe import Scale
from jobs.specs import DistilSpec, EvaluateSpec
from jobs.table import Published, TableCell, TablesPlan, load, walk
from jobs.table_filling import Circumstances, Data, fill
from tests.jobs.conftest import DATA

PAPER = DATA / "published.csv"
Printed = dict[str, str]
"""A line of the paper's numbers: table, dataset, method, stages, …, mean, std; all as text."""
DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "Tiny-ImageNet": "tiny-imagenet"}
DIGITS = replace(KNOWN["digits"], train_per_class=(131,) * 10)


def printed_numbers() -> list[Printed]:
    """The numbers that the paper prints, read from its text."""
    return list(csv.DictReader(line for line in PAPER.read_text().splitlines() if not line.startswith("#")))


def everything() -> list[tables.TableFile]:
    return [load(name) for name in tables.names()]


def papers(absent: str = "") -> dict[str, Data]:
    """The paper's datasets by their published facts."""
    return {name: Data(DatasetChoice(name=name), KNOWN[name], absent) for name in DATASETS.values()}


@cache
def filled(*names: str, scale: Scale = "paper") -> TablesPlan:
    return fill([load(name) for name in names], Circumstances(scale=scale, data=papers()))


@cache
def rehearsed(*names: str, scale: Scale = "tiny") -> TablesPlan:
    """The tables with digits in the place of all datasets."""
    data = {"digits": Data(DatasetChoice(name="digits"), DIGITS)}
    return fill([load(name) for name in names], Circumstances(scale=scale, data=data, substitute="digits"))


def at(plan: TablesPlan, name: str, row: str, column: str) -> TableCell:
    (found,) = (cell for table, cell in walk(plan.tables) if (table.name, cell.row, cell.column) == (name, row, column))
    return found


def jobs(plan: TablesPlan, name: str, row: str, column: str) -> tuple[str, ...]:
    cell = at(plan, name, row, column).cell
    assert cell is not None
    return cell.jobs


# The published numbers.


def test_there_is_a_file_for_every_table_and_figure_in_the_papers_order() -> None:
    assert tables.names() == [
        *(f"table{number}" for number in range(1, 8)),
        *("tableA8", "tableA9", "sectionA3_2", "figure1", "figure3", "figure4", "figureA5"),
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [("26.0 ± 1.2", Published(26.0, 1.2)), (88.1, Published(88.1, None)), ("-", Published(None, None))],
)
def test_a_number_is_read_as_it_is_printed(text: object, number: Published) -> None:
    assert Published.read(text) == number


@pytest.mark.parametrize("text", ["26", "26.0 +- 1.2", "", None, "26.0 ± 1.2 "])
def test_what_is_no_printed_number_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a published number"):
        Published.read(text)


def stages(printed: Printed) -> str:
    return "1 stage" if printed["stages"] == "1" else f"{printed['stages']} stages"


def cells_of(printed: Printed) -> list[tuple[str, str]]:
    """The rows and columns in which a number of the paper must stand; a full-data one stands in several columns."""
    method, ipcs = printed["method"], [printed["ipc_total"]] if printed["ipc_total"] else ["10", "50"]
    match printed["table"]:
        case "table1":
            return [(method, f"{printed['dataset']}, {ipc}") for ipc in ipcs]
        case "table2":
            return [(method, f"{printed['ipc_total']}, {printed['network']}")]
        case "table3":
            mode = {"union": ", U", "sequential": ", S", "progressive": ", P", "": ""}[printed["variant"]]
            return [(stages(printed) + mode, method.removeprefix("PDD+"))]
        case "table4":
            return [(stages(printed), printed["variant"].replace("without", "w/o"))]
        case "table5":
            return [(method, f"{printed['stages']} x {printed['ipc_per_stage']}")]
        case "table6":
            return [(stages(printed), printed["variant"])]
        case "table7":
            return [(method, printed["variant"])]
        case "tableA8":
            return [(method, "50")]
        case "tableA9":
            return [(method, ipc) for ipc in ipcs]
        case "sectionA3_2":
            return [(f"{method}, {printed['variant']}", printed["ipc_total"])]
        case "figure3":
            return [(f"{printed['dataset']}, full data", f"stage {stage}") for stage in range(1, 6)]
    raise AssertionError(f"{printed['table']} is no table of the paper")


def test_the_published_numbers_are_those_of_the_paper_cell_by_cell() -> None:
    expected: dict[str, dict[tuple[str, str], Published]] = defaultdict(dict)
    for printed in printed_numbers():
        number = Published(*(float(printed[name]) if printed[name] else None for name in ("mean", "std")))
        expected[printed["table"]] |= dict.fromkeys(cells_of(printed), number)
    for name, numbers in expected.items():
        file = load(name)
        given = {(row, column): file.number(row, column) for row in file.rows for column in file.columns}
        if not name.startswith("table"):  # figures and sections print some of their numbers only
            given = {cell: number for cell, number in given.items() if cell in numbers}
        assert given == numbers, name
    assert len(expected) == 11 and sum(map(len, expected.values())) == 200


# The files.


def write(tmp_path: Path, **changes: Any) -> str:
    document: dict[str, Any] = {
        "name": "mine",
        "title": "Mine",
        "caption": "Random images of CIFAR-10.",
        "common": {"dataset": "cifar10", "method": "random"},
        "columns": {"1": {"ipc_total": 1}, "2": {"ipc_total": 2}},
        "rows": {"Random": {}},
        "published": {"Random": ["14.4 ± 2.0", "-"]},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(document | changes, allow_unicode=True))
    return str(path)


def test_adding_a_table_is_adding_a_file(tmp_path: Path) -> None:
    assert tables.is_table(write(tmp_path)) and tables.is_table("table1") and not tables.is_table("quickstart")
    plan = fill([load(write(tmp_path))], Circumstances(data=papers()))
    (table,) = plan.tables
    assert [(one.column, one.published) for one in table.cells] == [
        ("1", Published(14.4, 2.0)),
        ("2", Published(None, None)),
    ]
    assert {job.kind for job in plan.plan.graph} == {"dataset", "select", "evaluate"}
    assert len(plan.by_table["mine"]) == 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"published": {"Herding": ["1.0", "2.0"]}}, "published must have the rows"),
        ({"published": {"Random": ["1.0"]}}, "a number for each column"),
        ({"published": {"Random": ["1.0", "two"]}}, "'two' is not a published number"),
        ({"rows": {"Random": {"steges": 2}}}, "unknown field"),
        (
            {"rows": {"Random": {"stages": 2}}, "columns": {"1": {"ipc_total": 3}, "2": {"ipc_total": 2}}},
            "2 stages cannot share 3",
        ),
        ({"published": {"Random": 14.4}}, "published.Random is 14.4"),
        ({"published": {"Random": "12"}}, "published.Random is '12'"),
        ({"columns": {"1": {"ipc_total": "3"}}, "published": {}}, "ipc_total is '3'"),
        ({"columns": {"1": {"ipc_total": 3, "stages": 0}}, "published": {}}, "stages is 0"),
        ({"kind": "chart"}, "kind is 'chart'"),
    ],
)
def test_a_file_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=re.escape(complaint)):
        fill([load(write(tmp_path, **changes))], Circumstances(data=papers()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": {"Random": {"phase": 1}}}, "must be one of stage 1 phase 0, not stage 1 phase 1"),
        ({"rows": {"Random": {"stage": 2}}}, "not stage 2 phase 0"),
        (
            {"rows": {"Random": {"class_incremental": {"phases": 2}}}},
            "stage 1 phase 1, stage 1 phase 2, not stage 1 phase 0",
        ),
    ],
)
def test_a_cell_whose_stage_or_phase_there_is_not_says_which_there_are(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    plan = fill([load(write(tmp_path, **changes))], Circumstances(data=papers()))
    assert all(said in cell.absent for _, cell in walk(plan.tables))


def test_a_table_that_is_not_there_is_refused_with_the_names_of_those_that_are() -> None:
    with pytest.raises(BadInput, match="table1, table2"):
        load("table99")


# The graph.


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_every_cell_of_every_table_has_jobs_with_digits_in_the_place_of_all_datasets(scale: Scale) -> None:
    plan = rehearsed(*tables.names(), scale=scale)
    assert {one.absent for _, one in walk(plan.tables) if one.cell is None} == set()
    assert {one.cell.scale for _, one in walk(plan.tables) if one.cell} == {scale}


@pytest.mark.slow
def test_every_cell_of_every_table_has_jobs_at_the_papers_scale() -> None:
    plan = filled(*tables.names())
    assert [(table.name, one) for table, one in walk(plan.tables) if one.cell is None] == []


def test_every_job_is_behind_a_cell_and_nothing_but_parents_holds_a_job_back() -> None:
    plan = rehearsed(*tables.names())
    wanted = {key for keys in plan.by_table.values() for key in keys}
    assert set(plan.plan.wanted()) == wanted
    assert plan.plan.graph.ancestors(wanted) == set(plan.plan.graph.jobs)
    assert (plan.plan.exclusive, plan.plan.limits) == ({}, {})


def test_the_same_networks_fill_cells_of_several_tables() -> None:
    plan = filled("table1", "table3", "table5", "figure1")
    last = jobs(plan, "table1", "PDD+MTT", "CIFAR-10, 50")
    assert last == jobs(plan, "table3", "5 stages, P", "MTT") == jobs(plan, "figure1", "PDD+MTT", "stage 5")
    assert jobs(plan, "table1", "MTT", "CIFAR-10, 10") == jobs(plan, "table3", "1 stage", "MTT")
    assert jobs(plan, "table5", "PDD+MTT", "5 x 2") == jobs(plan, "table1", "PDD+MTT", "CIFAR-10, 10")
    assert jobs(plan, "table3", "3 stages, P", "MTT") == jobs(plan, "figure1", "PDD+MTT", "stage 3")
    assert jobs(plan, "table1", "Full Data", "CIFAR-10, 10") == jobs(plan, "table1", "Full Data", "CIFAR-10, 50")


def test_table_2_trains_other_networks_on_the_sets_of_table_1() -> None:
    plan = filled("table1", "table2")
    for method in ("MTT", "PDD+MTT", "IDC", "PDD+IDC"):
        ours, theirs = jobs(plan, "table1", method, "CIFAR-10, 10"), jobs(plan, "table2", method, "10, ResNet-10")
        assert not set(ours) & set(theirs)
        sets = {plan.plan.graph[key].parents["sets"] for key in (*ours, *theirs)}
        assert len(sets) == 1


def test_table_2_has_batch_norm_for_idc_and_instance_norm_for_mtt() -> None:
    plan = filled("table2")
    for method, architecture, norm in (("IDC", "idc_resnet18", "batch"), ("PDD+MTT", "resnet18", "instance")):
        (spec, *_) = (plan.plan.graph[key].spec for key in jobs(plan, "table2", method, "50, ResNet-18"))
        assert isinstance(spec, EvaluateSpec)
        network = spec.network
        assert (network.architecture, network.norm, network.width) == (architecture, norm, None)


def test_each_cell_averages_as_many_networks_as_the_paper() -> None:
    plan = filled("table1", "table7")
    assert len(jobs(plan, "table1", "DC", "CIFAR-100, 10")) == 5
    assert len(jobs(plan, "table7", "Herding", "60 classes")) == 5 * 3


def test_the_phases_of_table_7_follow_each_other() -> None:
    plan = filled("table7")
    seen = []
    for phase in range(1, 6):
        spec = plan.plan.graph[jobs(plan, "table7", "DSA", f"{20 * phase} classes")[0]].spec
        assert isinstance(spec, EvaluateSpec)
        seen.append(len({label for group in spec.phases for label in group}))
    assert seen == [20, 40, 60, 80, 100]


# Each table's cells are trained as the paper, or its code, says.


def evaluated(plan: TablesPlan, name: str, row: str, column: str) -> EvaluateSpec:
    spec = plan.plan.graph[jobs(plan, name, row, column)[0]].spec
    assert isinstance(spec, EvaluateSpec)
    return spec


@pytest.mark.parametrize("method", ["MTT", "IDC"])
@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize(("scale", "epochs"), [("paper", 1000), ("small", 120), ("tiny", 4)])
def test_the_modes_of_table_3_see_as_many_images(scale: Scale, epochs: int, stages: int, method: str) -> None:
    """Union and sequential are trained 1000 epochs a set, progressive 2000/(P+1) a stage (facts 6.3)."""
    plan = filled("table3") if scale == "paper" else rehearsed("table3", scale=scale)
    rows = {mode: f"{stages} stages, {mode}" for mode in "USP"}
    trained = {mode: evaluated(plan, "table3", row, method).training.epochs for mode, row in rows.items()}
    assert trained == {"U": epochs, "S": epochs, "P": max(1, 2 * epochs // (stages + 1))}
    union, sequential, progressive = (
        image_visits(plan.plan.graph[jobs(plan, "table3", row, method)[0]], plan.plan.graph) for row in rows.values()
    )
    assert union == sequential
    assert progressive == pytest.approx(union, rel=0.01 if scale == "paper" else 0.5)


def test_in_table_5_the_rate_of_the_step_size_rises_from_stage_2_on_with_one_image_a_stage() -> None:
    plan = filled("table5")
    rates = {
        column: [job.spec.settings["lr_step_size"] for job in chain(plan, "table5", "PDD+MTT", column)]
        for column in ("1 x 10", "2 x 5", "5 x 2", "10 x 1")
    }
    assert rates == {"1 x 10": [1e-5], "2 x 5": [1e-7] * 2, "5 x 2": [1e-7] * 5, "10 x 1": [1e-7] + [1e-5] * 9}
    resolved = plan.plan.sources[chain(plan, "table5", "PDD+MTT", "10 x 1")[1].key]
    assert resolved.sources["distil.settings.lr_step_size"] == "PDD code: from stage 2 on, with one image a stage"


def chain(plan: TablesPlan, name: str, row: str, column: str) -> list[Job]:
    """The stages behind the first network of a cell."""
    graph = plan.plan.graph
    behind = graph.ancestors(jobs(plan, name, row, column)[:1])
    return [job for job in graph if job.key in behind and isinstance(job.spec, DistilSpec)]


@pytest.mark.parametrize("scale", ["paper", "small", "tiny"])
def test_all_rows_of_table_7_are_trained_alike(scale: Scale) -> None:
    """At the published scale as the setting that the paper cites trains them (facts 5.8)."""
    plan = filled("table7") if scale == "paper" else rehearsed("table7", scale=scale)
    rows = ["DSA", "Herding", "MTT", "PDD+MTT"]
    trainings = [evaluated(plan, "table7", row, "100 classes").training for row in rows]
    alike = [training.model_dump(exclude={"lr", "epochs"}) for training in trainings]
    assert alike == [alike[0]] * 4
    rates = {"paper": 0.01}.get(scale, 0.02)
    assert [training.lr for training in trainings] == [rates, rates, None, None]  # MTT's are learned with the images
    visits = [
        image_visits(plan.plan.graph[jobs(plan, "table7", row, "100 classes")[0]], plan.plan.graph) for row in rows
    ]
    assert visits == pytest.approx([visits[0]] * 4, rel=0.01 if scale == "paper" else 0.5)
    if scale == "paper":
        assert (trainings[0].epochs, trainings[0].extra_epoch, trainings[0].batch_size) == (1000, True, 256)
        assert trainings[0].augmentation == "color_crop_cutout_flip_scale_rotate"


def test_pdd_around_dc_is_trained_with_the_papers_epochs_a_stage() -> None:
    plan = filled("tableA8")
    assert evaluated(plan, "tableA8", "PDD+DC", "50").training.epochs == 333
    assert evaluated(plan, "tableA8", "DC", "50").training.epochs == 300


# What is not there, and what stands in.


def test_a_dataset_that_is_absent_leaves_its_cells_without_jobs_and_with_the_reason() -> None:
    data = papers() | {"cifar100": replace(papers()["cifar100"], absent="fetch it")}
    plan = fill([load("table1")], Circumstances(data=data))
    assert at(plan, "table1", "Random", "CIFAR-100, 10") == TableCell(
        "Random", "CIFAR-100, 10", Published(14.6, 0.5), None, "fetch it"
    )
    assert at(plan, "table1", "Random", "CIFAR-10, 10").cell is not None
    assert not any("cifar100" in key for key in plan.plan.graph.jobs)


def test_a_plan_may_count_with_an_absent_dataset_and_says_so_in_the_cell() -> None:
    plan = fill([load("tableA8")], Circumstances(data=papers("fetch it"), allow_missing_data=True))
    cells = [one for _, one in walk(plan.tables)]
    assert all(one.cell is not None and one.absent == "fetch it" for one in cells)


def test_every_caption_says_which_dataset_stands_in() -> None:
    plan = rehearsed("table1", "table5")
    assert [table.dataset_note for table in plan.tables] == [
        "measured on digits, which stands in for cifar10, cifar100, tiny-imagenet",
        "measured on digits, which stands in for cifar10",
    ]
    assert {one.cell.dataset for _, one in walk(plan.tables) if one.cell} == {"digits"}
    assert filled("table5").tables[0].dataset_note == ""


def test_with_one_dataset_for_all_the_columns_that_only_differ_in_it_are_the_same_jobs() -> None:
    plan = rehearsed("table1")
    assert jobs(plan, "table1", "DM", "CIFAR-10, 50") == jobs(plan, "table1", "DM", "Tiny-ImageNet, 50")


def test_a_class_that_has_too_few_images_gives_as_many_as_it_has_and_a_note_says_so() -> None:
    """131 images of a class, 13 of them held out: 118 in 5 stages are 23 in each."""
    plan = rehearsed("figure3", scale="small")
    cell = at(plan, "figure3", "CIFAR-10, 50 per stage", "stage 2").cell
    assert cell is not None and (cell.ipc_per_stage, cell.stage, cell.stages) == (23, 2, 5)
    assert [note for note in plan.tables[0].notes if "118" in note] == [
        "5 x 50 images per class are 5 x 23 here: a class has 118"
    ]


def test_tiles_too_coarse_to_train_on_are_noted_where_they_are_used() -> None:
    """Digits have 8 x 8 pixels, CIFAR-10 has 32 x 32; IDC and DREAM keep four images in one."""
    said = "keeps 4 images of 4 x 4 pixels in one of 8 x 8"
    rehearsal = rehearsed("table2", "tableA9", "table5")
    assert [[note.split(" keeps")[0] for note in table.notes if said in note] for table in rehearsal.tables] == [
        ["IDC"],
        ["DREAM"],
        [],
    ]
    assert not any("pixels in one of" in note for table in filled("table2").tables for note in table.notes)


def test_the_facts_of_known_datasets_add_up() -> None:
    images = {name: sum(facts.train_per_class) for name, facts in KNOWN.items()}
    assert images == {
        "digits": 1_352,
        "cifar10": 50_000,
        "cifar100": 50_000,
        "svhn": 73_257,
        "tiny-imagenet": 100_000,
        "fashion-mnist": 60_000,
        "mnist": 60_000,
    }
    assert all(len(facts.class_names) == len(facts.train_per_class) for facts in KNOWN.values())
