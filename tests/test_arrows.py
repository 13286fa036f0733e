"""Imports run orchestrator -> workers -> jobs, never back.

Told twice. Dynamically: a fresh interpreter imports every module and looks at what came along, so an import
through a third module counts. Statically: the syntax trees are read, so an import inside a function counts.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
