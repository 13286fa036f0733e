"""The numbers of a recipe, section by section, as they must be once all layers are laid over each other."""

from __future__ import annotations

from jobs.fields import Count, Fraction, Frozen, NonNegative, Positive, Settings
from jobs.learning import ImageOptimiserSpec, LabelSpec
from jobs.specs import (
    Augmentation,
    ChoiceSpec,
    Clustering,
    Drop,
    Family,
    Init,
    Mode,
    MomentumAtDrop,
    NetworkSpec,
    NeverLearned,
    Precision,
    SgdSpec,
    Start,
    TrainingEngine,
    TransitionSpec,
)


class DatasetNumbers(Frozen):
    """Normalisation, the held-out share of the training split, and how much of the data is used."""

    normalise: str
    validation_fraction: Fraction
    train_per_class: Count | None = None
    test_per_class: Count | None = None


class ExpertsNumbers(Frozen):
    """The experts of a stage: `number` of them in jobs of `expert_batch`; the first one's features select images."""

    number: Count
    expert_batch: Count
    real: SgdSpec
    """Stage 1; later stages train `later_epochs` on real data with otherwise the same numbers."""
    later_epochs: Count | None = None


class ScoresNumbers(Frozen):
    """How forgetting scores come about; see `jobs.specs.ForgettingSpec`."""

    training: SgdSpec
    runs: Count = 1
    never_learned: NeverLearned = "zero"
    increment: Count = 3
    """Width of a partition: stage i has the scores [increment * (i-1), increment * i) (Table 6)."""
    levels: Count | None = None
    """Instead: scores are ranks in so many levels, and stage i has the i-th one; see `jobs.experiment.Partition`."""

    def bounds(self, stage: int) -> tuple[int, int]:
        """The scores of a stage's images: at least the first number, below the second."""
        width = 1 if self.levels else self.increment
        return width * (stage - 1), width * stage


class DistilNumbers(Frozen):
    """One stage of distillation, or `iterations_total` over all of them; `settings` belong to the base method."""

    iterations: Count
    iterations_total: Count | None = None
    image: ImageOptimiserSpec
    init: Init = "real"
    factor: Count = 1
    conditioning: bool = True
    earlier_rate: Fraction = 0.0
    starts: Count | None = None
    clustering: Clustering = "sklearn"
    labels: LabelSpec | None = None
    choice: ChoiceSpec
    settings: Settings
    checkpoint_every: Count = 50


class EvaluateNumbers(Frozen):
    """How a network is trained on the sets.

    Exactly one of `epochs` (of every stage) and `epochs_total` (the paper's int(total / (p + 1)) for a prefix
    of p stages, section 5.1) is given. A network that is trained on the union at once, or on each set in turn, is
    trained as one stage is, or for `epochs_alone` (Table 3; facts 6.3). `networks` says which network an architecture's
    name stands for: another size at reduced scale, or the IDC family's for a method whose ResNets are those. `start` is
    about the architecture that was distilled with; others always start from random weights. `best_of` is the number of
    tests of which `jobs.specs.EvaluateSpec` takes the best.
    """

    epochs: Count | None = None
    epochs_total: Count | None = None
    epochs_alone: Count | None = None
    lr: Positive | None = None
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    augmentation: Augmentation = "none"
    family: Family = "mtt"
    cutmix: Fraction = 0.0
    drop: Drop = "half"
    extra_epoch: bool = False
    momentum_at_drop: MomentumAtDrop = "kept"
    engine: TrainingEngine = "eager"
    precision: Precision = "float32"
    temperature: Positive | None = None
    best_of: Count = 1
    start: Start = "random"
    networks: dict[str, NetworkSpec] = {}

    def training(self, prefix: int, mode: Mode = "progressive") -> SgdSpec:
        """The SGD numbers of every link when a prefix of `prefix` stages is evaluated in a mode."""
        shared = self.model_dump(include=set(SgdSpec.model_fields) - {"epochs"})
        return SgdSpec(epochs=max(1, self._epochs(prefix, mode)), **shared)

    def _epochs(self, prefix: int, mode: Mode) -> int:
        """Epochs of a link; outside of `progressive` a link is like the only one of a single stage."""
        if mode != "progressive" and self.epochs_alone is not None:
            return self.epochs_alone
        if self.epochs is not None:
            return self.epochs
        return (self.epochs_total or 0) // ((prefix if mode == "progressive" else 1) + 1)


class Recipe(Frozen):
    """The resolved numbers of one method in one setting; absent sections are not needed by that method."""

    dataset: DatasetNumbers
    network: NetworkSpec
    evaluate: EvaluateNumbers
    experts: ExpertsNumbers | None = None
    scores: ScoresNumbers | None = None
    transition: TransitionSpec | None = None
    distil: DistilNumbers | None = None
