"""Every way a job can end, and what it leaves behind: an artifact or none, a log, and no claim."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import BadInput, Damaged, Diverged
from jobs.graph import Job
from jobs.kinds import SPECS
from jobs.outcomes import Outcome
from tests.workers.workshop import TWO_STAGES, Workshop, changed
from workers import execute as module
from workers.data.synthetic_set import EXACT
from workers.execute import JobResult, execute, perform_missing
from workers.runtime.context import JobContext
from workers.store.claims import Claims
from workers.store.files import full_disk_explained
from workers.store.store import Store
from workers.store.trajectories import TRAJECTORIES

RUN = "run1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages, done up to the experts of the second."""
    workshop = Workshop.open(tmp_path_factory.mktemp("made"), TWO_STAGES)
    for job in workshop.jobs("experts"):
        workshop.make(job)
    return workshop


@pytest.fixture(scope="module")
def digest(made: Workshop, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of the second stage's set, made by hand elsewhere."""
    copy = made.copy(tmp_path_factory.mktemp("by hand"))
    return copy.make(copy.job("distil", stage=2)).digest


@pytest.fixture
def workshop(made: Workshop, tmp_path: Path) -> Workshop:
    return made.copy(tmp_path)


@pytest.fixture
def job(workshop: Workshop) -> Job:
    """The second stage's distillation: all its parents are there, itself is not."""
    return workshop.job("distil", stage=2)


def run(workshop: Workshop, job: Job, **more: Any) -> JobResult:
    """Execute the job as a driver would: by JSON, by path; whatever happens, no claim may be left."""
    ended = execute(json.loads(json.dumps(job.to_json())), str(workshop.store.root), RUN, **more)
    assert ended["key"] == job.key and ended["seconds"] >= 0
    json.dumps(ended)
    return ended


def free(workshop: Workshop, key: str) -> bool:
    return Claims(workshop.store.root).read(key) is None


def doing(monkeypatch: pytest.MonkeyPatch, work: Callable[[JobContext, Path], Any]) -> None:
    """Let `distil` jobs do this instead."""
    monkeypatch.setitem(module.WORK, "distil", work)


def raising(error: BaseException) -> Callable[[JobContext, Path], Any]:
    def work(context: JobContext, folder: Path) -> Any:
        (folder / "half.arrow").write_bytes(b"half")
        raise error

    return work


# Well


def test_a_job_is_done_once_and_found_from_then_on(workshop: Workshop, job: Job) -> None:
    first = run(workshop, job)
    assert first["status"] == "done" and set(first) == {"status", "key", "seconds", "log"}
    manifest = workshop.store.manifest(job.key)
    assert manifest.spec == job.canonical()["spec"]
    assert manifest.parents == {role: list(keys) for role, keys in job.parents.items()}
    assert manifest.kind == "distil" and manifest.device in ("cpu", "cuda")
    assert workshop.store.verify(job.key) == []
    second = run(workshop, job)
    assert second["status"] == "found"
    assert workshop.store.manifest(job.key) == manifest
    assert free(workshop, job.key)


def test_it_does_the_same_as_the_job_performed_by_hand(workshop: Workshop, job: Job, digest: str) -> None:
    run(workshop, job)
    assert workshop.store.manifest(job.key).digest == digest


def test_every_kind_of_job_has_its_work() -> None:
    assert set(module.WORK) == set(SPECS)


def test_progress_is_seen_in_the_claim_while_the_job_runs(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def work(context: JobContext, folder: Path) -> Outcome:
        context.report_progress(0.25, "a quarter")
        seen.append(Claims(workshop.store.root).read(job.key))
        (folder / "a").write_bytes(b"a")
        return Outcome()

    doing(monkeypatch, work)
    assert run(workshop, job)["status"] == "done"
    assert (seen[0].run, seen[0].done, seen[0].note) == (RUN, 0.25, "a quarter")
    assert free(workshop, job.key)


def test_a_job_that_somebody_alive_is_doing_is_busy(workshop: Workshop, job: Job) -> None:
    claim = Claims(workshop.store.root).take(job.key, "another")
    assert claim is not None
    with claim:
        ended = run(workshop, job)
        assert ended["status"] == "busy" and ended["retry_after"] > 0
        assert not workshop.store.has(job.key)
        standing = Claims(workshop.store.root).read(job.key)
        assert standing is not None and standing.run == "another"  # not released by us
    assert run(workshop, job)["status"] == "done"


def test_a_job_finished_by_another_while_we_took_the_claim_is_found(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.make(job)
    asked: list[str] = []
    has = Store.has

    def late(store: Store, key: str) -> bool:
        asked.append(key)
        return has(store, key) and asked.count(key) > (key == job.key)

    monkeypatch.setattr(Store, "has", late)
    doing(monkeypatch, raising(AssertionError("done again")))
    assert run(workshop, job)["status"] == "found"
    assert asked.count(job.key) == 2


# Stepping aside


def test_a_job_that_is_asked_to_stop_yields_and_goes_on_later_with_the_same_result(
    workshop: Workshop, job: Job, digest: str
) -> None:
    stop = workshop.store.run_folder(RUN) / "stop"
    stop.parent.mkdir()
    stop.touch()
    ended = run(workshop, job)
    assert ended["status"] == "yielded" and "asked to stop at iteration 1" in ended["message"]
    assert "reason" not in ended
    assert not workshop.store.has(job.key) and free(workshop, job.key)
    assert (workshop.store.root / "checkpoints" / job.key).is_dir()
    stop.unlink()
    assert run(workshop, job)["status"] == "done"
    assert workshop.store.manifest(job.key).digest == digest
    assert not (workshop.store.root / "checkpoints" / job.key).exists()


def test_the_stop_of_another_run_is_not_ours(workshop: Workshop, job: Job) -> None:
    other = workshop.store.run_folder("run2")
    other.mkdir()
    (other / "stop").touch()
    assert run(workshop, job)["status"] == "done"


# Failing

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("shapes do not match"), "bug"),
        (AssertionError("an invariant"), "bug"),
        (KeyError("nothing"), "bug"),
        (Diverged("iteration 3: matching loss nan"), "diverged"),
        (BadInput("recipe", "field", 3, "fix it"), "input"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory"),
        (RuntimeError("CUDA error: device-side assert triggered"), "card"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "card"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "card"),
        (RuntimeError("No CUDA GPUs are available"), "card"),
        (ValueError("a file called CUDA error"), "bug"),
        (FULL, "disk"),
        (FileNotFoundError(errno.ENOENT, "the store is gone"), "disk"),
    ],
)
def test_a_failure_has_a_reason_a_message_and_its_traceback_in_the_log(
    workshop: Workshop, job: Job, error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing(monkeypatch, raising(error))
    ended = run(workshop, job)
    assert (ended["status"], ended["reason"]) == ("failed", reason)
    assert ended["message"].startswith(f"{type(error).__name__}: {error}")
    assert "parent" not in ended
    log = Path(ended["log"])
    assert log == workshop.store.root / "runs" / RUN / "logs" / f"{job.key}.log"
    text = log.read_text()
    assert "Traceback (most recent call last)" in text and "raise error" in text and str(error) in text
    assert not workshop.store.has(job.key) and free(workshop, job.key)
    assert list((workshop.store.root / "tmp").iterdir()) == []


def test_what_cannot_do_with_less_memory_is_not_tried_again_and_names_its_sizes(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing(monkeypatch, raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")))
    first = run(workshop, job)
    assert first["reason"] == "memory", "the adjoint is left to it"
    assert first["message"].endswith("; now with the adjoint, a step's graph at a time")
    saving = {**job.canonical()["spec"]["settings"], "engine": "adjoint"}
    for ended in (run(workshop, job, memory_level=1), run(workshop, changed(job, settings=saving))):
        assert ended["reason"] == "too_large" and "Tried to allocate 2 GiB" in ended["message"]
        assert "larger card" in ended["message"] and "network.width 8" in ended["message"]


def test_a_full_disk_comes_with_the_mend(workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(context: JobContext, folder: Path) -> Any:
        with full_disk_explained(workshop.store.root):
            raise OSError(errno.ENOSPC, "No space left on device")

    doing(monkeypatch, work)
    ended = run(workshop, job)
    assert ended["reason"] == "disk" and "free space there" in ended["message"]


def test_a_failed_job_can_be_tried_again(workshop: Workshop, job: Job) -> None:
    with pytest.MonkeyPatch.context() as patch:
        doing(patch, raising(RuntimeError("once")))
        assert run(workshop, job)["status"] == "failed"
    ended = run(workshop, job)
    assert ended["status"] == "done"
    assert "once" in Path(ended["log"]).read_text()  # the log goes on, nothing is lost


def test_a_stage_that_really_diverges_says_so(workshop: Workshop, job: Job) -> None:
    wild = {**job.canonical()["spec"]["settings"], "step_size_form": "linear", "lr_step_size": 1e6}
    ended = run(workshop, changed(job, settings=wild))
    assert ended["reason"] == "diverged" and "or lr_step_size" in ended["message"]


def test_settings_that_the_experts_cannot_serve_are_the_users_to_mend(workshop: Workshop, job: Job) -> None:
    greedy = {**job.canonical()["spec"]["settings"], "max_start_epoch": 9}
    ended = run(workshop, changed(job, settings=greedy))
    assert ended["reason"] == "input" and "distil.settings.max_start_epoch is 9" in ended["message"]


def test_a_raised_memory_level_reaches_the_bench(workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []

    def work(context: JobContext, folder: Path) -> Outcome:
        levels.append(context.memory_level)
        (folder / "a").write_bytes(b"a")
        return Outcome()

    doing(monkeypatch, work)
    run(workshop, job, memory_level=2)
    assert levels == [2]


# Parents


def test_a_missing_parent_is_named_and_the_job_not_begun(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing(monkeypatch, raising(AssertionError("begun")))
    for key in (job.parents["sets"][0], job.parents["experts"][1]):
        kept = workshop.store.quarantine(key, "to be missed")
        ended = run(workshop, job)
        assert (ended["status"], ended["reason"], ended["parent"]) == ("failed", "parent", key)
        assert key in ended["message"] and free(workshop, job.key)
        os.rename(kept, workshop.store.root / "objects" / key.split("-")[0] / key)


def test_a_parent_cut_short_is_named_and_quarantined(workshop: Workshop, job: Job) -> None:
    key = job.parents["sets"][0]
    path = workshop.store.path(key, EXACT)
    path.write_bytes(path.read_bytes()[:-1])
    ended = run(workshop, job)
    assert (ended["reason"], ended["parent"]) == ("parent", key)
    assert not workshop.store.has(key)
    assert len(list((workshop.store.root / "quarantine").glob(f"{key}-*"))) == 1


def test_a_parent_damaged_without_a_change_of_size_is_found_when_the_job_fails_on_it(
    workshop: Workshop, job: Job
) -> None:
    key = job.parents["experts"][1]
    path = workshop.store.path(key, TRAJECTORIES)
    content = bytearray(path.read_bytes())
    content[-200:] = bytes(200)  # the footer: the file cannot be opened
    path.write_bytes(content)
    ended = run(workshop, job)
    assert (ended["reason"], ended["parent"]) == ("parent", key)
    assert not workshop.store.has(key)
    assert "Traceback" in Path(ended["log"]).read_text()


def test_a_parent_that_vanishes_while_the_job_runs_is_named(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = job.parents["sets"][0]

    def work(context: JobContext, folder: Path) -> Any:
        context.store.quarantine(key, "somebody else found it damaged")
        context.store.path(key, EXACT)

    doing(monkeypatch, work)
    ended = run(workshop, job)
    assert ended["message"].startswith("Damaged: ")
    assert (ended["reason"], ended["parent"]) == ("parent", key)


def test_damage_that_was_repaired_meanwhile_is_still_a_matter_of_a_parent(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing(monkeypatch, raising(Damaged("it was cut short")))
    ended = run(workshop, job)
    assert ended["reason"] == "parent" and "parent" not in ended


# The edges: what goes wrong around the job


@pytest.mark.parametrize("name", ["take", "release"])
def test_a_file_system_in_trouble_around_the_job_does_not_raise_either(
    workshop: Workshop, job: Job, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble(*args: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    if name == "take":
        monkeypatch.setattr(Claims, "take", trouble)
    else:
        monkeypatch.setattr(Claims, "remove", trouble)
    ended = run(workshop, job)
    assert (ended["status"], ended.get("reason")) == (("failed", "disk") if name == "take" else ("done", None))


def test_a_store_that_cannot_be_opened_is_the_users_to_mend(tmp_path: Path, job: Job) -> None:
    (tmp_path / "file").write_bytes(b"")
    ended = execute(job.to_json(), str(tmp_path / "file"), RUN)
    assert (ended["status"], ended["reason"], ended["key"]) == ("failed", "input", job.key)


def test_a_crash_of_the_interpreter_is_not_swallowed_but_the_claim_is_released(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing(monkeypatch, raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(workshop, job)
    assert free(workshop, job.key)
    assert list((workshop.store.root / "tmp").iterdir()) == []


def test_logging_is_left_as_it_was_and_the_log_is_private(workshop: Workshop, job: Job) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    log = Path(run(workshop, job)["log"])
    assert (root.level, list(root.handlers)) == before
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == stat.S_IMODE(log.parent.parent.stat().st_mode) == 0o700
    length = log.stat().st_size
    logging.getLogger("elsewhere").warning("after the job")
    assert log.stat().st_size == length


def test_a_store_that_cannot_be_written_is_a_sentence_and_no_traceback(
    workshop: Workshop, job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(root: str) -> Store:
        raise BadInput("--store", "store", root, "give a folder that you can write to (Read-only file system)")

    monkeypatch.setattr(Store, "open", refuse)
    ended = run(workshop, job)
    assert (ended["status"], ended["reason"]) == ("failed", "input") and "Read-only" in ended["message"]
    assert not caplog.records


def test_a_log_that_cannot_be_written_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log = module._LogFile("/dev/full")
    log.handle(logging.makeLogRecord({"msg": "a line", "levelno": logging.INFO, "levelname": "INFO"}))
    log.close()
    assert capsys.readouterr().err == ""


def test_missing_jobs_are_done_parents_first_and_others_left_alone(tmp_path: Path) -> None:
    workshop = Workshop.open(tmp_path, {"method": "random", "ipc_per_stage": 1}, {"method": "full"}, networks=1)
    job = workshop.job("evaluate")
    perform_missing(workshop.plan.graph, workshop.store, [job.key])
    done = {each.key for each in workshop.plan.graph if workshop.store.has(each.key)}
    assert done == workshop.plan.graph.ancestors([job.key]) < workshop.plan.graph.jobs.keys()
    before = workshop.store.manifest(job.key)
    perform_missing(workshop.plan.graph, workshop.store, [job.key])
    assert workshop.store.manifest(job.key) == before
