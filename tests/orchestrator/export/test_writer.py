"""Folders for strangers: what is in them, what the card's program does with them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from jobs.errors import BadInput, Damaged
from orchestrator.export import chain as chains
from orchestrator.export import writer
from orchestrator.export.chain import ExportSource
from orchestrator.runs.journal import NAME, Journal
from tests.orchestrator.umask import mask
from tests.workers.workshop import ONE_STAGE, TWO_STAGES, Workshop
from workers.data import dataset, multi_formation, synthetic_set
from workers.data.sources import Source, inspect
from workers.data.synthetic_set import EXACT
from workers.store.manifest import Manifest
from workers.store.processes import Process

TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
RANDOM = {"method": "random", "ipc_per_stage": 1}


def evaluated(folder: Path, *arms: dict[str, Any], **more: Any) -> Workshop:
    """A store in which all networks of these arms were tested."""
    workshop = Workshop.open(folder, *arms, **more)
    for job in workshop.jobs("evaluate"):
        workshop.make(job)
    return workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages, one stage, and random images, all of them tested."""
    return evaluated(tmp_path_factory.mktemp("exporting"), TWO_STAGES, ONE_STAGE, RANDOM)


def made_of(workshop: Workshop, arm: str | None = "PDD+MTT", stages: int | None = None) -> ExportSource:
    return chains.gather(chains.of_experiment(workshop.plan, arm).prefix(stages), workshop.store)


@pytest.fixture(scope="module")
def exported(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> writer.ExportedFolder:
    """The two stages as a folder."""
    return writer.write(tmp_path_factory.mktemp("out") / "set", made_of(workshop), workshop.store)


def program(folder: Path) -> str:
    """The only Python block of a card."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    return str(block)


def run_program(folder: Path, text: str | None = None) -> tuple[float, float, int]:
    """Mean, deviation and number that a card's program prints in a process of its own, which sees no project."""
    command = [sys.executable, "-I", "-W", "error", "-c", program(folder) if text is None else text]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    found = re.fullmatch(r"test accuracy (\S+) ± (\S+) percent \(n = (\d+)\)\n", ended.stdout)
    assert found, ended.stdout
    return float(found[1]), float(found[2]), int(found[3])


# The folder.


def test_the_folder_holds_what_it_says_and_follows_the_umask(exported: writer.ExportedFolder) -> None:
    names = "README.md grid.png provenance.json exact/train.parquet"
    assert set(exported.files) == {*names.split(), TRAIN, TEST, "exact/test.parquet", "exact/transform.npz"}
    for path in [exported.folder, *exported.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask(), path
    assert [path.name for path in exported.folder.parent.iterdir()] == ["set"]


def test_pictures_lie_in_the_hugging_face_layout_with_their_stages(exported: writer.ExportedFolder) -> None:
    table = pq.read_table(exported.folder / TRAIN)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": list("0123456789")}
    assert features["stage"] == {"_type": "Value", "dtype": "int64"}
    assert table.column("stage").to_pylist() == [1] * 10 + [2] * 10
    picture = Image.open(BytesIO(table.column("image")[0]["bytes"].as_py()))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (8, 8), "L")
    test = pq.read_table(exported.folder / TEST)
    assert test.schema.equals(table.schema) and set(test.column("stage").to_pylist()) == {0}


def test_exact_pixels_are_those_of_the_store_bit_for_bit(exported: writer.ExportedFolder, workshop: Workshop) -> None:
    table = pq.read_table(exported.folder / "exact" / "train.parquet")
    pixels = np.array(table.column("pixels").to_pylist(), dtype=np.float32).reshape(-1, 1, 8, 8)
    stored = [synthetic_set.read(workshop.store.path(key, EXACT)) for key in exported.keys]
    assert np.array_equal(pixels, torch.cat([one.images for one in stored]).numpy())
    assert table.column("label").to_pylist() == torch.cat([one.labels for one in stored]).tolist()


def test_pictures_are_the_exact_pixels_clamped_and_rounded(exported: writer.ExportedFolder) -> None:
    exact = pq.read_table(exported.folder / "exact" / "train.parquet").column("pixels").to_pylist()
    with np.load(exported.folder / "exact" / "transform.npz", allow_pickle=False) as constants:
        pixels = np.array(exact, dtype=np.float32) * constants["std"] + constants["mean"]
    pictures = pq.read_table(exported.folder / TRAIN).column("image").to_pylist()
    seen = np.stack([np.asarray(Image.open(BytesIO(one["bytes"]))).ravel() for one in pictures])
    assert np.abs(pixels.clip(0, 1) * 255 - seen).max() <= 0.5 + 1e-3


def test_test_images_are_those_the_networks_were_tested_on(exported: writer.ExportedFolder, workshop: Workshop) -> None:
    images, labels, _ = dataset.read_split(workshop.store.path(workshop.job("dataset").key, "test.arrow"))
    table = pq.read_table(exported.folder / "exact" / "test.parquet")
    assert np.array_equal(np.array(table.column("pixels").to_pylist()).reshape(images.shape), images.numpy())
    assert table.column("label").to_pylist() == labels.tolist() and exported.test == len(labels) == 200


def test_provenance_names_every_ancestor_once(exported: writer.ExportedFolder, workshop: Workshop) -> None:
    document = json.loads((exported.folder / "provenance.json").read_text())
    listed = [one["key"] for one in document["artifacts"]]
    networks = [key for one in made_of(workshop).measured for key in one.keys]
    assert set(listed) == workshop.plan.graph.ancestors([*exported.keys, *networks])
    assert len(listed) == len(set(listed)) and document["sets"] == list(exported.keys)
    assert str(workshop.store.root) not in (exported.folder / "provenance.json").read_text()


def test_the_same_set_gives_the_same_files(exported: writer.ExportedFolder, workshop: Workshop, tmp_path: Path) -> None:
    again = writer.write(tmp_path / "again", made_of(workshop), workshop.store)
    assert again.files == exported.files


# The card.


def test_the_cards_header_is_what_the_hub_reads(exported: writer.ExportedFolder) -> None:
    header = yaml.safe_load((exported.folder / "README.md").read_text().split("---\n")[1])
    assert header["license"] == "cc-by-4.0" and header["task_categories"] == ["image-classification"]
    files = [one["path"] for config in header["configs"] for one in config["data_files"]]
    assert files == [TRAIN, TEST, "exact/train.parquet"]
    assert all((exported.folder / file).is_file() for file in files)


def test_the_card_says_scale_accuracies_step_sizes_keys_sources_and_licence(
    exported: writer.ExportedFolder, workshop: Workshop
) -> None:
    card = (exported.folder / "README.md").read_text()
    accuracies = [workshop.store.manifest(key).extra["accuracy"] for key in exported.protocol.keys]
    assert (
        f"| S_1 + S_2 | 2 | convnet (width 8, 2 blocks) | progressive | 2 | none | {np.mean(accuracies):.2f} ±" in card
    )
    assert "scale: tiny" in card and "not a reproduction" in card
    for key in exported.keys:
        assert f"`{key}`" in card
        assert f"{synthetic_set.read(workshop.store.path(key, EXACT)).step_size:.6g}" in card
    assert "| distil.iterations | 6 | ours: seconds, for tests |" in card
    assert "CC BY 4.0" in card and "{{" not in card and "{%" not in card


def test_the_cards_program_repeats_the_networks_of_the_table(exported: writer.ExportedFolder) -> None:
    mean, std, n = run_program(exported.folder)
    assert (mean, std) == pytest.approx((exported.protocol.mean, exported.protocol.std), abs=0.006)
    assert n == len(exported.protocol.values) == 2


PAPER = {
    "dataset.normalise": "zca",
    "evaluate.augmentation": "color_crop_cutout_flip_scale_rotate",
    "evaluate.extra_epoch": True,
    "evaluate.batch_size": 7,
    "evaluate.epochs_total": 30,
}
IDC = {
    "distil.factor": 2,
    "evaluate.augmentation": "color_crop_cutout_flip_scale_rotate",
    "evaluate.family": "idc",
    "evaluate.cutmix": 0.5,
    "evaluate.drop": "thirds",
    "evaluate.batch_size": 7,
    "evaluate.epochs_total": 30,
}

VARIED = {"network.norm": "layer", "network.pooling": "max", "network.activation": "swish"}
GROUPED = {"network.norm": "group", "network.pooling": "none", "network.activation": "leaky_relu"}
RICH = {"zca and dsa": PAPER, "multi-formation and cutmix": IDC, "layer norm": VARIED, "group norm": GROUPED}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("numbers", RICH.values(), ids=RICH)
def test_the_program_repeats_richer_protocols_too(numbers: dict[str, Any], tmp_path: Path) -> None:
    workshop = evaluated(tmp_path, TWO_STAGES, set=numbers)
    done = writer.write(tmp_path / "out", made_of(workshop), workshop.store)
    mean, std, n = run_program(done.folder)
    assert (mean, std, n) == pytest.approx((done.protocol.mean, done.protocol.std, 2), abs=0.006)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_quickstarts_set_trains_strangers_within_one_standard_deviation_of_its_card(tmp_path: Path) -> None:
    arm = {"method": "mtt", "stages": 2, "ipc_per_stage": 2, "set": {}}
    workshop = Workshop.open(tmp_path, scale="small", networks=3, arms=[arm])
    for job in workshop.jobs("evaluate"):
        workshop.make(job)
    done = writer.write(tmp_path / "out", made_of(workshop, None), workshop.store)
    mean, _, n = run_program(done.folder)
    assert n == 3 and abs(mean - done.protocol.mean) <= max(done.protocol.std, 0.006)
    assert done.protocol.mean > 85, "chance is 10 percent"
    seeds = [(100 + number, 200 + number) for number in range(10)]
    luck = re.sub(r"(?m)^SEEDS = \[.*?\]", f"SEEDS = {seeds}", program(done.folder))
    fresh, spread, _ = run_program(done.folder, luck)
    assert abs(fresh - done.protocol.mean) <= 2 * max(spread, done.protocol.std), "other seeds belong to the same crowd"


# Other sets.


def test_a_prefix_of_the_stages_is_a_set_of_its_own(workshop: Workshop, tmp_path: Path) -> None:
    done = writer.write(tmp_path / "out", made_of(workshop, stages=1), workshop.store)
    assert (done.stages, done.images, done.protocol.stage) == (1, 10, 1)
    assert "S_1 + S_2" not in (done.folder / "README.md").read_text()


def test_real_images_say_that_they_are_real_and_use_the_recipes_rate(workshop: Workshop, tmp_path: Path) -> None:
    done = writer.write(tmp_path / "out", made_of(workshop, "random"), workshop.store)
    card = (done.folder / "README.md").read_text()
    assert "real images of the training split" in card and "learned step size" not in card
    assert "RATES = [0.02]" in card and len(done.protocol.values) == 1, "every network has a draw of its own"


def test_by_its_key_a_set_has_the_same_files_but_no_scale(
    exported: writer.ExportedFolder, workshop: Workshop, tmp_path: Path
) -> None:
    chain = chains.of_key(workshop.store, exported.keys[-1][5:])
    done = writer.write(tmp_path / "out", chains.gather(chain, workshop.store), workshop.store)
    assert done.scale is None and done.protocol == exported.protocol
    assert {name for name in done.files if done.files[name] != exported.files[name]} == {"README.md"}
    card = (done.folder / "README.md").read_text()
    assert "scale: not known" in card and "| iterations | 6 | the set's manifest |" in card


def test_the_best_of_a_run_is_the_best_on_held_out_images(workshop: Workshop, tmp_path: Path) -> None:
    copy = workshop.copy(tmp_path)
    keys = [job.key for job in copy.jobs("distil")]
    with Journal.open(copy.store.run_folder("some")) as journal:
        for key in keys[1:]:
            journal.write("job_cached", key=key)
    for number, key in enumerate(keys):
        path = copy.store.path(key, EXACT).parent / "manifest.json"
        manifest = Manifest.from_json(path.read_bytes())
        extra = manifest.extra | {"validation_accuracy": 90.0 - number}
        path.write_bytes(replace(manifest, extra=extra).to_json())
    assert (copy.store.run_folder("some") / NAME).is_file()
    assert chains.best_of_run(copy.store, "some").sets[-1] == keys[1], "the run never had the first one"


def test_multi_formation_images_come_decoded(workshop: Workshop, tmp_path: Path) -> None:
    copy = workshop.copy(tmp_path)
    key = made_of(copy, "MTT").keys.sets[0]
    folder = copy.store.path(key, EXACT).parent
    stored = synthetic_set.read(folder)
    transform = dataset.read_transform(copy.store.path(copy.job("dataset").key, dataset.TRANSFORM))
    shutil.rmtree(folder)
    doubled = synthetic_set.SyntheticSet(stored.images, stored.labels, stored.step_size, factor=2)
    job = copy.plan.graph[key]
    with copy.store.put(key, "distil", job.canonical()["spec"], job.parents, device="cpu") as place:
        synthetic_set.write(place, doubled, transform, tuple("0123456789"))
    done = writer.write(tmp_path / "out", made_of(copy, "MTT"), copy.store)
    assert str(list(done.lines())[1]) == "it is MTT, the arm 'MTT, 1 image per class' of the experiment 'test'"
    table = pq.read_table(done.folder / "exact" / "train.parquet")
    pixels = torch.tensor(table.column("pixels").to_pylist()).view(-1, 1, 8, 8)
    assert torch.equal(pixels, multi_formation.decode(stored.images, 2)) and done.images == 40
    assert table.column("label").to_pylist() == [label for label in range(10) for _ in range(4)]
    assert "| S_1 | 1 | convnet" in (done.folder / "README.md").read_text(), "stored images a class"


SOFT = {"distil.labels": {"source": "experts", "learning": {"lr": 5.0, "momentum": 0.9}, "temperature": 2.0}}


@pytest.fixture(scope="module")
def softly(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages with learned soft labels."""
    numbers = {**SOFT, "evaluate.cutmix": 0.5, "evaluate.epochs_total": 12}
    return evaluated(tmp_path_factory.mktemp("soft"), TWO_STAGES, set=numbers)


@pytest.mark.slow
def test_soft_labels_leave_as_probabilities_and_as_logits_and_the_program_trains_on_them(
    softly: Workshop, tmp_path: Path
) -> None:
    done = writer.write(tmp_path / "out", made_of(softly), softly.store, with_test=True)
    stored = [synthetic_set.read(softly.store.path(key, EXACT)) for key in done.keys]
    logits = torch.cat([one.logits for one in stored if one.logits is not None])
    exact, shown = pq.read_table(done.folder / "exact" / "train.parquet"), pq.read_table(done.folder / TRAIN)
    assert exact.column_names == ["pixels", "label", "logits", "stage"]
    assert torch.equal(torch.tensor(exact.column("logits").to_pylist()), logits)
    assert shown.column_names == ["image", "label", "soft_label", "stage"]
    assert torch.equal(torch.tensor(shown.column("soft_label").to_pylist()), torch.softmax(logits / 2, 1))
    features = json.loads(shown.schema.metadata[b"huggingface"])["info"]["features"]
    assert set(features) == set(shown.column_names) and features["soft_label"]["length"] == 10
    real = pq.read_table(done.folder / TEST)
    assert real.schema == shown.schema, "or load_dataset refuses the two splits"
    certain = torch.nn.functional.one_hot(torch.tensor(real.column("label").to_pylist()), 10)
    assert real.column("soft_label").to_pylist() == certain.tolist()
    words = (done.folder / "README.md").read_text()
    assert "learned with the images, from the logits of the stage's experts on" in words
    assert "`softmax(logits / 2)`" in words and "`soft_label` (a probability for each class)" in words
    mean, std, n = run_program(done.folder)
    assert (mean, std, n) == pytest.approx((done.protocol.mean, done.protocol.std, 2), abs=0.006)


def test_a_card_of_hard_labels_says_nothing_of_soft_ones(exported: writer.ExportedFolder) -> None:
    words = (exported.folder / "README.md").read_text()
    assert "soft" not in words.replace("softmax", "") and "logits" not in program(exported.folder).replace(
        "logits =", ""
    )


# What is refused.


def refused(folder: Path, made: ExportSource, workshop: Workshop) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(BadInput, match="is there already"):
        writer.write(folder, made, workshop.store)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_folder_that_holds_anything_is_left_alone(workshop: Workshop, tmp_path: Path) -> None:
    made = made_of(workshop)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    refused(taken, made, workshop)
    refused(taken / "mine.txt", made, workshop)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert writer.write(empty, made, workshop.store).folder == empty


def test_what_breaks_half_way_leaves_nothing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> str:
        raise OSError("the disk is full")

    monkeypatch.setattr(writer.card, "render", breaks)
    with pytest.raises(OSError, match="full"):
        writer.write(tmp_path / "out", made_of(workshop), workshop.store)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next_one_and_nothing_else(
    workshop: Workshop, tmp_path: Path
) -> None:
    program = "from workers.store.processes import Process; print(Process.current().temporary_name())"
    dead = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    names = [f".out.{dead}", f".other.{dead}", f".out.{Process.current().temporary_name()}", ".out.mine"]
    for name in names:
        (tmp_path / name / "data").mkdir(parents=True)
    writer.write(tmp_path / "out", made_of(workshop), workshop.store)
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "out"}


def test_an_unknown_or_unclear_arm_is_told_the_known_ones(workshop: Workshop) -> None:
    for arm in ("DSA", None):
        with pytest.raises(BadInput) as told:
            chains.of_experiment(workshop.plan, arm)
        for known in ("Random, 1 image per class", "MTT, 1 image per class", "PDD+MTT, 2 stages of 1 image per class"):
            assert known in told.value.fix


def test_arms_that_are_called_alike_are_not_guessed_between(tmp_path: Path) -> None:
    arms = [{**TWO_STAGES}, {**TWO_STAGES, "set": {"distil.iterations": 7}}]
    twins = Workshop.open(tmp_path, scale="tiny", arms=arms)
    with pytest.raises(BadInput, match="several arms are called so"):
        chains.of_experiment(twins.plan, "PDD+MTT")


def test_a_stage_that_is_not_made_yet_is_named_with_the_prefix_that_is(workshop: Workshop, tmp_path: Path) -> None:
    copy = workshop.copy(tmp_path)
    chain = chains.of_experiment(copy.plan, "PDD+MTT")
    copy.store.remove(chain.sets[1])
    with pytest.raises(BadInput, match="stage 2 is .*not made yet; .*--stages 1"):
        chains.gather(chain, copy.store)
    assert len(chains.gather(chain.prefix(1), copy.store).sets) == 1
    with pytest.raises(BadInput, match="--stages is 3: must be 1 to 2"):
        chain.prefix(3)


def test_a_set_that_no_network_was_tested_on_is_not_given_away(workshop: Workshop, tmp_path: Path) -> None:
    copy = workshop.copy(tmp_path)
    chain = chains.of_experiment(copy.plan, "PDD+MTT")
    for key in chain.networks[2:]:
        copy.store.remove(key)
    with pytest.raises(BadInput, match="no network was tested .*--stages 1"):
        chains.gather(chain, copy.store)


def test_a_damaged_set_is_not_given_away(workshop: Workshop, tmp_path: Path) -> None:
    copy = workshop.copy(tmp_path)
    chain = chains.of_experiment(copy.plan, "PDD+MTT")
    path = copy.store.path(chain.sets[0], EXACT)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="sha256"):
        chains.gather(chain, copy.store)


@pytest.mark.parametrize(("text", "told"), [("nothing-like-it", "no set's key"), ("distil-mtt", "must name one set")])
def test_a_key_that_names_no_set_or_several_is_refused(workshop: Workshop, text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        chains.of_key(workshop.store, text)


# What others make of it.


@pytest.fixture(scope="module")
def with_files(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> writer.ExportedFolder:
    """The two stages as a folder, with PNG files."""
    return writer.write(tmp_path_factory.mktemp("out") / "set", made_of(workshop), workshop.store, as_files=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["data_dir", "folder", "data_files"])
def test_the_hugging_face_library_reads_the_folder(with_files: writer.ExportedFolder, tmp_path: Path, how: str) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    folder = str(with_files.folder)
    words: dict[str, tuple[str, dict[str, str]]] = {
        "data_dir": ("parquet", {"data_dir": folder}),
        "folder": (folder, {}),
        "data_files": ("parquet", {"data_files": f"{folder}/{TRAIN}"}),
    }
    name, more = words[how]
    read = datasets.load_dataset(name, **more, cache_dir=str(tmp_path))
    train = read["train"]
    assert train.features["label"].names == list("0123456789") and train[10]["stage"] == 2 and len(train) == 20
    assert train[0]["image"].size == (8, 8)
    assert "test" not in read or len(read["test"]) == 200
    assert ("test" in read) == (how != "data_files")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["data_dir", "folder"])
def test_the_hugging_face_library_reads_soft_labels(softly: Workshop, tmp_path: Path, how: str) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    folder = str(writer.write(tmp_path / "out", made_of(softly), softly.store, with_test=True).folder)
    name, more = {"data_dir": ("parquet", {"data_dir": folder}), "folder": (folder, {})}[how]
    read = datasets.load_dataset(name, **more, cache_dir=str(tmp_path / "cache"))
    assert len(read["train"]) == 20 and len(read["test"]) == 200
    for split in ("train", "test"):
        assert len(read[split][0]["soft_label"]) == 10 and sum(read[split][0]["soft_label"]) == pytest.approx(1.0)
    if how == "folder":
        exact = datasets.load_dataset(folder, "exact", cache_dir=str(tmp_path / "cache"))["train"]
        assert len(exact[0]["logits"]) == 10


def test_pandas_reads_the_folder(exported: writer.ExportedFolder) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.read_parquet(exported.folder / TRAIN)
    assert list(frame.columns) == ["image", "label", "stage"] and frame.label.value_counts().tolist() == [2] * 10
    assert Image.open(BytesIO(frame.image[0]["bytes"])).size == (8, 8)


def test_torchvision_reads_the_class_folders(with_files: writer.ExportedFolder) -> None:
    from torchvision.datasets import ImageFolder

    table = pq.read_table(with_files.folder / TRAIN)
    read = ImageFolder(with_files.folder / "folders" / "train")
    assert read.classes == list("0123456789") and sorted(read.targets) == sorted(table.column("label").to_pylist())
    found = {(np.asarray(image)[..., 0].tobytes(), label) for image, label in read}
    pictures = zip(table.column("image").to_pylist(), table.column("label").to_pylist(), strict=True)
    assert found == {(np.asarray(Image.open(BytesIO(cell["bytes"]))).tobytes(), label) for cell, label in pictures}
    assert len(ImageFolder(with_files.folder / "folders" / "test")) == 200
    text = (with_files.folder / "README.md").read_text()
    assert "ImageFolder(" in text and "`folders/train/<class>/`" in text


def test_class_folders_follow_the_umask_and_are_listed_as_all_else(with_files: writer.ExportedFolder) -> None:
    for path in [with_files.folder, *with_files.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask(), path
    assert sum(name.endswith(".png") for name in with_files.files) == 1 + 20 + 200


def test_our_own_readers_take_the_class_folders_and_the_pictures(with_files: writer.ExportedFolder) -> None:
    for path in ("folders", "data"):
        facts = inspect(Source(layout="auto", path=with_files.folder / path, place="test"))
        assert facts.train_per_class == (2,) * 10 and facts.test_per_class == (20,) * 10
