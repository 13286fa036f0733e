from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.experiment import FOLDER
from orchestrator import launch
from orchestrator.cli import job, planning, shipped
from orchestrator.cli.app import EXAMPLES
from orchestrator.cli.options import command_line
from orchestrator.clusters.config import FILE, Target
from orchestrator.runs.journal import NAME, Journal
from orchestrator.workloads.base import LaunchOptions, Workload
from tests.orchestrator.shell import shell_in
from workers.store.store import Store

JOBS = FOLDER.parent
ROOT = JOBS.parent


@dataclass(frozen=True)
class Said:
    exit: int
    out: str
    err: str


Type = Callable[..., Said]


@pytest.fixture
def type_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Type]:
    """Types a command in a folder of its own; a run that would begin fails the test instead."""

    def begin(*_: Any, **__: Any) -> None:
        pytest.fail("the run began")

    def type_in(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["pdd", *words])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        said = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, said.out, said.err)

    monkeypatch.setattr("orchestrator.workloads.launcher.launch", begin)
    monkeypatch.chdir(tmp_path)
    yield type_in


def refused(said: Said, *told: str) -> None:
    """Exit 2, one line that tells all of this, and nothing was made."""
    assert (said.exit, said.out) == (2, "")
    assert said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert "Traceback" not in said.err
    for part in told:
        assert part in said.err


def experiment(path: Path, **changes: Any) -> str:
    """The tiny experiment with other fields, as a file."""
    document = yaml.safe_load((FOLDER / "tiny.yaml").read_text())
    path.write_text(yaml.safe_dump(document | changes))
    return str(path)


def parquet(folder: Path, labels: Sequence[int], column: str = "label") -> Path:
    """Training and test images of 8x8, one for each label."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), 7).save(stream, "PNG")
    images = pa.array([{"bytes": stream.getvalue(), "path": None}] * len(labels))
    for split in ("train", "test"):
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({"img": images, column: pa.array(labels)}), folder / f"{split}.parquet")
    return folder


ARM = {"method": "mtt", "stages": 2, "ipc_per_stage": 1}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"netwroks": 3}, ("mine.yaml: netwroks is 3", "unknown field", "networks, scale")),
        ({"networks": "two"}, ("mine.yaml: networks is 'two'", "integer")),
        ({"networks": 2.5}, ("mine.yaml: networks is 2.5", "integer")),
        ({"arms": {}}, ("mine.yaml: arms is {}",)),
        ({"arms": [ARM | {"stages": 0}]}, ("mine.yaml: arms.0.stages is 0", "at least 1")),
        ({"arms": [ARM | {"ipc_per_stage": 0}]}, ("mine.yaml: arms.0.ipc_per_stage is 0", "at least 1")),
        ({"arms": [ARM | {"ipc": 1}]}, ("mine.yaml: arms.0.ipc is 1", "unknown field", "ipc_per_stage")),
        ({"arms": [ARM | {"method": "mmt"}]}, ("mine.yaml: arms.0.method is 'mmt'", "mtt")),
        ({"arms": [ARM | {"set": {"distil.iteration": 3}}]}, ("set.distil.iteration is 3", "iterations")),
        ({"arms": [ARM | {"set": {"distil.settings.syn_step": 3}}]}, ("settings.syn_step is 3", "syn_steps")),
        ({"arms": [ARM | {"ipc_per_stage": 19}]}, ("ipc_per_stage is 19", "2 x 19", "has 36", "ask for fewer")),
        ({"set": {"dataset.normalise": "zac"}}, ("mine.yaml: dataset.normalise is 'zac'", "zca")),
        ({"set": {"distil.image.lr": "1e-2"}}, ("mine.yaml: set.distil.image.lr is '1e-2'", "1.0e-4")),
        ({"dataset": "nope"}, ("mine.yaml: dataset.name is 'nope'", "digits")),
        ({"dataset": "/nope/images"}, ("mine.yaml: dataset.path is '/nope/images'", "path")),
        ({"scale": "large"}, ("mine.yaml: scale is 'large'", "paper")),
        ({"seeds": [0, 0]}, ("mine.yaml: seeds is", "only once")),
    ],
)
def test_a_bad_field_of_an_experiment_is_refused_with_its_place_value_and_mend(
    type_in: Type, tmp_path: Path, changes: dict[str, Any], told: tuple[str, ...]
) -> None:
    refused(type_in("run", experiment(tmp_path / "mine.yaml", **changes), "--store", "store"), *told)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nope"], ("command line", "nope", "no such command", "--help")),
        (["run", "nope"], ("command line: experiment is 'nope'", "quickstart")),
        (["run", "nope.yaml"], ("nope.yaml: file", "readable YAML file")),
        (["run", "tiny", "--cluster", "nope"], ("command line: --cluster is 'nope'", "local")),
        (["run", "tiny", "--cluster-file", "nope.yaml"], ("nope.yaml: file", "readable YAML file")),
        (
            ["run", "tiny", "--workers", "-1"],
            ("command line: --workers is -1", "at least 1, or 0", "in this process"),
        ),
        (["run", "tiny", "--workers", "many"], ("command line", "--workers", "integer")),
        (["run", "tiny", "--many"], ("command line", "no such option", "--many")),
        (["run", "tiny", "--set", "networks"], ("command line: --set is 'networks'", "path.to.field=value")),
        (["run", "tiny", "--set", "networks=]"], ("command line: --set networks is ']'", "YAML")),
        (["run", "tiny", "--set", "networks=0"], ("command line over tiny.yaml: networks is 0", "at least 1")),
        (["run", "tiny", "--set", "distil.iterations=no"], ("set.distil.iterations is False", "integer")),
        (["run", "tiny", "--set", "distil.settings.x=1"], ("distil.settings.x is 1", "syn_steps")),
        (["run", "tiny", "--set", "arms.9.stages=1"], ("command line: arms.9.stages is 1", "not a field")),
        (["run", "tiny", "--seed", "-1"], ("command line over tiny.yaml: seeds.0 is -1", "at least 0")),
        (["run", "tiny", "--scale", "huge"], ("command line over tiny.yaml: scale is 'huge'", "paper")),
        (["run", "tiny", "--dataset", "/nope"], ("command line over tiny.yaml: dataset.path is '/nope'",)),
        (["--scale", "huge"], ("command line over quickstart.yaml: scale is 'huge'", "paper")),
        (["plan", "tiny", "--set", "networks=0"], ("networks is 0", "at least 1")),
        (["explain", "tiny", "--set", "networks=0"], ("networks is 0", "at least 1")),
        (["report", "tiny", "--set", "networks=0"], ("networks is 0", "at least 1")),
    ],
)
def test_bad_words_on_the_command_line_are_refused_in_one_line(
    type_in: Type, tmp_path: Path, words: list[str], told: tuple[str, ...]
) -> None:
    refused(type_in(*words), *told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"max_start_epoch": 4}, {"expert_epochs": 2}])
def test_a_method_that_would_read_beyond_the_experts_last_epoch_is_refused_before_anything_runs(
    type_in: Type, tmp_path: Path, settings: dict[str, int]
) -> None:
    mine = experiment(tmp_path / "mine.yaml", set={"distil.settings": settings})
    refused(type_in("run", mine), "mine.yaml: experts.real.epochs is 3", "at least 4", "distil.settings")


def test_a_dataset_without_labels_is_refused(type_in: Type, tmp_path: Path) -> None:
    images = parquet(tmp_path / "images", [0, 1], column="caption")
    refused(type_in("run", "tiny", "--dataset", str(images)), "dataset.label is 'label or fine_label'", "img, caption")


def test_labels_with_a_gap_are_the_classes_that_are_there_and_a_note_says_so(type_in: Type, tmp_path: Path) -> None:
    images = parquet(tmp_path / "images", [0, 2] * 9)
    said = type_in("plan", "tiny", "--dataset", str(images), "--set", "network.depth=2", "--json")
    assert said.exit == 0
    assert "the classes are '0', '2'" in " ".join(json.loads(said.out)["notes"])


def test_a_class_with_fewer_images_than_are_asked_for_is_named(type_in: Type, tmp_path: Path) -> None:
    images = parquet(tmp_path / "images", [0, 0, 0, 0, 1, 1])
    refused(
        type_in("run", "tiny", "--dataset", str(images), "--set", "network.depth=2"),
        "arms.0.ipc_per_stage is 2",
        "class '1' has 1 training images after the held-out split",
        "ask for fewer or add images",
    )


@pytest.mark.parametrize("root", ["a_file/store", "/proc/store"])
def test_a_store_that_cannot_be_written_is_refused(type_in: Type, tmp_path: Path, root: str) -> None:
    (tmp_path / "a_file").write_text("not a folder")
    refused(type_in("run", "tiny", "--store", root), "--store: store is", root, "a folder that you can write to")


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_reading_commands_want_a_store_and_make_none(type_in: Type, tmp_path: Path, command: str) -> None:
    refused(type_in(command, "--store", "nowhere"), "--store: store is 'nowhere'", "no store is there")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_run_is_refused_with_the_known_ones(type_in: Type, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with Journal.open(store.run_folder("run-1")):
        pass
    refused(type_in("status", "run-2", "--store", "store"), "run is 'run-2'", "run-1")
    refused(type_in("logs", "--store", "store", "distil-9"), "run run-1: job is 'distil-9'", "none")


def test_an_unknown_key_of_cluster_yaml_is_refused_with_the_known_ones(type_in: Type, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("clusters: {box: {kind: local, worker: 2}}\ndefault: box\n")
    refused(type_in("run", "tiny"), "cluster.yaml: clusters.box.worker is 2", "slots_per_gpu, workers")
    (tmp_path / FILE).write_text("sotre: here\n")
    refused(type_in("run", "tiny"), "cluster.yaml: sotre is 'here'", "clusters, data, default, logger, store")


@pytest.mark.parametrize(
    ("words", "place", "field", "value"),
    [
        (["run", "tiny", "--workers", "-1"], "command line", "--workers", -1),
        (["--json", "run", "tiny", "--set", "networks=.nan"], "command line over tiny.yaml", "networks", "nan"),
        (["plan", "tiny", "--set", "arms=[]"], "command line over tiny.yaml", "arms", []),
        (["status", "--store", "nowhere"], "--store", "store", "nowhere"),
        (["run", "--nope"], "command line", "option", "--nope"),
        (["runn"], "command line", "command", "runn"),
        (["run", "--seed", "x"], "command line", "--seed", "x"),
    ],
)
def test_with_json_a_refusal_is_one_document_with_its_parts(
    type_in: Type, words: list[str], place: str, field: str, value: Any
) -> None:
    said = type_in(*words, *([] if "--json" in words else ["--json"]))
    document = json.loads(said.out)
    assert (said.exit, document["schema"], document["exit"]) == (2, 1, 2)
    error = document["error"]
    assert (error["place"], error["field"], error["value"]) == (place, field, value)
    assert error["fix"] and said.err.strip() == error["message"] and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["runn"], "run"),
        (["run", "--scal", "tiny"], "--scale"),
        (["run", "quickstrat"], "quickstart"),
        (["reproduce", "tabel1"], "table1"),
        (["sweep", "stages_x_ip"], "stages_x_ipc"),
        (["show", "tinny"], "tiny"),
        (["run", "tiny", "--set", "distil.iteratons=3"], "iterations"),
    ],
)
def test_a_word_that_is_nearly_right_is_asked_about(type_in: Type, words: list[str], meant: str) -> None:
    refused(type_in(*words), f"did you mean '{meant}'?")


def test_a_cluster_that_no_file_describes_is_refused_with_how_to_write_one(type_in: Type) -> None:
    refused(type_in("run", "tiny", "--cluster", "slurm"), "--cluster is 'slurm'", "`pdd init` writes one")


def test_an_export_that_has_a_choice_asks_for_the_arm(type_in: Type, tmp_path: Path) -> None:
    (tmp_path / "pdd-store" / "runs").mkdir(parents=True, mode=0o700)
    (tmp_path / "pdd-store").chmod(0o700)
    refused(type_in("export", "tiny"), "--arm is 'not given'", "must be one of")


def test_the_version_is_printed(type_in: Type) -> None:
    said = type_in("--version")
    assert said.exit == 0 and re.fullmatch(r"pdd \d+\.\d+\.\d+\S*\n", said.out)


@pytest.mark.parametrize(
    ("words", "completed"),
    [("pdd expl", ["explain"]), ("pdd run --sca", ["--scale"]), ("pdd plan quicks", ["quickstart"])],
)
def test_a_shell_completes_commands_options_and_what_is_shipped(
    type_in: Type, monkeypatch: pytest.MonkeyPatch, words: str, completed: list[str]
) -> None:
    for name, value in (("_PDD_COMPLETE", "complete_bash"), ("COMP_WORDS", words)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # so that the program is called `pdd`
    assert type_in().out.split() == completed


def test_help_lists_what_is_shipped_and_gives_an_example(type_in: Type) -> None:
    assert {"quickstart", "table7", "stages_x_ipc"} <= set(re.split(r"\W+", type_in("--help").out))
    for name in (command.__name__.strip("_") for command in EXAMPLES):
        assert f"pdd {name}" in type_in(name, "--help").out


@pytest.mark.parametrize("command", [planning.explain, job.job, shipped.init, shipped.show])
def test_the_examples_of_help_work_as_they_stand(type_in: Type, command: Callable[..., None]) -> None:
    said = type_in(*EXAMPLES[command].split()[1:])
    assert said.exit == 0, said.err
    assert command is not planning.explain or "PDD+MTT, 1 stage, progressive: " in said.out


def test_a_report_is_named_by_its_page_for_a_browser(type_in: Type) -> None:
    assert type_in("report", "tiny").out == f"{Path('report') / 'report.html'}\n"


def test_init_writes_what_can_be_planned_and_overwrites_nothing(type_in: Type, tmp_path: Path) -> None:
    said = type_in("init", "trial", "--json")
    assert json.loads(said.out)["files"] == ["trial.yaml", "cluster.yaml"]
    assert type_in("plan", "trial.yaml").exit == 0
    assert (tmp_path / "cluster.yaml").read_text() == (ROOT / "cluster.yaml").read_text(), "as in the clone"
    (tmp_path / "cluster.yaml").write_text("store: mine\n")
    refused(type_in("init", "trial"), "trial.yaml is there already")
    assert type_in("init", "other").exit == 0 and (tmp_path / "cluster.yaml").read_text() == "store: mine\n"
    refused(type_in("init", "a/b"), "NAME is 'a/b'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.yaml", "other.yaml", "trial.yaml"]


def test_show_prints_every_shipped_file(type_in: Type) -> None:
    document = json.loads(type_in("show", "--json").out)
    for kind in ("experiments", "tables", "sweeps"):
        for name in document[kind]:
            text = (JOBS / kind / f"{name}.yaml").read_text()
            assert yaml.safe_load(type_in("show", name).out) == yaml.safe_load(text)


def test_options_before_the_commands_name_hold_behind_it_too(type_in: Type, tmp_path: Path) -> None:
    said = type_in("--store", "here", "--set", "networks=1", "plan", "tiny", "--set", "arms.0.stages=2", "--json")
    assert said.exit == 0 and not (tmp_path / "here").exists(), "a plan makes nothing"
    kinds = json.loads(said.out)["jobs"]["by_kind"]
    assert kinds["full"]["to_run"] == 1 and kinds["select"]["to_run"] == 1
    (tmp_path / "here").mkdir()
    (tmp_path / "here").chmod(0o777)
    refused(type_in("--store", "here", "plan", "tiny"), str(tmp_path / "here"), "chmod o-w")


def test_a_run_that_ended_cannot_be_cancelled_and_is_told_so(type_in: Type, tmp_path: Path) -> None:
    folder = Store.open(tmp_path / "store").run_folder("run-1")
    with Journal.open(folder) as journal:
        origin = {"run": "run-1", "command": "", "experiments": [], "store": "", "jobs": {}, "workers": 1}
        journal.write("run_began", **origin, versions={}, pid=1, host="elsewhere")
        journal.write("run_ended", exit=0, why="", counts={})
    said = type_in("cancel", "--store", "store", "--json")
    assert (said.exit, json.loads(said.out)) == (0, {"schema": 1, "run": "run-1", "asked": False})
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_help_lists_the_commands_in_the_order_in_which_they_are_used(type_in: Type) -> None:
    said = type_in("--help")
    names = "run reproduce sweep plan explain status logs cancel report export verify gc doctor job".split()
    commands = said.out.partition("Commands")[2]
    listed = re.findall(rf"^\W+({'|'.join(names)})  ", commands, re.MULTILINE)
    assert (said.exit, listed) == (0, names)


@pytest.mark.parametrize(
    ("words", "follow"),
    [
        (["run", "tiny"], True),
        (["run", "tiny", "--detach"], False),
        (["--detach", "run", "tiny"], False),
        (["--detach", "run", "tiny", "--follow"], True),
        (["--follow", "run", "tiny", "--detach"], False),
        (["run", "tiny", "--detach", "--follow"], True),
        (["--detach"], False),
    ],
)
def test_the_last_of_detach_and_follow_holds(
    type_in: Type, monkeypatch: pytest.MonkeyPatch, words: list[str], follow: bool
) -> None:
    launched: list[LaunchOptions] = []

    def launch(workload: Workload, target: Target, store: Store, options: LaunchOptions) -> str:
        launched.append(options)
        return "run-1"

    monkeypatch.setattr("orchestrator.workloads.launcher.launch", launch)
    said = type_in(*words, "--json")
    assert (said.exit, json.loads(said.out)["run"]) == (0, "run-1")
    assert [options.follow for options in launched] == [follow]
    assert launched[0].command == " ".join(["pdd", *words, "--json"])


def test_the_command_that_is_told_works_in_this_folder_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an activated environment or without, by the script or by `python -m`."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("pdd", "python3"):
        (programs / name).touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(programs / "python3"))

    def told(program: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, "run", "my file.yaml"])
        return command_line()

    assert told(".venv/bin/pdd") == ".venv/bin/pdd run 'my file.yaml'"
    assert told("/any/orchestrator/launch.py") == ".venv/bin/python3 -m orchestrator.launch run 'my file.yaml'"
    monkeypatch.setenv("PATH", str(programs))
    assert told(str(programs / "pdd")) == "pdd run 'my file.yaml'"
    assert told("/any/orchestrator/launch.py") == "python3 -m orchestrator.launch run 'my file.yaml'"


def test_a_dry_run_shows_what_slurm_would_get_and_is_refused_where_there_is_no_slurm(
    type_in: Type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused(type_in("run", "tiny", "--dry-run"), "--dry-run", "--cluster")
    asked: list[str] = []

    def scripts(target: Target, run: str) -> dict[str, str]:
        asked.append(f"{target.name} {run.split('-')[0]}")
        return {"head": "#SBATCH --nodes=1", "worker": "#SBATCH --array=0-3"}

    monkeypatch.setattr("orchestrator.clusters.slurm.submit.scripts", scripts)
    (tmp_path / FILE).write_text("clusters: {s: {kind: slurm}}\n")
    said = type_in("run", "tiny", "--cluster", "s", "--dry-run")
    assert said.exit == 0 and "# head\n#SBATCH --nodes=1\n# worker\n#SBATCH --array=0-3" in said.out
    document = json.loads(type_in("run", "tiny", "--cluster", "s", "--dry-run", "--json").out)
    assert list(document["scripts"]) == ["head", "worker"] and asked == ["s tiny"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_a_sweep_is_refused_in_one_process(type_in: Type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(type_in("sweep", "stages_x_ipc", "--workers", "0"), "--workers is 0", "say 1 or more", "sweep")
    assert list((tmp_path / "pdd-store" / "runs").iterdir()) == []


@pytest.mark.timeout(900)
def test_the_same_holds_of_real_processes(tmp_path: Path) -> None:
    with shell_in(tmp_path) as shell:
        ended = shell.run("run", "tiny", "--set", "distil.settings.max_start_epoch=30")
        refused(Said(ended.exit, ended.out, ended.err), "experts.real.epochs is 3", "at least 30")
        refused_too = shell.run("run", "tiny", "--workers", "-1", "--json")
        assert refused_too.exit == 2 and refused_too.document["error"]["field"] == "--workers"
        assert not shell.store.exists() and shell.left() == []
