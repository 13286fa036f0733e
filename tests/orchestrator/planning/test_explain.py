from __future__ import annotations

from pathlib import Path

from orchestrator.planning.explain import Explanation, explain, image_visits, sources_of
from orchestrator.planning.requests import Request, ResolvedRequest, resolve
from workers.store.store import Store


def tiny(*settings: str) -> ResolvedRequest:
    return resolve(Request(experiments=("tiny",), settings=settings))


def store_of(root: Path, asked: ResolvedRequest, *kinds: str) -> Store:
    """A store in which all jobs of these kinds are done."""
    store = Store.open(root)
    for job in asked.plan.graph:
        if job.kind in kinds:
            canonical = job.canonical()
            with store.put(job.key, job.kind, canonical["spec"], job.parents, device="cpu") as folder:
                (folder / "data").write_text("x")
    return store


def first(found: list[Explanation], kind: str) -> Explanation:
    return next(one for one in found if one.kind == kind)


def test_every_job_is_explained_in_the_order_of_the_plan(tmp_path: Path) -> None:
    asked = tiny()
    found = explain(asked.plan, Store.open(tmp_path))
    assert [one.key for one in found] == list(asked.plan.graph.jobs)


def test_a_job_that_is_done_is_cached_and_one_without_a_like_says_so(tmp_path: Path) -> None:
    asked = tiny()
    found = explain(asked.plan, store_of(tmp_path, asked, "dataset"))
    assert (first(found, "dataset").cached, first(found, "dataset").reason) == (True, "cached")
    assert not first(found, "full").cached
    assert first(found, "full").reason == "no full job was ever finished in this store"


def test_the_image_visits_of_each_mode_stand_side_by_side() -> None:
    """Tiny digits have 8 epochs in all: 4 a set, and 8/(3+1) a stage; 2 images of 10 classes in each of 3 stages."""
    visits = image_visits(resolve(Request(experiments=("ablations",), scale="tiny")).plan)
    assert [(cell.mode, cell.stage, cell.visits) for cell in visits[:3]] == [
        ("progressive", 3, (20 + 40 + 60) * 2),
        ("union", 3, 60 * 4),
        ("sequential", 3, 3 * 20 * 4),
    ]


def test_the_changed_field_is_named_with_both_values(tmp_path: Path) -> None:
    store = store_of(tmp_path, tiny(), "dataset", "experts", "distil", "full")
    found = explain(tiny("distil.iterations=9").plan, store)
    assert first(found, "dataset").cached and first(found, "experts").cached
    distil = first(found, "distil")
    assert distil.changed == ("spec.iterations: 6 -> 9",) and distil.reason.startswith("differs from distil-mtt-stage1")


def test_a_deep_field_is_named_by_its_path(tmp_path: Path) -> None:
    store = store_of(tmp_path, tiny(), "distil")
    found = explain(tiny("distil.settings.syn_steps=3", "distil.image.lr=0.5").plan, store)
    assert first(found, "distil").changed == ("spec.image.lr: 0.03 -> 0.5", "spec.settings.syn_steps: 2 -> 3")


def test_a_child_of_a_changed_job_differs_in_its_parents_only(tmp_path: Path) -> None:
    store = store_of(tmp_path, tiny(), "dataset", "full")
    found = explain(tiny("dataset.train_per_class=30").plan, store)
    assert any(change == "spec.train_per_class: 40 -> 30" for change in first(found, "dataset").changed)
    (change,) = first(found, "full").changed
    assert change.startswith("parents.dataset: ") and first(found, "dataset").key in change


def test_the_nearest_finished_job_is_the_one_compared_with(tmp_path: Path) -> None:
    """Stage 1 of the two arms differs in ipc; a third one that differs from the first only in iterations is nearer."""
    store = store_of(tmp_path, tiny(), "distil")
    found = explain(tiny("arms.1.set={distil.iterations: 9}").plan, store)
    one = next(one for one in found if one.kind == "distil" and not one.cached)
    assert one.changed == ("spec.iterations: 6 -> 9",)


def test_an_older_version_of_the_algorithm_is_named(tmp_path: Path) -> None:
    asked = tiny()
    job = next(job for job in asked.plan.graph if job.kind == "full")
    store = Store.open(tmp_path)
    old = f"{job.key.rsplit('-', 1)[0]}-0000000000000000"
    with store.put(old, job.kind, job.canonical()["spec"], job.parents, device="cpu") as folder:
        (folder / "data").write_text("x")
    found = next(one for one in explain(asked.plan, store) if one.key == job.key)
    assert (found.cached, found.changed) == (False, ()) and f"version differs from that of {old}" in found.reason


def test_a_damaged_artifact_is_not_cached(tmp_path: Path) -> None:
    asked = tiny()
    store = store_of(tmp_path, asked, "dataset")
    (key,) = store.keys("dataset")
    store.path(key, "data").write_text("")
    assert not first(explain(asked.plan, store), "dataset").cached


def test_the_numbers_of_a_recipe_come_with_their_sources() -> None:
    asked = tiny("distil.iterations=9")
    key = next(job.key for job in asked.plan.graph if job.kind == "distil")
    rows = {path: (value, source) for path, value, source in sources_of(asked.plan, key)}
    assert rows["distil.iterations"] == ("9", "command line over tiny.yaml")
    assert rows["distil.checkpoint_every"] == ("2", "ours: seconds, for tests")
    assert list(rows) == sorted(rows)
