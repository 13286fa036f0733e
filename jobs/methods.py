"""The base methods' own numbers: what the `settings` of a recipe's `distil` section may say, method by method.

They stand apart from the methods (`workers.methods`), which take torch along: what a user wrote is checked, and what is
done already is found, without it. A method from outside brings its own `Settings`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jobs.fields import Count, Fraction, Frozen, Index, NonNegative, Positive
from jobs.specs import Augmentation, SgdSpec

Engine = Literal["unrolled", "adjoint", "compiled", "graphs"]
"""How trajectory matching differentiates: through the whole graph of its inner steps, step by step (`adjoint`), or step
by step in compiled code (`compiled`) or in recorded CUDA graphs (`graphs`), where there is a card that records."""

NO_BATCH_NORM = "goes through images a few at a time, which batch norm forbids: take another engine or norm"
"""What to do where engine `compiled` meets a network whose images depend on each other."""


class NetworkTraining(SgdSpec):
    """How the matching network is trained between image steps; here the learning rate is no option."""

    lr: Positive


class GradientSettings(Frozen):
    """DC's and DSA's own numbers; `training.epochs` is the published inner loop."""

    outer: Count
    """Image steps an iteration, each with all classes."""
    batch_real: Count
    """Real images of a class in a match."""
    augmentation: Augmentation = "none"
    """Of both sides of a match; `none` is DC."""
    classes_at_once: Count = 1
    """Classes that are matched in one call: many launch less on a card, one needs the least memory."""
    training: NetworkTraining
    """Between image steps, on the synthetic set."""


class DmSettings(Frozen):
    """DM's own numbers."""

    batch_real: Count
    """Real images of a class in a match."""
    augmentation: Augmentation = "none"
    """Of both sides of a match, by one draw for each class."""


class IdcSettings(Frozen):
    """IDC's own numbers; `training.epochs` passes are made over the real images of a round, one as published."""

    rounds: Count
    """Image steps of each class an iteration: the published inner loop."""
    batch_real: Count
    """Real images of a class in a match."""
    max_synthetic: Count = 128
    """Decoded images of a class in a match at most; of more a random part."""
    distance: Literal["l1", "l2"] = "l2"
    augmentation: Augmentation = "none"
    """Of both sides of a match, in IDC's combination."""
    n_data: Count
    """Real images on which the network trains between rounds, rounded up to whole batches."""
    classes_at_once: Count = 1
    """Classes that are matched in one call: many launch less on a card, one needs the least memory."""
    training: NetworkTraining


class DreamSettings(IdcSettings):
    """DREAM's own numbers; `batch_real` counts the clusters of a class, one image each."""

    recluster_every: Count
    """Rounds after which the clusters are made anew."""


class Weights(Frozen):
    """What the terms of the loss weigh."""

    layers: Annotated[tuple[NonNegative, ...], Field(strict=False, min_length=2)]
    """Alignment of each block's map, and last of the pooled one; a shallower network takes the last of them."""
    pooled: NonNegative
    """Alignment of the flattened pooled map, which counts it once more."""
    discrimination: NonNegative
    """Of a sum over all real images of the step."""


class CafeSettings(Frozen):
    """CAFE's own numbers; accuracies are shares between 0 and 1."""

    batch_real: Count
    """Real images of a class in an image step."""
    weights: Weights
    lr_network: Positive
    batch_train: Count
    """Synthetic images in a step of the inner loop."""
    probe: Count
    """Real images of a class whose accuracy is watched."""
    window: Annotated[int, Field(ge=2)]
    settled: NonNegative
    """The outer loop ends when a window of accuracies spans less (lambda 1)."""
    moved: NonNegative
    """The inner loop ends when a window of accuracies spans more (lambda 2)."""
    most_steps: Count
    """Image steps of the outer loop at most."""
    most_epochs: Count
    """Epochs of each inner loop at most."""
    augmentation: Augmentation = "none"
    """Of both sides of a match, by one draw for each class, and of the inner loop image by image; `none` is CAFE."""


class FrepoSettings(Frozen):
    """FRePo's own numbers."""

    batch: Count
    """Real images that are predicted in an iteration, of all classes together."""
    pool: Count
    """Networks that train on the synthetic images at the same time."""
    most_updates: Count
    """Training steps after which a network of the pool gives way to a new one."""
    lr_network: Positive
    """Of Adam, in the pool."""
    batch_train: Count = 500
    """Synthetic images of a training step at most; of more a random part."""
    ridge: Positive = 1e-6
    """What is added to the kernel's diagonal, as a share of its mean."""


class TrajectorySettings(Frozen):
    """What methods that match trajectories have in common. `batch_syn` of None is classes * ipc_per_stage (facts 5.3).

    Inner batches are chunks of a random order of the union, which goes on from one iteration to the next (`carried`),
    or is drawn `anew` in each, as in the published code (facts 4.2). Candidates are judged by networks that start where
    the stage's `experts` did, as in PDD's code, or from weights of their own (`random`), as in MTT's (facts 4.3, 5.4).
    """

    syn_steps: Count
    expert_epochs: Count
    max_start_epoch: Count
    min_start_epoch: Index = 0
    batch_syn: Count | None = None
    step_size_init: Positive
    lr_step_size: Positive
    step_size_momentum: Fraction = 0.5
    step_size_form: Literal["linear", "log"] = "linear"
    least_step_size: Positive | None = None
    """Below which `linear` does not go, as in HaBa's code; None: wherever it goes."""
    step_size_clamp: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Largest change of the logarithm in one iteration; `log` only."""
    augmentation: Augmentation = "none"
    image_order: Literal["carried", "anew"] = "carried"
    candidates_start: Literal["experts", "random"] = "experts"

    @model_validator(mode="after")
    def _some_epoch_to_start_from(self) -> Self:
        if self.min_start_epoch >= self.max_start_epoch:
            raise PydanticCustomError("start", "min_start_epoch must be below max_start_epoch")
        return self

    @property
    def last_target(self) -> int:
        """The last epoch that is read of the experts: `expert_epochs` after the last start epoch."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """The first epoch at which a match may start in an iteration, counted from 0, and the one after the last."""
        return self.min_start_epoch, self.max_start_epoch


class MttSettings(TrajectorySettings):
    """MTT's own numbers."""

    engine: Engine | None = None
    """None: the whole graph, but the adjoint where that graph would take more than `jobs.memory.GRAPH_LIMIT` bytes, a
    rule that knows nothing of the host."""


class DatmSettings(MttSettings):
    """DATM's own numbers. The epochs at which a match may start grow from the first ones to all.

    They are [min_start_epoch, b) with b = min_start_epoch + `first_span` in the first iteration, rising on a line to
    max_start_epoch at iteration `grown_at`.
    """

    first_span: Count | None = None
    """None: all start epochs from the first iteration on."""
    grown_at: Count | None = None
    most_loss: Positive | None = None
    """An iteration whose matching loss is higher moves nothing; None: each moves."""

    @model_validator(mode="after")
    def _a_range_that_grows(self) -> Self:
        if (self.first_span is None) != (self.grown_at is None):
            raise PydanticCustomError("range", "give first_span and grown_at together, or neither")
        if self.first_span is not None and self.first_span > self.max_start_epoch - self.min_start_epoch:
            raise PydanticCustomError("range", "first_span must be at most max_start_epoch - min_start_epoch")
        return self

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """The first epoch at which a match may start in an iteration, counted from 0, and the one after the last."""
        if self.first_span is None or self.grown_at is None:
            return super().start_epochs(iteration)
        rest = self.max_start_epoch - self.min_start_epoch - self.first_span
        grown = self.first_span + rest * iteration // self.grown_at
        return self.min_start_epoch, min(self.max_start_epoch, self.min_start_epoch + grown)


class TeslaSettings(TrajectorySettings):
    """TESLA's own numbers: its gradient is of one form, so there is no engine to choose."""


class ExtractorSettings(Frozen):
    """How HaBa's extractor of features learns: by SGD on three losses, each with its weight."""

    lr: Positive
    momentum: Fraction
    classification: NonNegative
    """Of the cross-entropy of its classes."""
    distance: NonNegative
    """Of how far two images of one basis are apart."""
    contrast: NonNegative
    """Of the contrast between images of one class and all others."""


class HabaSettings(MttSettings):
    """HaBa's own numbers; `batch_syn` counts bases, one image of each in an inner step, and None takes all new ones."""

    hallucinators: Count
    """Images that a basis stands for at most; a class of fewer images has as many hallucinators as images."""
    lr_hallucinators: Positive
    """Theirs; optimiser and momentum are those of the bases, which are `distil.image`'s."""
    start: Literal["random", "identity"] = "random"
    """The hallucinators' first weights: as drawn, or passing a basis on with a tenth of such a draw added."""
    similarity: NonNegative
    """What the similarity of two images of one basis weighs beside the matching loss."""
    extractor: ExtractorSettings


class RfadSettings(Frozen):
    """RFAD's own numbers."""

    batch: Count
    """Real images that are predicted in an iteration, of all classes together."""
    networks: Count
    """New networks of an iteration, whose features stand side by side."""
    loss: Literal["squared", "platt"] = "platt"
    """Of the predictions: squared, or the cross-entropy of the predictions times a learned number."""
    lr_scale: Positive = 0.01
    """Of Adam on that number's logarithm."""
    ridge: Positive
    """What is added to the kernel's diagonal, as a share of its mean."""


class UnrolledSettings(Frozen):
    """DD's and RaT-BPTT's own numbers; `window` None differentiates all inner steps, which is DD."""

    syn_steps: Count
    """Training steps on the synthetic images at most."""
    window: Count | None = None
    """How many of the last of them are differentiated."""
    ends: Literal["fixed", "random"] = "fixed"
    """Whether training always makes `syn_steps` steps, or a random number from `window` to there."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Of the inner steps; `sgd` has no momentum."""
    batch_syn: Count | None = None
    """Synthetic images of an inner step; None takes the whole union."""
    batch: Count
    """Real images of the loss, of all classes together."""
    step_size_init: Positive
    lr_step_size: NonNegative = 0.0
    """Of Adam on the step sizes, one for each inner step, behind a softplus; 0 leaves them as they are."""
    augmentation: Augmentation = "none"
    """Of the inner steps."""

    @model_validator(mode="after")
    def _the_window_lies_in_the_steps(self) -> UnrolledSettings:
        if self.window is not None and self.window > self.syn_steps:
            raise PydanticCustomError("window", "window must be at most syn_steps")
        if self.ends == "random" and self.window is None:
            raise PydanticCustomError("window", "with ends: random give a window below syn_steps")
        return self


SETTINGS: dict[str, type[Frozen]] = {
    "cafe": CafeSettings,
    "cafe_dsa": CafeSettings,
    "datm": DatmSettings,
    "dc": GradientSettings,
    "dd": UnrolledSettings,
    "dm": DmSettings,
    "dream": DreamSettings,
    "dsa": GradientSettings,
    "frepo": FrepoSettings,
    "haba": HabaSettings,
    "idc": IdcSettings,
    "mtt": MttSettings,
    "tesla": TeslaSettings,
    "rat_bptt": UnrolledSettings,
    "rfad": RfadSettings,
}
"""By base method."""
SOFT_LABELS = frozenset({"datm", "frepo", "mtt", "rfad", "tesla"})
"""The base methods that can match with soft labels."""
