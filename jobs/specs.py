"""What each kind of job is told: frozen, validated specifications.

A spec holds every number that can change the job's result and nothing about where it runs. The few fields that only say
where bytes lie, how they are called or how often to save are named in `placement`; they travel with the spec but never
enter its key (`jobs.keys`). What flows *into* a job (dataset, experts, earlier sets) is in its parents (`jobs.graph`).

Terms are the field's: an *expert* is a network trained on real data, its *trajectory* the parameters by epoch; the
*synthetic set* S_i is what stage i distils; `ipc_per_stage` counts new images per class in one stage and `ipc_total`
those in the union of all stages.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from jobs.architectures import ARCHITECTURES, Dimensions, Layer, architecture_named
from jobs.documents import matching
from jobs.fields import Classes, Count, Counts, Fraction, Frozen, Index, NonNegative, Positive, Settings, stored_as
from jobs.learning import ImageOptimiserSpec, LabelSpec
from jobs.plugins import FORM, is_plug_in

Kind = Literal["dataset", "experts", "forgetting", "select", "distil", "evaluate", "full", "imported"]
Mode = Literal["progressive", "union", "sequential"]
Choice = Literal["validation", "test", "last"]

Init = Literal["real", "noise", "centroids", "classified"]
"""New images start as random real ones, as noise, as the real ones nearest to the centroids of k-means (DREAM), or as
random real ones that an expert of the stage classifies rightly (DATM)."""
Clustering = Literal["sklearn", "torch"]
"""Whose k-means finds representative images: scikit-learn's, on the CPU, or our own, on the network's device."""
Drop = Literal["none", "half", "thirds"]
MomentumAtDrop = Literal["kept", "reset"]
"""Whether SGD's momentum outlives a drop of the learning rate, as in PDD's code, or starts anew with a new optimiser,
as in that of DC, DSA, DM, CAFE and MTT (facts 4.3)."""
Norm = Literal["instance", "batch", "layer", "group", "none"]
Pooling = Literal["average", "max", "none"]
Activation = Literal["relu", "leaky_relu", "sigmoid", "swish"]
Rule = Literal["random", "herding", "k_center", "forgetting", "imported"]
TrainingEngine = Literal["eager", "compiled"]
"""PyTorch's own operators, or code compiled for the batch's shape, whose last digits are others."""
Precision = Literal["float32", "bfloat16"]
"""Of the layers' arithmetic in training; parameters, their updates and all tests are float32."""
Tf32 = Literal["convolutions", "all", "none"]
"""The products of float32 in which a card may round to TF32: convolutions as PyTorch does by default, all, or none."""
NeverLearned = Literal["zero", "epochs"]
"""How often an image that was never right counts as forgotten: never, which is the paper's own wording (no right, so no
event), or as often as there are epochs, Toneva's convention (sorts last)."""
Start = Literal["random", "expert"]
"""Evaluation networks start from weights of their own, or all from one expert's, as in PDD's code (facts 5.5)."""


def _architecture(name: str) -> str:
    if name not in ARCHITECTURES and not is_plug_in(name):
        context = {"known": ", ".join(ARCHITECTURES), "form": FORM}
        raise PydanticCustomError("architecture", "must be one of {known}, or {form}", context)
    return name


Architecture = Annotated[str, AfterValidator(_architecture)]
"""The name of one of `jobs.architectures.ARCHITECTURES`, or the import path of a network class."""
Family = Literal["mtt", "dc", "idc"]
"""How a code base combines augmentations (facts 3): `mtt` and `dc` draw one operation a batch, with and without
`align_corners`; `idc` always flips and colours, then draws one geometric operation, then always cuts out."""
Augmentation = Annotated[
    str,
    matching(
        r"none|(color|crop|cutout|flip|scale|rotate)(_(color|crop|cutout|flip|scale|rotate))*",
        "write none, or some of color, crop, cutout, flip, scale, rotate with '_' between them",
    ),
]


class NetworkSpec(Frozen):
    """Which network to build; `width` and `depth` of None mean the published ones of that architecture.

    `tf32` says how a card computes all of the job in which the network is.
    """

    architecture: Architecture = "convnet"
    width: Count | None = None
    depth: Count | None = None
    norm: Norm = "instance"
    pooling: Pooling = "average"
    activation: Activation = "relu"
    tf32: Tf32 = "convolutions"

    later: ClassVar[frozenset[str]] = frozenset({"pooling", "activation", "tf32"})

    @property
    def channels(self) -> int:
        """Channels of a ConvNet's blocks or of a ResNet's first group (facts 1)."""
        return self.width or architecture_named(self.architecture).width

    @property
    def blocks(self) -> int:
        """Blocks of a ConvNet, or residual blocks of each of a ResNet's four groups."""
        return self.depth or architecture_named(self.architecture).blocks

    def layers(self, channels: int, size: int, classes: int) -> list[Layer]:
        """What each layer takes for one image.

        Args:
            channels: of the image.
            size: side of the square image in pixels.
            classes: number of logits.
        """
        halved = self.pooling != "none"
        dimensions = Dimensions(channels, size, classes, self.channels, self.blocks, halved=halved)
        return list(architecture_named(self.architecture).layers(dimensions))

    @field_validator("width", "depth", "norm", "pooling", "activation")
    @classmethod
    def _fits(cls, value: int | str | None, info: ValidationInfo) -> int | str | None:
        name, field = info.data.get("architecture", "convnet"), str(info.field_name)
        if fix := architecture_named(name).fix_for(field, value):
            raise PydanticCustomError(field, "{fix}", {"fix": fix})
        return value


class SgdSpec(Frozen):
    """Plain SGD over resident tensors: one permutation per epoch, the last short batch kept.

    `drop` says when the learning rate falls: `half` is to a tenth after epoch index E//2+1 (MTT, DC; facts 4.3),
    `thirds` to a fifth at 2/3 and at 5/6 (IDC; facts 6.1). `extra_epoch` repeats the reference's `range(E + 1)`.
    `cutmix` is the probability of mixing a batch, after the augmentation. `engine` and `precision` say how a forward
    pass is computed (`workers.training.compute`). `temperature` is that of soft labels where a synthetic set has them,
    instead of the one it was distilled with.
    """

    later: ClassVar[frozenset[str]] = frozenset(
        {"family", "cutmix", "momentum_at_drop", "engine", "precision", "temperature"}
    )

    epochs: Count
    lr: Positive | None = None
    momentum: Fraction = 0.0
    weight_decay: NonNegative = 0.0
    batch_size: Count = 256
    augmentation: Augmentation = "none"
    family: Family = "mtt"
    cutmix: Fraction = 0.0
    drop: Drop = "none"
    extra_epoch: bool = False
    momentum_at_drop: MomentumAtDrop = "kept"
    engine: TrainingEngine = "eager"
    precision: Precision = "float32"
    temperature: Positive | None = None


class Spec(Frozen):
    """Base of the job specs."""

    kind: ClassVar[Kind]
    version: ClassVar[int]
    """Raised whenever the same spec would give another result than before."""
    placement: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot change the result and therefore stay out of the key."""

    def identity(self) -> dict[str, Any]:
        """The fields that enter the key, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(self.placement))

    def title(self) -> str:
        """The readable words of the key, most telling first."""
        raise NotImplementedError


class DatasetSpec(Spec):
    """One uint8 Arrow artifact with its splits and its normalisation.

    `fingerprint` is the digest of the source's content, so two folders with the same images share every job
    and one changed pixel shares none. `validation_per_class` images of each class are cut from the training
    split, a number for all classes or one for each; `train_per_class` and `test_per_class` keep only that many
    (reduced scale), None keeps all.

    With a `subset` this is one phase of class-incremental learning: the images of these classes, taken from the whole
    dataset, which is the job's parent, and normalised as that is; labels count from 0.
    """

    kind: ClassVar[Kind] = "dataset"
    version: ClassVar[int] = 1
    placement: ClassVar[frozenset[str]] = frozenset(
        {"layout", "path", "image_field", "label_field", "test", "size", "called", "licence", "url"}
    )
    later: ClassVar[frozenset[str]] = frozenset({"subset"})

    name: str
    fingerprint: str
    channels: Count
    height: Count
    width: Count
    classes: Annotated[int, Field(ge=2)]
    train_images: Count
    normalise: str
    validation_per_class: Index | Annotated[tuple[Index, ...], Field(strict=False)]
    train_per_class: Count | None = None
    test_per_class: Count | None = None
    split_seed: Index = 0
    subset: Classes = ()

    layout: str = "auto"
    path: str | None = None
    image_field: str | None = None
    label_field: str | None = None
    test: str | None = None
    size: Count | None = None
    called: str = ""  # by people; '' is the name
    licence: str = ""
    url: str = ""

    def title(self) -> str:
        """The dataset, its normalisation, and of a phase its classes."""
        phase = f"-classes-{'-'.join(map(str, self.subset))}" if self.subset else ""
        return f"{self.name}-{self.normalise}{phase}"


class TransitionSpec(SgdSpec):
    """A link of the chain: the previous start trained on S_1..S_{i-1} at the last learned step size.

    `on` the `newest` set alone it is trained without conditioning (Table 4; facts 5.6).
    """

    later: ClassVar[frozenset[str]] = SgdSpec.later | {"on"}

    on: Literal["union", "newest"] = "union"


class ExpertsSpec(Spec):
    """A batch of `count` experts of one stage, numbered from `first`.

    Stage 1 starts from random weights; stage i > 1 starts where each expert's own chain stands, so its
    parents are the same batch of experts of stage i-1 and the sets S_1..S_{i-1}. `partition` limits the real images to
    those whose forgetting score lies in [low, high) (Table 6).
    """

    kind: ClassVar[Kind] = "experts"
    version: ClassVar[int] = 1

    stage: Count
    first: Index
    count: Count
    network: NetworkSpec
    real: SgdSpec
    transition: TransitionSpec | None = None
    partition: Counts | None = None
    seed: Index = 0

    def title(self) -> str:
        """The network, the stage, and which experts."""
        last = self.first + self.count - 1
        return f"{self.network.architecture}-stage{self.stage}-{self.first}to{last}-seed{self.seed}"


class ForgettingSpec(Spec):
    """How often each training image was right and then wrong (Toneva et al.; facts 8).

    With `experts` as parents their correctness streams are counted and nothing is trained; else `runs` networks are
    trained here and their counts summed. With `levels` the count of an image gives way to the rank it has by it in its
    class, in so many equal levels from 0.
    """

    kind: ClassVar[Kind] = "forgetting"
    version: ClassVar[int] = 1
    later: ClassVar[frozenset[str]] = frozenset({"levels"})

    network: NetworkSpec
    training: SgdSpec
    runs: Count = 1
    never_learned: NeverLearned = "zero"
    levels: Count | None = None
    seed: Index = 0

    def title(self) -> str:
        """The network and how long it is watched."""
        return f"{self.network.architecture}-{self.training.epochs}ep-seed{self.seed}"


class SelectSpec(Spec):
    """A synthetic set made of real images: the selection baselines (paper section 5.1; facts 8).

    `herding` and `k_center` look at the features of the first of their parents in `experts`, `forgetting` at the scores
    of its parent. `imported` takes no real image: the set is that of its parent in `source`.
    """

    kind: ClassVar[Kind] = "select"
    version: ClassVar[int] = 1

    rule: Rule
    ipc_total: Annotated[Count, stored_as("ipc_total", "ipc")]
    draw: Index = 0
    seed: Index = 0

    def title(self) -> str:
        """The rule, how many images per class, and which draw."""
        return f"{self.rule}-ipc{self.ipc_total}-draw{self.draw}-seed{self.seed}"


class ChoiceSpec(Frozen):
    """Which iterate of a stage is kept: the best on the held-out split, the last, or, by name, on test.

    `test` repeats the reference's choice on the test split (facts 4.3, a leak) and is never a default. Candidates are
    the iterates after `every` iterations, twice as many, and so on, and the last one. With `initial_not_final` they are
    the initial images, those after `every` iterations, and so on, but not the last one, as in PDD's code (facts 5.4).
    """

    later: ClassVar[frozenset[str]] = frozenset({"initial_not_final"})

    by: Choice = "validation"
    every: Count = 100
    networks: Count = 5
    initial_not_final: bool = False
    training: SgdSpec | None = None
    """How a candidate's networks are trained; not needed for `last`."""

    @model_validator(mode="after")
    def _a_contest_needs_training(self) -> ChoiceSpec:
        if self.by != "last" and self.training is None:
            raise PydanticCustomError("training", "give choice.training, or choose the last iterate (by: last)")
        if self.by == "last" and self.initial_not_final:
            raise PydanticCustomError(
                "initial", "initial_not_final leaves the last iterate out; leave it or by: last out"
            )
        return self


class DistilSpec(Spec):
    """Stage i of progressive distillation around one base method (paper section 4.1, Algorithm 1).

    `settings` are the base method's own numbers; its module in `workers.methods` validates them before
    anything starts. With `conditioning` the frozen sets S_1..S_{i-1} take part in the matching objective; they are
    frozen no more with an `earlier_rate`, the share of the image learning rate at which they go on learning (A3.2).

    A method without experts starts from networks that it makes itself; from stage 2 on each of them goes through
    S_1, then S_1+S_2, and so on by `transition` first (facts 6.2). `starts` is how many such networks there are
    before they are used again; None, as published, makes a new one every time. `factor` f keeps f*f training images
    in each stored one (IDC's multi-formation, facts 3.5). `partition` limits the real images as it does for experts.
    `clustering` is the k-means of representative images (DREAM). `labels` of None are hard: the images' classes.
    """

    kind: ClassVar[Kind] = "distil"
    version: ClassVar[int] = 1
    placement: ClassVar[frozenset[str]] = frozenset({"checkpoint_every"})
    later: ClassVar[frozenset[str]] = frozenset(
        {"factor", "transition", "starts", "partition", "earlier_rate", "clustering", "labels"}
    )

    method: str
    stage: Count
    ipc_per_stage: Annotated[Count, stored_as("ipc_per_stage", "ipc")]
    network: NetworkSpec
    iterations: Count
    image: ImageOptimiserSpec
    init: Init = "real"
    factor: Count = 1
    conditioning: bool = True
    transition: TransitionSpec | None = None
    starts: Count | None = None
    partition: Counts | None = None
    earlier_rate: Fraction = 0.0
    clustering: Clustering = "sklearn"
    labels: LabelSpec | None = None
    choice: ChoiceSpec
    settings: Settings
    seed: Index = 0

    checkpoint_every: Count = 50

    def title(self) -> str:
        """The base method, the stage, and its new images per class."""
        return f"{self.method}-stage{self.stage}-ipc{self.ipc_per_stage}-seed{self.seed}"


class EvaluateSpec(Spec):
    """Train one random network on the sets and test it (facts 5.5, 9).

    `training.epochs` counts the epochs of every link. `lr` of None uses each stage's learned step size. In
    class-incremental learning (Table 7) `phases` holds the classes of each phase so far: the sets come phase by phase,
    their labels count inside their phase, and only test images of these classes are asked about.

    With `best_of` above 1 the test split is looked at so many times during the last link, at even distances, and the
    best accuracy is the result, as IDC and DREAM report it (facts 6.1): a choice on test images, never a default.
    """

    kind: ClassVar[Kind] = "evaluate"
    version: ClassVar[int] = 1
    later: ClassVar[frozenset[str]] = frozenset({"start", "phases", "best_of"})

    mode: Mode = "progressive"
    network: NetworkSpec
    training: SgdSpec
    start: Start = "random"
    best_of: Count = 1
    phases: Annotated[tuple[Classes, ...], Field(strict=False)] = ()
    index: Index
    seed: Index = 0

    def title(self) -> str:
        """The network, the mode, and which network of a table's cell."""
        return f"{self.network.architecture}-{self.mode}-net{self.index}-seed{self.seed}"


class FullSpec(Spec):
    """Train one random network on the whole training split: the upper bound of a table."""

    kind: ClassVar[Kind] = "full"
    version: ClassVar[int] = 1

    network: NetworkSpec
    training: SgdSpec
    index: Index
    seed: Index = 0

    def title(self) -> str:
        """The network, and which one of a table's cell."""
        return f"{self.network.architecture}-net{self.index}-seed{self.seed}"
