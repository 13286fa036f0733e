from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import BadInput
from jobs.experiment import FOLDER, Experiment
from jobs.specs import DistilSpec, ExpertsSpec, FullSpec
from orchestrator.planning import requests
from orchestrator.planning.explain import sources_of
from orchestrator.planning.requests import Request, ResolvedRequest, resolve
from workers.data.sources import Facts

CIFAR10 = Facts(
    layout="cifar10",
    channels=3,
    height=32,
    width=32,
    class_names=tuple("0123456789"),
    train_per_class=(5000,) * 10,
    test_per_class=(1000,) * 10,
    fingerprint="f",
    licence="",
)
TINY_IMAGENET = replace(
    CIFAR10,
    layout="tiny-imagenet",
    height=64,
    width=64,
    class_names=tuple(map(str, range(200))),
    train_per_class=(500,) * 200,
    test_per_class=(50,) * 200,
)


def asked(*settings: str, **fields: Any) -> ResolvedRequest:
    return resolve(Request(experiments=fields.pop("experiments", ("tiny",)), settings=settings, **fields))


def refusal(*settings: str, **fields: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        asked(*settings, **fields)
    return caught.value


def specs(found: ResolvedRequest, kind: type) -> list[Any]:
    return [job.spec for job in found.plan.graph if isinstance(job.spec, kind)]


def only(found: ResolvedRequest) -> Experiment:
    (experiment,) = found.experiments
    return experiment


def test_without_words_the_quickstart_is_answered() -> None:
    assert only(resolve(Request())).name == "quickstart"


def test_the_command_line_wins_over_the_file() -> None:
    found = asked("networks=1", "arms.3.name=All of it", scale="small", seed=7)
    experiment = only(found)
    assert (experiment.scale, experiment.seeds, experiment.networks) == ("small", (7,), 1)
    assert [arm.label for arm in experiment.arms] == ["Random", "MTT", "PDD+MTT", "All of it"]
    assert [spec.seed for spec in specs(found, FullSpec)] == [7]


def test_a_path_that_begins_with_a_section_of_the_recipe_changes_the_number_in_every_arm() -> None:
    found = asked("distil.iterations=9", "distil.image.lr=0.5")
    assert {(spec.iterations, spec.image.lr) for spec in specs(found, DistilSpec)} == {(9, 0.5)}


@pytest.mark.parametrize(("setting", "field"), [("every=2", "every"), ("by=test", "by"), ("networks=1", "networks")])
def test_one_number_of_a_choice_is_set_alone(setting: str, field: str) -> None:
    stages = specs(asked(f"distil.choice.{setting}"), DistilSpec)
    assert {getattr(spec.choice, field) for spec in stages} == {yaml.safe_load(setting.partition("=")[2])}


def test_the_dataset_is_chosen_by_name_by_path_and_by_field() -> None:
    assert only(asked(dataset="digits")).source.name == "digits"
    assert refusal(dataset="./here").value == "here"
    error = refusal("dataset.path=/nope")
    assert (error.field, error.value) == ("dataset.path", "/nope") and "digits" in error.fix


def test_a_path_in_one_word_may_have_fields_of_the_dataset_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal("dataset.test=0.2", "dataset.size=16", dataset=str(tmp_path / "mine"))
    assert (error.field, error.value) == ("dataset.path", str(tmp_path / "mine"))
    assert error.fix.startswith("nothing is there: ")
    error = refusal("dataset.title=Mine", dataset="digitz")
    assert (error.field, error.value) == ("dataset.name", "digitz") and "did you mean 'digits'?" in error.fix
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal(dataset="mine").fix == "write ./mine for what lies in this folder"


def test_the_dataset_sections_numbers_are_the_recipes() -> None:
    found = asked("dataset.train_per_class=30")
    assert {job.spec.train_per_class for job in found.plan.graph if job.kind == "dataset"} == {30}  # type: ignore[attr-defined]


def test_the_same_experiment_twice_is_the_experiment_once() -> None:
    once, twice = asked(), asked(experiments=("tiny", "tiny"))
    assert list(twice.plan.graph.jobs) == list(once.plan.graph.jobs)
    assert twice.plan.cells == once.plan.cells and len(twice.experiments) == 1


def test_two_experiments_share_the_jobs_that_are_equal(tmp_path: Path) -> None:
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    longer = tmp_path / "longer.yaml"
    longer.write_text(yaml.safe_dump(document | {"name": "longer", "networks": 3}))
    found, alone = asked(experiments=("tiny", str(longer))), asked()
    kinds = [job.kind for job in found.plan.graph]
    assert kinds.count("distil") == [job.kind for job in alone.plan.graph].count("distil") == 3
    assert kinds.count("full") == 3 and len(found.plan.cells) == 2 * len(alone.plan.cells)
    distil = next(key for key in found.plan.graph.jobs if key.startswith("distil"))
    assert found.plan.exclusive[distil] == ("tiny/seed0", "longer/seed0")


def test_the_place_of_a_complaint_is_the_file_unless_the_command_line_spoke(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    mine.write_text(yaml.safe_dump(document | {"set": {"distil.settings.nope": 1}}))
    assert refusal(experiments=(str(mine),)).place == str(mine)
    assert refusal("distil.settings.nope=1").place == "command line over tiny.yaml"


def test_a_setting_that_changes_nothing_leaves_the_file_its_place_and_every_key() -> None:
    plain, same = asked(), asked("networks=2", scale="tiny")
    assert list(plain.plan.graph.jobs) == list(same.plan.graph.jobs)
    assert {source for job in same.plan.sources.values() for source in job.sources.values()} == {
        source for job in plain.plan.sources.values() for source in job.sources.values()
    }


def test_overrides_are_given_as_the_source_of_their_numbers() -> None:
    found = asked("distil.iterations=9")
    key = next(key for key in found.plan.graph.jobs if key.startswith("distil"))
    assert found.plan.sources[key].sources["distil.iterations"] == "command line over tiny.yaml"


@pytest.mark.parametrize("setting", ["", "=3", "networks"])
def test_a_setting_without_a_name_or_a_value_is_refused(setting: str) -> None:
    error = refusal(setting)
    assert (error.place, error.field, error.value) == ("command line", "--set", setting)


@pytest.mark.parametrize("value", [f"0x{'f' * 5000}", "!!bool abc", "2001-99-99", "{a: 1, a: 2}"])
def test_a_setting_that_yaml_cannot_hold_is_refused(value: str) -> None:
    assert refusal(f"networks={value}").fix == "write a YAML value"


def test_experts_of_a_later_stage_are_counted_by_their_own_epochs() -> None:
    assert specs(asked("experts.later_epochs=3"), ExpertsSpec)
    error = refusal("experts.later_epochs=2")
    assert (error.field, error.value) == ("experts.later_epochs", 2) and "at least 3" in error.fix


def test_the_extra_epoch_of_the_experts_counts() -> None:
    asked("experts.real.epochs=2", "experts.real.extra_epoch=true")
    error = refusal("experts.real.epochs=2")
    assert (error.field, error.value) == ("experts.real.epochs", 2) and "at least 3" in error.fix


def test_a_method_without_its_experts_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    mine.write_text(yaml.safe_dump(document | {"set": {"experts": None}}))
    error = refusal(experiments=(str(mine),))
    assert (error.field, error.value) == ("experts.real.epochs", 0)


@pytest.mark.parametrize(
    ("name", "facts", "ipc"),
    [
        *[("cifar10", CIFAR10, ipc) for ipc in (1, 2, 10, 50)],
        *[("cifar100", replace(CIFAR10, layout="cifar100"), ipc) for ipc in (1, 2, 10, 20)],
        *[("tiny-imagenet", TINY_IMAGENET, ipc) for ipc in (1, 2, 10)],
    ],
)
@pytest.mark.parametrize("stages", [1, 2])
def test_the_published_settings_train_their_experts_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, facts: Facts, ipc: int, stages: int
) -> None:
    monkeypatch.setattr(requests, "inspect_dataset", lambda chosen, place, store: facts)
    mine = tmp_path / "mine.yaml"
    arm = {"method": "mtt", "stages": stages, "ipc_per_stage": ipc}
    mine.write_text(yaml.safe_dump({"name": "p", "dataset": {"name": name}, "scale": "paper", "arms": [arm]}))
    assert len(specs(asked(experiments=(str(mine),)), DistilSpec)) == stages


@pytest.mark.parametrize(
    ("setting", "field"),
    [("distil.iteration=9", "set.distil.iteration"), ("evaluate.batch_size=many", "set.evaluate.batch_size")],
)
def test_a_wrong_word_is_refused_before_the_dataset_is_read(
    monkeypatch: pytest.MonkeyPatch, setting: str, field: str
) -> None:
    monkeypatch.setattr(requests, "inspect_dataset", lambda *words: pytest.fail("the dataset was read"))
    assert refusal(setting).field == field
    assert refusal(f"arms.1.set.{setting}").field == field


def test_all_experiments_are_read_before_any_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "inspect_dataset", lambda *words: pytest.fail("the dataset was read"))
    assert refusal(experiments=("tiny", "no_such")).value == "no_such"


def test_soft_labels_are_refused_where_the_method_matches_with_classes(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    arms = [{"method": "dm", "ipc_per_stage": 1, "set": {"distil.labels": {"source": "classes"}}}]
    mine.write_text(yaml.safe_dump(document | {"arms": arms}))
    error = refusal(experiments=(str(mine),))
    assert (error.field, error.value) == ("distil.labels", "classes")
    assert error.fix == "dm matches with the images' classes; leave it out"


def test_compiled_matching_is_refused_where_images_depend_on_each_other() -> None:
    asked = ("distil.settings.engine=compiled", "network.norm=batch")
    error = refusal(*asked)
    assert (error.field, error.value) == ("distil.settings.engine", "compiled")
    assert "batch norm" in error.fix


NETWORKS = """
from torch import nn
from workers.training.networks import Network


class Apart(Network):
    def __init__(self, *, channels, size, classes, norm, **rest):
        super().__init__()
        self.body = nn.Conv2d(channels, 3, 3, padding=1)
        self.classifier = nn.Linear(3 * size * size, classes)

    def embed(self, images):
        return self.body(images).flatten(1)


class Mixed(Apart):
    def embed(self, images):
        features = super().embed(images)
        return features - features.mean(0)
"""


def test_compiled_matching_takes_a_network_of_ones_own_that_keeps_images_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    compiled = "distil.settings.engine=compiled"
    assert specs(asked(compiled, "network.architecture=nets_of_mine:Apart"), DistilSpec)
    error = refusal(compiled, "network.architecture=nets_of_mine:Mixed")
    assert (error.field, error.value) == ("distil.settings.engine", "compiled") and "images beside it" in error.fix


@pytest.mark.parametrize("field", ["distil.settings.engine", "experts.real.engine", "evaluate.engine"])
def test_compiled_code_is_refused_where_there_is_no_compiler(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    requests.require_compiler(asked().plan.graph)
    with pytest.raises(BadInput, match="install no-such-compiler"):
        requests.require_compiler(asked(f"{field}=compiled").plan.graph)


def test_soft_labels_of_some_stages_only_are_refused(tmp_path: Path) -> None:
    recipe, mine = tmp_path / "some.yaml", tmp_path / "mine.yaml"
    layer = {"when": {"stage": {"at_least": 2}}, "set": {"distil": {"labels": {"source": ["classes", "a test"]}}}}
    recipe.write_text(yaml.safe_dump({"method": "mtt", "base": "mtt", "layers": [layer]}))
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    arms = [{"method": str(recipe), "stages": 2, "ipc_per_stage": 1}]
    mine.write_text(yaml.safe_dump(document | {"arms": arms}))
    assert refusal(experiments=(str(mine),)).fix.startswith("stages come together in one union")


def test_the_numbers_of_soft_labels_are_in_the_spec_and_have_their_sources() -> None:
    found = asked("distil.labels.learning.lr=2.0", "distil.labels.temperature=4.0", "evaluate.temperature=3.0")
    (labels,) = {spec.labels for spec in specs(found, DistilSpec)}
    assert labels is not None and labels.learning is not None
    assert (labels.source, labels.learning.lr, labels.temperature) == ("experts", 2.0, 4.0)
    key = next(key for key in found.plan.graph.jobs if key.startswith("distil"))
    rows = {field: (value, source) for field, value, source in sources_of(found.plan, key)}
    assert rows["distil.labels.learning.lr"] == ("2.0", "command line over tiny.yaml")
    assert rows["distil.labels.temperature"][0] == "4.0"
