"""The card of an exported set: its README, with everything that a stranger needs and a program that trains on it.

The card promises nothing that was not measured, names its scale, and repeats one line of its own table in code: the
same network, schedule and seeds, so that on a CPU the program prints the accuracy in the table. Words and code stand in
`templates/`; here is what they are filled with.

Left out: reading the store (`orchestrator.export.chain`) and the other files (`orchestrator.export.writer`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from jobs.architectures import first_map
from jobs.datasets import DATASETS
from jobs.keys import seed_from
from jobs.specs import DatasetSpec, NetworkSpec
from orchestrator.export.chain import ExportSource, Measurement
from orchestrator.results.result_table import SCALES
from workers.data.preprocess import Affine, Zca
from workers.training.students import schedule_of

UNKNOWN_SCALE = "scale: not known, since the set was exported by its key; never take it for a reproduction of the paper"
UNKNOWN_LICENCE = "unknown: see your source"
PICTURES = {split: f"data/{split}-00000-of-00001.parquet" for split in ("train", "test")}
"""The files of pictures; named so, `load_dataset("parquet", data_dir=...)` takes them and not the exact ones."""
FOLDERS = "folders"
_NORMS = {
    "instance": "nn.GroupNorm(width, width)",
    "batch": "nn.BatchNorm2d(width)",
    "layer": "nn.LayerNorm([width, sides[block], sides[block]])",
    "group": "nn.GroupNorm({groups}, width)",
    "none": "nn.Identity()",
}
_POOLINGS = {"average": "nn.AvgPool2d(2)", "max": "nn.MaxPool2d(2)", "none": "nn.Identity()"}
_ACTIVATIONS = {
    "relu": "nn.ReLU()",
    "leaky_relu": "nn.LeakyReLU(0.01)",
    "sigmoid": "nn.Sigmoid()",
    "swish": "nn.SiLU()",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the files hold, as far as the card speaks of it.

    `images` counts by stage what networks are trained on, `factor`^2 for each stored image; `step_sizes` are None for
    real images; `tests` is None when the test split stays at home.
    """

    images: tuple[int, ...]
    factor: int
    step_sizes: tuple[float | None, ...]
    class_names: tuple[str, ...]
    transform: Affine | Zca
    tests: int | None
    as_files: bool = False
    """Whether the pictures are there as PNG files in class folders, too."""
    temperature: float | None = None
    """Of the soft labels; None for hard ones."""


def render(source: ExportSource, contents: Contents) -> str:
    """The card as Markdown."""
    return _environment().get_template("card.md.j2").render(_words(source, contents), code=program(source, contents))


def program(source: ExportSource, contents: Contents) -> str:
    """The Python of the card."""
    return _environment().get_template("train.py.j2").render(_code(source, contents))


def name_of(data: DatasetSpec) -> str:
    """What people call a dataset."""
    return data.called or data.name


def licence_of(data: DatasetSpec) -> str:
    """The licence of a dataset in words: the user's, or that of a known one."""
    known = DATASETS[data.name].licence if data.name in DATASETS else UNKNOWN_LICENCE
    return data.licence or known


def hub_licence_of(data: DatasetSpec) -> str:
    """The licence as the Hugging Face Hub has it: one of its short names, such as `cc-by-4.0`, or `other`."""
    if data.licence:
        return data.licence.lower() if re.fullmatch(r"[A-Za-z0-9.+-]+", data.licence) else "other"
    return DATASETS[data.name].hub_licence if data.name in DATASETS else "unknown"


def may_travel(dataset: str) -> bool:
    """Whether the licence of a dataset is known to let everybody pass test images on."""
    return dataset in DATASETS and DATASETS[dataset].may_travel


def folder_names(class_names: Sequence[str]) -> list[str]:
    """The folder of each class; their alphabetical order, which ImageFolder goes by, is that of the labels."""
    plain = [re.sub(r"[^\w .,+()'-]", "-", name).strip(". ") for name in class_names]
    if plain == sorted(set(plain)) and all(plain):
        return plain
    digits = len(str(len(plain) - 1))
    return [f"{label:0{digits}d} {name}".strip() for label, name in enumerate(plain)]


def _torchvision(dataset: str) -> str:
    """The class in torchvision that fetches the test images; '' if there is none."""
    return DATASETS[dataset].torchvision if dataset in DATASETS else ""


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.export"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown and Python, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _words(source: ExportSource, contents: Contents) -> dict[str, Any]:
    data, last, scale, protocol = source.data, source.last_distillation, source.keys.scale, source.protocol
    stages, many = len(source.sets), sum(contents.images)
    title = f"{name_of(data)}, {many} images" + (f" in {stages} stages" if stages > 1 else "")
    return _shared(source, contents) | {
        "front": _front(source, contents, title),
        "title": title,
        "many": many,
        "data": data,
        "selected": last is None,
        "labels": last.labels.words if last is not None and last.labels is not None else "",
        "method": source.keys.method if last is None else last.method,
        "stages": stages,
        "scale": SCALES[scale] if scale else UNKNOWN_SCALE,
        "headline": f"{_accuracy(protocol)} % ({protocol.spec.network.architecture}, n = {len(protocol.values)})",
        "ships_test": contents.tests is not None,
        "pictures": PICTURES,
        "folders": FOLDERS if contents.as_files else "",
        "tests": contents.tests,
        "factor": contents.factor,
        "rows": [_row(row, source, contents) for row in source.measured],
        "classes": [_cell(name) for name in contents.class_names],
        "stage_rows": list(zip(contents.images, (f"{rate:.6g}" for rate in _rates(source, contents)), strict=True)),
        "expected": f"{_accuracy(protocol)} (n = {len(protocol.values)})",
        "licence": licence_of(data),
        "url": data.url,
        "guessing": f"{100 / data.classes:.1f}",
        "origin": source.keys.origin,
        "lineage": list(_lineage(source)),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(source.sets[-1].versions.items())),
        "numbers": [tuple(map(_cell, row)) for row in source.numbers],
    }


def _shared(source: ExportSource, contents: Contents) -> dict[str, Any]:
    """What both the words and the program say."""
    data, transform, training = source.data, contents.transform, source.protocol.spec.training
    affine = isinstance(transform, Affine)
    return {
        "dataset": name_of(data),
        "shape": (data.channels, data.height, data.width),
        "transform": "affine" if affine else "zca",
        "mean": transform.mean.tolist() if affine else None,
        "std": transform.std.tolist() if isinstance(transform, Affine) else None,
        "mode": source.protocol.spec.mode,
        "learned": training.lr is None,
        "temperature": contents.temperature and (training.temperature or contents.temperature),
        "faithful": _faithful(source),
        "test": "shipped" if contents.tests is not None else "torchvision" if _torchvision(data.name) else "yours",
    }


def _code(source: ExportSource, contents: Contents) -> dict[str, Any]:
    data, training = source.data, source.protocol.spec.training
    network, schedule = _network(source), schedule_of(training)
    first, halved = first_map(data.channels, data.height), network.pooling != "none"
    *sides, last_map = (first >> block if halved else first for block in range(network.blocks + 1))
    names = [] if training.augmentation == "none" else training.augmentation.split("_")
    return _shared(source, contents) | {
        "rates": _rates(source, contents),
        "schedule": schedule,
        "drops": tuple(drop for drop in schedule.drops if drop < schedule.epochs),
        "training": training,
        "seeds": [(seed_from(key, "init"), seed_from(key, "train")) for key in source.protocol.keys],
        "torchvision_class": _torchvision(data.name),
        "network": network,
        "norm": _NORMS[network.norm].format(groups=math.gcd(4, network.channels)),
        "pooling": _POOLINGS[network.pooling],
        "activation": _ACTIVATIONS[network.activation],
        "sides": sides,
        "padded": first_map(data.channels, data.height) != data.height,
        "features": network.channels * last_map**2,
        "classes": data.classes,
        "strategy": names,
        "family": training.family,
        "before": [name for name in ("flip", "color") if name in names],
        "geometric": [name for name in names if name in ("crop", "scale", "rotate")],
        "after": [name for name in names if name == "cutout"],
        "align_corners": training.family == "mtt",
        "cutmix": training.cutmix,
    }


def _faithful(source: ExportSource) -> bool:
    """Whether the program trains a network that is in the table."""
    return source.protocol.spec.network.architecture == "convnet"


def _network(source: ExportSource) -> NetworkSpec:
    """The measured ConvNet, else the published one as far as the images allow."""
    measured = source.protocol.spec.network
    if measured.architecture == "convnet":
        return measured
    deepest = first_map(source.data.channels, source.data.height).bit_length() - 1
    return NetworkSpec(architecture="convnet", depth=min(3, deepest))


def _rates(source: ExportSource, contents: Contents) -> list[float]:
    """The learning rate of every stage's link: the recipe's if it has one, else the step size learned with the set."""
    fixed = source.protocol.spec.training.lr
    rates = [fixed if fixed is not None else step_size for step_size in contents.step_sizes]
    assert all(rate is not None for rate in rates), "evaluated without a learning rate"
    return [float(rate) for rate in rates if rate is not None]


def _row(measurement: Measurement, source: ExportSource, contents: Contents) -> Sequence[str]:
    spec = measurement.spec
    per_stage = [count // contents.factor**2 // source.data.classes for count in contents.images[: measurement.stage]]
    sets = (
        "S_1"
        if measurement.stage == 1
        else "S_1 + S_2"
        if measurement.stage == 2
        else f"S_1 + ... + S_{measurement.stage}"
    )
    blocks = f"{spec.network.blocks} blocks" + ("" if spec.network.architecture == "convnet" else " a group")
    network = f"{spec.network.architecture} (width {spec.network.channels}, {blocks})"
    augmented = spec.training.augmentation + (f", CutMix {spec.training.cutmix:g}" if spec.training.cutmix else "")
    accuracy = f"{_accuracy(measurement)} ({len(measurement.values)})"
    return (sets, str(sum(per_stage)), network, spec.mode, str(schedule_of(spec.training).epochs), augmented, accuracy)


def _accuracy(measurement: Measurement) -> str:
    return f"{measurement.mean:.2f} ± {measurement.std:.2f}"


def _lineage(source: ExportSource) -> Iterator[tuple[str, str]]:
    """Each set with what it was made from, then the networks of the program."""
    for manifest in source.sets:
        parents = [
            f"`{keys[0]}`" if len(keys) == 1 else f"{len(keys)} {role}" for role, keys in manifest.parents.items()
        ]
        yield manifest.key, ", ".join(parents)
    for key in source.protocol.keys:
        yield key, "all sets"


def _front(source: ExportSource, contents: Contents, title: str) -> str:
    """The header that the Hugging Face Hub reads."""
    splits = ["train", "test"] if contents.tests is not None else ["train"]
    configs = [
        {
            "config_name": "default",
            "data_files": [{"split": split, "path": PICTURES[split]} for split in splits],
            "default": True,
        },
        {"config_name": "exact", "data_files": [{"split": "train", "path": "exact/train.parquet"}]},
    ]
    many = sum(contents.images) + (contents.tests or 0)
    header = {
        "pretty_name": title,
        "license": hub_licence_of(source.data),
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation"] if source.last_distillation else ["coreset-selection"],
        "size_categories": [next((word for most, word in _SIZES if many < most), "n>1M")],
        "configs": configs,
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _cell(text: str) -> str:
    """Text that a Markdown table shows as it is, on one line."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
