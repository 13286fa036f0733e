"""Imports run orchestrator -> workers -> jobs, never back; inside a package they run down the floors of its rooms.

The packages' direction is checked twice. Dynamically: a fresh interpreter imports every module and looks at what came
along, so an import through a third module counts. Statically: the syntax trees are read, so an import inside a function
counts. The rooms' floors, the circles between modules and the sizes of folders are read from the syntax trees.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jobs", "workers", "orchestrator")
FORBIDDEN = {
    "jobs": {"torch", "torchvision", "ray", "submitit", "pyarrow", "workers", "orchestrator"},
    "workers": {"ray", "submitit", "orchestrator"},
}
ALLOWED_RAY = {"orchestrator/clusters/ray_cluster.py", "orchestrator/workloads/sweep/tune.py"}
ALLOWED_SUBMITIT = {"orchestrator/clusters/slurm/submit.py"}

# From the top down: a room may import the rooms of lower floors, none of its own floor or above. A room is a folder, or
# a module that lies beside folders; what lies below a folder belongs to it, unless it is named here itself.
FLOORS = (
    ("orchestrator.launch",),
    ("orchestrator.cli", "orchestrator.slurm_driver"),
    ("orchestrator.workloads", "orchestrator.export"),
    ("orchestrator.clusters.slurm",),
    ("orchestrator.clusters",),
    ("orchestrator.planning", "orchestrator.reports"),
    ("orchestrator.runs",),
    ("orchestrator.scheduler", "orchestrator.results"),
    ("workers.execute",),
    ("workers.tasks",),
    ("workers.methods",),
    ("workers.training",),
    ("workers.data",),
    ("workers.runtime",),
    ("workers.store",),
    ("jobs",),
)
STILL_UPWARD: set[tuple[str, str]] = set()  # arrows between rooms that are known to run the wrong way, and must go
FOLDERS = {"orchestrator": 9, "workers": 6}
LOOSE_MODULES = {"orchestrator": {"launch.py", "slurm_driver.py"}, "workers": {"execute.py"}}
MOST_MODULES = 10  # in a folder; `jobs`, which is flat, aside

# Arguments: the tree's root, and the modules and the forbidden names as JSON lists. The tree comes first on
# the path and answers are checked to come from it, so an installed copy cannot stand in for it.
IMPORT_EACH = """
import importlib, json, sys
root, modules, forbidden = sys.argv[1], json.loads(sys.argv[2]), set(json.loads(sys.argv[3]))
sys.path.insert(0, root)
culprits, seen = {}, set()
for name in modules:
    module = importlib.import_module(name)
    assert module.__file__.startswith(root), f"{name} came from {module.__file__}, not from {root}"
    came = forbidden & sys.modules.keys() - seen
    if came:
        culprits[name] = sorted(came)
        seen |= came
print(json.dumps(culprits))
"""


def sources(root: Path, package: str) -> list[Path]:
    """Every Python file of a package, by name."""
    return sorted((root / package).rglob("*.py"))


def module_name(root: Path, source: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = source.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def brought_along(root: Path, modules: list[str], forbidden: set[str]) -> dict[str, list[str]]:
    """Which of the modules, imported in this order, first bring in which forbidden ones."""
    arguments = [str(root), json.dumps(modules), json.dumps(sorted(forbidden))]
    run = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT_EACH, *arguments], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    culprits: dict[str, list[str]] = json.loads(run.stdout.splitlines()[-1])
    return culprits


def imports(tree: ast.AST) -> Iterator[str]:
    """The top-level names of all absolute imports in a syntax tree, at any depth."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module.partition(".")[0]


def importers(root: Path, package: str, wanted: set[str]) -> dict[str, list[str]]:
    """The files of a package that name one of the wanted modules in an import."""
    found = {
        source.relative_to(root).as_posix(): sorted(wanted & set(imports(ast.parse(source.read_bytes()))))
        for source in sources(root, package)
    }
    return {file: names for file, names in found.items() if names}


def all_modules(root: Path, package: str) -> list[str]:
    """The dotted names of every module of a package."""
    return [module_name(root, source) for source in sources(root, package)]


def module_graph(root: Path) -> dict[str, set[str]]:
    """For every module of the three packages, the modules of theirs that it imports anywhere in its text."""
    files = {module_name(root, source): source for package in PACKAGES for source in sources(root, package)}
    return {name: imported_modules(ast.parse(file.read_bytes()), files.keys()) for name, file in files.items()}


def imported_modules(tree: ast.AST, modules: Collection[str]) -> set[str]:
    """Those of the modules that a syntax tree imports: `from a.b import c` is a.b.c if that is one, else a.b."""
    named = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                named |= {name.name for name in names}
            case ast.ImportFrom(module=str(module), level=0, names=names):
                whole = {f"{module}.{name.name}" for name in names}
                named |= whole & set(modules) if whole <= set(modules) else {module, *(whole & set(modules))}
    return named & set(modules)


def room_of(module: str) -> str | None:
    """The longest room that a module lies in; None for a package's own `__init__`."""
    rooms = (room for floor in FLOORS for room in floor if module == room or module.startswith(f"{room}."))
    return max(rooms, key=len, default=None)


def upward(graph: dict[str, set[str]]) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """The arrows between rooms that do not run down, each with the imports that it is made of."""
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    arrows: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for module, imported in graph.items():
        for other in imported:
            here, there = room_of(module), room_of(other)
            if here and there and here != there and floor[here] >= floor[there]:
                arrows.setdefault((here, there), set()).add((module, other))
    return arrows


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that import each other, directly or through others."""
    reached = {module: reachable(graph, module) for module in graph}
    groups = {frozenset(other for other in reached[m] if m in reached[other]) for m in graph if m in reached[m]}
    return sorted((set(group) for group in groups), key=sorted)


def reachable(graph: dict[str, set[str]], module: str) -> set[str]:
    """All that a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def folders(root: Path, package: str) -> list[Path]:
    """The folders of a package that hold Python files, itself first."""
    return sorted({source.parent for source in sources(root, package)})


def modules_in(folder: Path) -> set[str]:
    """The modules that lie in a folder itself, its `__init__` aside."""
    return {file.name for file in folder.glob("*.py")} - {"__init__.py"}


def crowded(root: Path) -> dict[str, int]:
    """The folders with too many modules, and how many those are."""
    sizes = {folder: len(modules_in(folder)) for package in FOLDERS for folder in folders(root, package)}
    return {str(folder.relative_to(root)): size for folder, size in sizes.items() if size > MOST_MODULES}


def top_of(root: Path, package: str) -> tuple[int, set[str]]:
    """How many folders lie directly in a package, and which modules lie beside them."""
    rooms = [folder for folder in folders(root, package) if folder.parent == root / package]
    return len(rooms), modules_in(root / package)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_importing_every_module_brings_nothing_forbidden_along(package: str) -> None:
    modules = all_modules(ROOT, package)
    assert package in modules
    assert brought_along(ROOT, modules, FORBIDDEN[package]) == {}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_source_names_a_forbidden_import_not_even_inside_a_function(package: str) -> None:
    assert importers(ROOT, package, FORBIDDEN[package]) == {}


@pytest.mark.parametrize(("library", "allowed"), [("ray", ALLOWED_RAY), ("submitit", ALLOWED_SUBMITIT)])
def test_a_cluster_library_is_imported_only_where_it_is_allowed(library: str, allowed: set[str]) -> None:
    found = {file for package in PACKAGES for file in importers(ROOT, package, {library})}
    assert found <= allowed


def test_the_store_imports_without_torch() -> None:
    assert brought_along(ROOT, ["workers.store.store"], {"torch"}) == {}


def test_every_module_lies_in_a_room_and_every_room_holds_one() -> None:
    modules = set(module_graph(ROOT))
    assert {module for module in modules if room_of(module) is None} <= set(PACKAGES)
    assert {room_of(module) for module in modules} - {None} == {room for floor in FLOORS for room in floor}


def test_imports_between_rooms_run_down() -> None:
    wrong = upward(module_graph(ROOT))
    assert {arrow: imports for arrow, imports in wrong.items() if arrow not in STILL_UPWARD} == {}
    assert STILL_UPWARD <= wrong.keys(), "an arrow that no longer runs the wrong way: take it out of STILL_UPWARD"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(module_graph(ROOT)) == []


def test_no_folder_is_crowded() -> None:
    assert crowded(ROOT) == {}


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_shows_its_rooms_and_little_else(package: str) -> None:
    rooms, loose = top_of(ROOT, package)
    assert rooms <= FOLDERS[package]
    assert loose <= LOOSE_MODULES[package]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the three packages, to be spoilt."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(("package", "bad"), [("jobs", "workers"), ("jobs", "pyarrow"), ("workers", "orchestrator")])
def test_the_dynamic_check_finds_an_import_through_a_third_module(tree: Path, package: str, bad: str) -> None:
    (tree / "third.py").write_text(f"import {bad}\n")
    (tree / package / "spoilt.py").write_text("import third\n")
    found = brought_along(tree, all_modules(tree, package), FORBIDDEN[package])
    assert found == {f"{package}.spoilt": [bad]}


@pytest.mark.parametrize(
    "statement",
    [
        "import {bad}",
        "import {bad}.deep as shallow",
        "from {bad}.deep import name",
        "def late():\n    from {bad} import name",
        "import importlib\ndef late():\n    importlib.import_module('{bad}.deep')",
        "__import__('{bad}')",
    ],
)
@pytest.mark.parametrize(("package", "bad"), [("jobs", "torch"), ("workers", "ray")])
def test_the_static_check_finds_every_form_of_import(tree: Path, package: str, bad: str, statement: str) -> None:
    (tree / package / "spoilt.py").write_text(statement.format(bad=bad) + "\n")
    assert importers(tree, package, FORBIDDEN[package]) == {f"{package}/spoilt.py": [bad]}


def test_the_static_check_leaves_relative_imports_and_like_names_alone(tree: Path) -> None:
    (tree / "jobs" / "fair.py").write_text("from . import ray\nfrom .torch import x\nimport raylike\n")
    assert importers(tree, "jobs", FORBIDDEN["jobs"]) == {}


def spoil(tree: Path, module: str, statement: str) -> None:
    """Add a module with one import to a copy of the packages."""
    file = tree / (module.replace(".", "/") + ".py")
    file.write_text(f"{statement}\n")


@pytest.mark.parametrize(
    ("module", "statement", "arrow"),
    [
        ("orchestrator.scheduler.bad", "from orchestrator.runs import driver", "runs"),
        ("orchestrator.scheduler.bad", "def late():\n    import orchestrator.runs.driver", "runs"),
        ("orchestrator.scheduler.bad", "from orchestrator.results.cells import collect", "results"),
        ("workers.store.bad", "from workers.tasks.distil import run", "tasks"),
    ],
)
def test_an_import_up_or_along_a_floor_is_found(tree: Path, module: str, statement: str, arrow: str) -> None:
    spoil(tree, module, statement)
    package, room, _ = module.split(".")
    found = upward(module_graph(tree))
    assert {made_by for made_by, _ in found[f"{package}.{room}", f"{package}.{arrow}"]} == {module}


def test_a_circle_of_modules_is_found(tree: Path) -> None:
    spoil(tree, "workers.data.one", "from workers.data import two")
    spoil(tree, "workers.data.two", "import workers.data.three")
    spoil(tree, "workers.data.three", "def late():\n    from workers.data.one import x")
    assert {f"workers.data.{name}" for name in ("one", "two", "three")} in circles(module_graph(tree))


def test_a_crowded_folder_a_new_folder_and_a_loose_module_are_found(tree: Path) -> None:
    for number in range(MOST_MODULES + 1):
        spoil(tree, f"orchestrator.export.bad{number}", "")
    assert crowded(tree)["orchestrator/export"] > MOST_MODULES
    before, _ = top_of(tree, "workers")
    (tree / "workers" / "attic").mkdir()
    spoil(tree, "workers.attic.bad", "")
    spoil(tree, "workers.bad", "")
    assert top_of(tree, "workers") == (before + 1, {"execute.py", "bad.py"})
    assert room_of("workers.attic.bad") is None
