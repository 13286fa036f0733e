"""A set, or experts, in the files that other programs read.

`mtt`: those of the published code of MTT and PDD (`workers.data.published`), for sets and for a batch of experts.
`ddranking`: what DD-Ranking scores, the field's benchmark (the package `ddranking`, 0.2): all images in one tensor,
hard labels, the learning rate, a configuration with the protocol by which the set was measured here, and the program
that scores it. DD-Ranking trains on all images at once and knows three data sets, each with constants of its own;
images that were normalised with others are brought to those, whitened ones stay whitened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.text import Text
from torch import Tensor

from jobs.datasets import NORMALISATIONS
from jobs.errors import BadInput, Damaged
from jobs.specs import DatasetSpec, ExpertsSpec
from orchestrator.export.chain import ExportSource, Measurement, spec_of
from orchestrator.export.writer import digests, new_folder
from workers.data import dataset as datasets
from workers.data import published, synthetic_set
from workers.data.preprocess import Affine
from workers.store.store import Store
from workers.store.trajectories import TRAJECTORIES, Trajectories
from workers.training.students import parameter_shapes, schedule_of

FORMATS = ("mtt", "ddranking")
_RANKED = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny-imagenet": "TinyImageNet"}
"""The data sets that DD-Ranking knows, with its names for them."""
_THEIR_CONSTANTS = {"cifar10": "cifar10", "cifar100": "cifar10", "tiny-imagenet": "tiny-imagenet"}
"""Whose mean and standard deviation DD-Ranking takes for each."""
_AUGMENTATION = {
    "flip": 0.5,
    "rotate": 15.0,
    "saturation": 2.0,
    "brightness": 1.0,
    "contrast": 0.5,
    "scale": 1.2,
    "crop": 0.125,
    "cutout": 0.5,
}
"""The constants of DSA, as DD-Ranking names them (facts 3.1)."""
_ALL_OPERATIONS = "color_crop_cutout_flip_scale_rotate"
_THEIR_WIDTH = 128
_TEST_EVERY = 10
"""Epochs between DD-Ranking's tests, of which it takes the best."""
_ABOUT_SOFT_LABELS = {
    "mtt": "labels_best.pt holds logits, as DATM's does: networks are trained towards their softmax",
    "ddranking": "the set has soft labels, which were left out: its score by hard labels is that of another set",
}
"""What the other program must know of a set that has soft labels."""
_PROGRAM = """\
# The label-robust score of this set: pip install ddranking, then python score.py
import torch
from ddranking.config import Config
from ddranking.metrics import LabelRobustScoreHard, hard_label

# 0.2.0 counts every score twice, which leaves its mean as it is, and then cannot save them beside the accuracies.
hard_label.save_results = lambda *_: None

if __name__ == "__main__":
    config = Config.from_file("config.yaml")
    config.update({"device": "cuda" if torch.cuda.is_available() else "cpu"})
    images, labels, rate = (torch.load(f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr"))
    print(LabelRobustScoreHard(config).compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=rate))
"""


@dataclass(frozen=True)
class ExportedFiles:
    """A folder with files for another program."""

    format: str
    folder: Path
    keys: tuple[str, ...]
    notes: tuple[str, ...]
    """Where the other program does otherwise than was measured here."""
    files: dict[str, str]
    """The sha256 of each file."""

    def to_json(self) -> dict[str, Any]:
        """As `export --for --json` prints it."""
        lists = {"keys": list(self.keys), "notes": list(self.notes)}
        return {"exit": 0, "format": self.format, "folder": str(self.folder), **lists, "files": self.files}

    def lines(self) -> Iterator[Text]:
        """The same for people."""
        yield Text(f"{self.folder}: {', '.join(self.files)}")
        yield from map(Text, self.notes)


def write_set(folder: Path, wanted: str, source: ExportSource, store: Store) -> ExportedFiles:
    """Write the union of a chain's sets for another program.

    Args:
        folder: where it shall be; absent or empty.
        wanted: which program.
        source: the sets.
        store: where their files are.

    Raises:
        BadInput: the folder holds something, or the program cannot take such a set.
    """
    sets = synthetic_set.newest(store, [manifest.key for manifest in source.sets])
    images, labels = (torch.cat(parts) for parts in zip(*(each.expanded() for each in sets), strict=True))
    scaled = [(each.logits / each.temperature, each.factor) for each in sets if each.logits is not None]
    logits = [rows.repeat_interleave(factor**2, 0) for rows, factor in scaled]
    notes: tuple[str, ...] = (_ABOUT_SOFT_LABELS[wanted],) if logits else ()
    with new_folder(folder) as beside:
        if wanted == "mtt":
            published.write_set(beside, images, torch.cat(logits) if logits else labels, sets[-1].step_size)
        else:
            notes += _write_ranked(beside, images, labels, sets[-1].step_size, source, store)
        files = digests(beside)
    return ExportedFiles(wanted, folder.expanduser().absolute(), source.keys.sets, notes, files)


def write_experts(folder: Path, wanted: str, key: str, store: Store) -> ExportedFiles:
    """Write a batch of experts as the published code does.

    Args:
        folder: where it shall be; absent or empty.
        wanted: must be `mtt`.
        key: of the batch.
        store: where its files are.

    Raises:
        BadInput: there is no such batch, the folder holds something, or the program takes no experts.
        Damaged: a file is not what its manifest says.
    """
    if wanted != "mtt" or not store.has(key):
        fix = "experts are written --for mtt" if wanted != "mtt" else "no experts have this key"
        raise BadInput("command line", "--key", key, fix)
    if complaints := store.verify(key):
        raise Damaged(f"{'; '.join(complaints)}: run the experiment again, which makes it anew")
    manifest = store.manifest(key)
    spec, data = spec_of(manifest), spec_of(store.manifest(manifest.parents["dataset"][0]))
    assert isinstance(spec, ExpertsSpec) and isinstance(data, DatasetSpec)
    shapes = parameter_shapes(spec.network, (data.channels, data.height, data.width), data.classes)
    rows = Trajectories([store.path(key, TRAJECTORIES)])
    snapshots = (
        torch.stack([rows.parameters(expert, epoch) for epoch in range(rows.epochs + 1)]) for expert in range(len(rows))
    )
    with new_folder(folder) as beside:
        published.write_experts(beside, snapshots, shapes)
        files = digests(beside)
    return ExportedFiles(wanted, folder.expanduser().absolute(), (key,), (), files)


def _write_ranked(
    folder: Path, images: Tensor, labels: Tensor, step_size: float | None, source: ExportSource, store: Store
) -> tuple[str, ...]:
    """Write what DD-Ranking takes; the notes say where it does otherwise than was measured."""
    name = source.data.name
    if name not in _RANKED:
        fix = f"DD-Ranking knows {', '.join(_RANKED)} only; export a set of one of them"
        raise BadInput("command line", "--for ddranking, dataset", name, fix)
    transform = datasets.read_transform(store.path(source.dataset.key, datasets.TRANSFORM))
    whitened = not isinstance(transform, Affine)
    if isinstance(transform, Affine):
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in NORMALISATIONS[_THEIR_CONSTANTS[name]])
        images = (transform.inverse(images) - mean) / std
    measured = min(_of_all_stages(source), key=_unlike_theirs)
    rate = measured.spec.training.lr if measured.spec.training.lr is not None else step_size
    for file, content in {"images": images.contiguous(), "labels": labels.clone(), "lr": rate}.items():
        torch.save(content, folder / f"{file}.pt")
    settings = _configuration(measured, source, len(labels) // source.data.classes, whitened)
    words = yaml.safe_dump(settings, sort_keys=False)
    (folder / "config.yaml").write_text(words, encoding="utf-8")
    (folder / "score.py").write_text(_PROGRAM, encoding="utf-8")
    return tuple(_differences(measured, whitened))


def _of_all_stages(source: ExportSource) -> list[Measurement]:
    return [measured for measured in source.measured if measured.stage == len(source.sets)]


def _unlike_theirs(measured: Measurement) -> tuple[bool, bool, bool]:
    """Sorts what DD-Ranking does, a ConvNet on all images at once with the best of its tests, before anything else."""
    at_once = measured.stage == 1 or measured.spec.mode == "union"
    return measured.spec.network.architecture != "convnet", not at_once, measured.spec.best_of != _tests(measured)


def _tests(measured: Measurement) -> int:
    """How many times DD-Ranking would test; never in fewer epochs than ten."""
    return schedule_of(measured.spec.training).epochs // _TEST_EVERY


def _configuration(measured: Measurement, source: ExportSource, ipc: int, whitened: bool) -> dict[str, Any]:
    """The protocol of a measurement in DD-Ranking's words."""
    training, network = measured.spec.training, measured.spec.network
    schedule = schedule_of(training)
    augmented = training.augmentation != "none"
    norm = {"batch": "-BN"}.get(network.norm, "")
    return {
        "dataset": _RANKED[source.data.name],
        "real_data_path": "./dataset/",
        "ipc": ipc,
        "im_size": [source.data.height, source.data.width],
        "model_name": f"ConvNet-{network.blocks}{norm}",
        "use_torchvision": False,
        "data_aug_func": "dsa" if augmented else None,
        "aug_params": dict(_AUGMENTATION) if augmented else None,
        "custom_train_trans": None,
        "custom_val_trans": None,
        "use_zca": whitened,
        "optimizer": "sgd",
        "lr_scheduler": "step",
        "step_size": schedule.drops[0] if schedule.drops else schedule.epochs,
        "weight_decay": training.weight_decay,
        "momentum": training.momentum,
        "num_eval": len(measured.values),
        "num_epochs": schedule.epochs,
        "syn_batch_size": training.batch_size,
        "real_batch_size": 256,
        "num_workers": 0,
        "save_path": "./score.csv",
        "random_data_format": "tensor",
        "random_data_path": None,
        "eval_full_data": True,
    }


def _differences(measured: Measurement, whitened: bool) -> Iterator[str]:
    """What DD-Ranking does otherwise than the measurement, as sentences."""
    training, network = measured.spec.training, measured.spec.network
    theirs = network.architecture == "convnet" and network.norm in ("instance", "batch")
    if not theirs or network.channels != _THEIR_WIDTH:
        yield (
            f"measured on {network.architecture} of width {network.channels} with {network.norm} norm; "
            f"DD-Ranking takes a ConvNet of width {_THEIR_WIDTH}"
        )
    if measured.stage > 1 and measured.spec.mode != "union":
        yield f"measured by {measured.spec.mode} training over {measured.stage} stages; DD-Ranking has them all at once"
    if training.augmentation not in ("none", _ALL_OPERATIONS) or training.family == "idc" or training.cutmix:
        yield f"measured with {training.augmentation} ({training.family}); DD-Ranking augments by all operations of DSA"
    if measured.spec.best_of != _tests(measured):
        yield "DD-Ranking takes the best of its tests, one every 10 epochs (`protocol: dd_ranking` in an arm does, too)"
    if whitened:
        yield "DD-Ranking fits its whitening to all training images, of which a part was held out here"
