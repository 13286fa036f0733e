"""Experiments: what a user asks for, and the plan of jobs and table cells that answers it.

An experiment names a dataset, a scale, architectures, and *arms*: a selection baseline, a distillation with its
stages and images per class, or full-data training, each perhaps as one of the paper's ablations. How an arm becomes
jobs is in `jobs.expansion` and `jobs.arm_jobs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from jobs.datasets import DATASETS, Facts
from jobs.documents import Name, named_file, read_yaml, validate
from jobs.fields import Count, Fraction, Frozen, Index
from jobs.graph import Graph
from jobs.plugins import is_plug_in, short_name
from jobs.recipe import Protocol, Resolved, Scale, is_file, methods
from jobs.specs import Architecture, Mode, NeverLearned

FOLDER = Path(__file__).parent / "experiments"
QUICKSTART = FOLDER / "quickstart.yaml"
SELECTIONS = {"random": "Random", "herding": "Herding", "k_center": "K-Center", "forgetting": "Forgetting"}
"""Baselines that take real images, with their names in tables."""
OWN_IMAGES = "images"
"""The name of images that have none."""
ABLATIONS = ("transition", "conditioning", "earlier_rate", "partition", "imported_experts", "imported_set")
"""Fields of an arm that change how a set is distilled."""
MOST_NETWORKS = 1000
"""Networks of a cell above which an experiment is refused: each is a job, and all are listed before anything runs."""
MOST_STAGES = 1000
MOST_IN_ALL = 200_000
"""Networks of a whole experiment: a graph of so many is still planned in a minute."""
_LABELS = {"full": "Full data", "cafe_dsa": "CAFE+DSA", "frepo": "FRePo", "haba": "HaBa", "rat_bptt": "RaT-BPTT"}

Item = TypeVar("Item")


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """A repeated seed would be counted twice in every mean."""
    if len(set(items)) < len(items):
        raise PydanticCustomError("repeated", "name each only once")
    return items


Several = Annotated[tuple[Item, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]


def _known(method: str) -> str:
    if method not in methods() and not is_file(method):
        known = {"known": ", ".join(methods())}
        raise PydanticCustomError("method", "must be one of {known}, or a recipe file such as mine/toy.yaml", known)
    return method


class DatasetChoice(Frozen):
    """The dataset a user names: a known name, a path, or both."""

    name: str = "auto"
    path: str | None = None
    image: str | None = None
    label: str | None = None
    test: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    """The split to test on by its name, or the share of the training split that is cut off for it."""
    title: str = ""
    """What one's own images are called in tables and cards; the name of their folder by default."""
    licence: str = ""
    url: str = ""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """The side in pixels that all images are brought to: the shorter side is resized, the longer one cropped."""

    @property
    def test_words(self) -> str | None:
        """`test` as text."""
        return None if self.test is None else str(self.test)


def dataset_fields(value: object) -> object:
    """The fields of a dataset; one that is said in a word is so by its name, or by its path if it looks like one."""
    if not isinstance(value, str):
        return value
    return {"path" if "/" in value or value.startswith(".") else "name": value}


class Partition(Frozen):
    """Stages by difficulty (Table 6): stage i learns from images forgotten [increment * (i-1), increment * i) times."""

    increment: Count = 3
    never_learned: NeverLearned = "zero"
    levels: Count | None = None
    """Instead of by the score itself, by its rank: stage i has the i-th of so many equal parts of each class. For data
    that is learned too easily for scores to tell its images apart."""


class ClassIncremental(Frozen):
    """Class-incremental learning (Table 7): classes come in `phases` of equally many, in `orders` random orders.

    In each phase the arm selects or distils from this phase's classes alone; after it new networks are trained on all
    images so far and asked about all classes so far. `networks` of the experiment counts them for each order.
    """

    phases: Annotated[int, Field(ge=2, le=MOST_STAGES)] = 5
    orders: Annotated[int, Field(ge=1, le=MOST_NETWORKS)] = 5


class Arm(Frozen):
    """One row group of the table.

    `ipc_per_stage` counts new images per class in each of `stages` stages; a selection baseline takes their
    product at once. `set` changes recipe numbers for this arm by dotted path. `method` is the name of a recipe, or the
    path of a recipe file of one's own. The ablations of Table 4 are `transition: false` and `conditioning: false`, that
    of A3.2 is `earlier_rate`.
    """

    method: Annotated[str, AfterValidator(_known)]
    name: str | None = None
    stages: Annotated[int, Field(ge=1, le=MOST_STAGES)] = 1
    ipc_per_stage: Count | None = None
    modes: Several[Mode] = ("progressive",)
    prefixes: Literal["all", "last"] = "all"
    protocol: Protocol = "published"
    transition: bool = True
    conditioning: bool = True
    earlier_rate: Fraction = 0.0
    """Share of the image learning rate at which earlier sets go on learning."""
    partition: Partition | None = None
    class_incremental: ClassIncremental | None = None
    imported_experts: str | None = None
    """The key of trajectories of others, from which the first stage starts (`pdd import`)."""
    imported_set: str | None = None
    """The key of a set of others, which is the first stage (`pdd import`)."""
    set: dict[str, Any] = {}

    @property
    def base_method(self) -> str:
        """The method's name; of a recipe file the name of the file."""
        return Path(self.method).stem if is_file(self.method) else self.method

    @property
    def label(self) -> str:
        """The arm's name in tables."""
        if self.name:
            return self.name
        if self.method in SELECTIONS:
            label = SELECTIONS[self.method]
        else:
            label = _LABELS.get(self.method, self.base_method.upper())
            label = f"PDD+{label}" if self.stages > 1 else label
        return " ".join([label, *self._departures()])

    @property
    def ipc_total(self) -> int:
        """Images per class in the union of all stages; 0 for full data."""
        return self.stages * (self.ipc_per_stage or 0)

    @property
    def orders(self) -> int:
        """Random orders of classes; one where all classes come at once."""
        return 1 if self.class_incremental is None else self.class_incremental.orders

    def _departures(self) -> list[str]:
        departures = {
            "(augmented)": self.protocol == "augmented",
            "(DD-Ranking)": self.protocol == "dd_ranking",
            "w/o transition": not self.transition,
            "w/o conditioning": not self.conditioning,
            "updating earlier sets": self.earlier_rate > 0,
            "by forgetting score": self.partition is not None,
            "from imported experts": self.imported_experts is not None,
            "from an imported set": self.imported_set is not None,
        }
        return [words for words, true in departures.items() if true]

    @model_validator(mode="after")
    def _only_what_goes_together(self) -> Arm:
        if self.method in (*SELECTIONS, "full"):
            ablations = {name for name in ABLATIONS if getattr(self, name) != type(self).model_fields[name].default}
            for name in sorted(ablations):
                raise PydanticCustomError("ablation", "leave {name} out; nothing is distilled here", {"name": name})
        if self.protocol == "dd_ranking" and self.stages > 1 and self.modes != ("union",):
            if self.method not in SELECTIONS:
                raise PydanticCustomError("protocol", "DD-Ranking trains on all images at once; write modes: [union]")
        if self.earlier_rate and not self.conditioning:
            raise PydanticCustomError("ablation", "without conditioning earlier sets have no gradient; drop one")
        if self.partition is not None and not self.transition:
            raise PydanticCustomError("ablation", "a partition's experts come from the transition; drop one")
        if self.class_incremental is not None and (self.method == "full" or self.partition is not None):
            raise PydanticCustomError("class_incremental", "not for full data, nor with a partition; leave one out")
        if self.imported_experts or self.imported_set:
            if self.partition is not None or self.class_incremental is not None:
                raise PydanticCustomError("imported", "others knew no partition and no phases; leave one out")
        return self


class Experiment(Frozen):
    """A whole experiment as its YAML file says it."""

    name: Name
    about: str = ""
    dataset: Annotated[DatasetChoice, BeforeValidator(dataset_fields)] = DatasetChoice(name="digits")
    scale: Scale = "small"
    seeds: Several[Index] = (0,)
    architectures: Several[Architecture] = ("convnet",)
    networks: Annotated[int, Field(ge=1, le=MOST_NETWORKS)] = 5
    arms: Annotated[tuple[Arm, ...], Field(strict=False, min_length=1)]
    distil_at_once: Count = 1
    """How many `distil` jobs of one seed of this experiment may run at a time."""
    set: dict[str, Any] = {}
    """Recipe numbers for every arm, by dotted path; an arm's own `set` wins."""

    @model_validator(mode="after")
    def _few_enough_to_plan(self) -> Experiment:
        each = len(self.seeds) * len(self.architectures) * self.networks
        networks = sum(each * arm.stages * len(arm.modes) * arm.orders for arm in self.arms)
        if networks > MOST_IN_ALL:
            counts = {"networks": f"{networks:,}", "most": f"{MOST_IN_ALL:,}"}
            text = "asks for {networks} networks (seeds x architectures x networks x stages); at most {most}"
            raise PydanticCustomError("too_many", text, counts)
        return self

    @property
    def source(self) -> DatasetChoice:
        """Where the images come from; also when the file says no more than a name or a path."""
        return self.dataset

    def dataset_name(self, facts: Facts) -> str:
        """What recipes and keys call the dataset: its name, `images` if it has none, or that of one's own reader.

        A title, a path or a layout on disk is no name: the same images make the same jobs wherever they lie.
        """
        name = facts.layout if self.dataset.name == "auto" else self.dataset.name
        return short_name(name) if name in DATASETS or is_plug_in(name) else OWN_IMAGES

    def dataset_title(self, facts: Facts) -> str:
        """What people call the dataset: its name, or of one's own images the title, else the name of their folder."""
        name, path = self.dataset_name(facts), self.dataset.path
        if name in DATASETS:
            return name
        return self.dataset.title or (Path(path).absolute().name if name == OWN_IMAGES and path else name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table: the networks whose accuracies are averaged, and what they were trained on."""

    experiment: str
    method: str
    base_method: str
    dataset: str
    scale: Scale
    architecture: str
    """The network's own name, which for a ResNet says the family: `idc_resnet18` is a quarter of `resnet18`."""
    mode: str
    ipc_per_stage: int
    stages: int
    stage: int
    """The prefix of stages this cell is about, 1-based; 0 for full data."""
    phase: int = 0
    """In class-incremental learning the phase after which the networks were trained, 1-based; else 0."""
    jobs: tuple[str, ...]
    """Keys of the `evaluate` or `full` jobs, by seed and then network."""
    guessing: float = 0.0
    """The accuracy in percent of guessing among the classes."""

    @property
    def ipc_total(self) -> int:
        """Images per class the networks of this cell saw; 0 for full data."""
        return self.ipc_per_stage * self.stage


@dataclass
class Plan:
    """A graph, the cells it fills, and how the driver may run it."""

    graph: Graph = field(default_factory=Graph)
    cells: list[Cell] = field(default_factory=list)
    sources: dict[str, Resolved] = field(default_factory=dict)
    """By key: the recipe a job's numbers come from."""
    exclusive: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By key of a `distil` job: the groups of which at most `limits` may run at once."""
    limits: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What people should know of the data before they trust its numbers, each once."""

    def note(self, text: str) -> None:
        """Add a note unless it is there."""
        if text not in self.notes:
            self.notes.append(text)

    def wanted(self) -> tuple[str, ...]:
        """The jobs that were asked for, each once: those that fill a cell."""
        return tuple(dict.fromkeys(key for cell in self.cells for key in cell.jobs))


def load(name: str) -> tuple[Experiment, str, dict[str, Any]]:
    """The experiment of a YAML file or of a name in `jobs/experiments`, its place, and the raw mapping.

    Raises:
        BadInput: there is no such file or name, or the file does not validate.
    """
    path = named_file(name, FOLDER, "experiment")
    raw = read_yaml(path)
    place = path.name if path.parent == FOLDER else str(path)
    return validate(Experiment, raw, place), place, raw
