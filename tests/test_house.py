"""The house stays in order: what lies at the top, what links point to, how long a file may be."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jobs", "workers", "orchestrator")
TOP_LEVEL = {
    *PACKAGES,
    *("tests", "docs", ".ci", ".git", ".github", ".gitignore"),
    *("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE"),
    *(".pre-commit-config.yaml",),
    *("Makefile", "cluster.yaml", "pyproject.toml"),
}
LONGEST_MODULE = 450
LONGEST_README = 150
PRIVATE_WORDS = re.compile(
    r"\b(?:[Mm]end(?:s|ed|ing)?|[Ss]ummon(?:s|ed)?|drought|[Ll]ent|Desk|DESK|Wish|Bench|Shift|Rendezvous|rendezvous"
    r"|Course|Urgency|Witness|Purchase|Allowances|ForeignCluster|NodeUse|SlurmFleet|_Ear|_Moving|[Ww]hole_graph"
    r"|[Cc]ohorts?|[Hh]ypertext|[Cc]ontinual)\b"
)
"""Words that this code once had for things that the field has words for (ARCHITECTURE.md)."""
WITHOUT_ARGS = {
    "jobs/arm_jobs.py": 2,
    "jobs/documents.py": 2,
    "jobs/keys.py": 1,
    "orchestrator/cli": 11,
    "orchestrator/clusters": 14,
    "orchestrator/planning": 1,
    "orchestrator/reports": 3,
    "orchestrator/results": 2,
    "orchestrator/runs": 6,
    "orchestrator/scheduler": 2,
    "orchestrator/slurm_driver.py": 2,
    "orchestrator/workloads": 16,
    "workers/data": 8,
    "workers/execute.py": 1,
    "workers/methods": 19,
    "workers/store": 2,
    "workers/tasks": 2,
    "workers/training": 13,
}
"""How many public functions of three or more parameters still have no Args, by room; no number may grow."""
EVERYBODYS = {Path(folder) for folder in ("/", "/home", "/tmp", "/usr", "/usr/local")}


def kept_files(root: Path) -> list[Path]:
    """The files that belong to the project, relative to its root: git's answer, else all but the ignored."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return [path.relative_to(root) for path in sorted(root.rglob("*")) if not is_ignored(path, root)]
    return [Path(name) for name in names if (root / name).is_file()]


def is_ignored(path: Path, root: Path) -> bool:
    """Whether .gitignore (names and globs only, as ours is written) covers a path, or it is not a file."""
    lines = (root / ".gitignore").read_text().splitlines()
    patterns = [line.strip("/") for line in lines if line and not line.startswith("#")]
    parts = path.relative_to(root).parts
    return not path.is_file() or any(
        part == ".git" or any(fnmatch.fnmatch(part, pattern) for pattern in patterns) for part in parts
    )


def text_of(file: Path) -> str:
    """A file's text; nothing if it is binary."""
    try:
        return (ROOT / file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def links(markdown: str) -> list[str]:
    """The relative targets of a page's links and images, without anchors; code is not searched."""
    prose = re.sub(r"^(```|~~~).*?^\1|`[^`\n]*`", "", markdown, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)", prose)
    referenced = re.findall(r"^\s*\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)", prose, flags=re.MULTILINE)
    targets = [target.partition("#")[0] for target in inline + referenced]
    return [target for target in targets if target and not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def names_folder(text: str, folder: Path) -> bool:
    """Whether a text names a folder, or anything in it, by its absolute path."""
    return re.search(rf"(?<![\w./~-]){re.escape(str(folder))}(?![\w-]|\.\w)", text) is not None


def private_words(text: str) -> list[str]:
    """The words of a text that stand for something in this code alone."""
    return PRIVATE_WORDS.findall(text)


def functions_without_args(tree: ast.AST) -> list[str]:
    """The public functions and methods of three or more parameters whose docstring has no Args."""
    missing = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                missing += functions_without_args(node)
            elif len(parameters(node)) >= 3 and "Args:" not in (ast.get_docstring(node) or ""):
                missing.append(node.name)
    return missing


def parameters(function: ast.FunctionDef) -> list[str]:
    """The names of a function's parameters, without self and cls."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


FILES = kept_files(ROOT)
MODULES = [file for file in FILES if file.suffix == ".py" and file.parts[0] in PACKAGES]


def test_the_top_level_holds_only_the_allowed_names() -> None:
    assert {file.parts[0] for file in FILES} <= TOP_LEVEL


def test_the_readme_can_be_read_in_one_go() -> None:
    for readme in {Path("README.md")} & set(FILES):
        assert len(text_of(readme).splitlines()) < LONGEST_README


def test_every_relative_link_leads_to_a_file_of_the_project() -> None:
    for page in (file for file in FILES if file.suffix == ".md"):
        for link in links(text_of(page)):
            target = (ROOT / page.parent / link).resolve()
            assert target.exists() and target.is_relative_to(ROOT), f"{page}: {link} leads nowhere"


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    here = {ROOT.parent, Path.home(), Path(sys.prefix)} - EVERYBODYS - {ROOT / ".venv"}
    named = [(str(file), str(folder)) for file in FILES for folder in here if names_folder(text_of(file), folder)]
    assert named == []


def test_every_public_module_opens_with_a_docstring() -> None:
    public = [file for file in MODULES if not re.match(r"_(?!_)", file.name)]
    assert [str(file) for file in public if not ast.get_docstring(ast.parse(text_of(file)))] == []


def test_no_module_is_too_long_to_be_one_noun() -> None:
    lengths = {str(file): len(text_of(file).splitlines()) for file in MODULES}
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST_MODULE} == {}


def test_no_private_word_comes_back() -> None:
    sources = [file for file in FILES if file.parts[0] in PACKAGES]
    assert {str(file): words for file in sources if (words := private_words(text_of(file)))} == {}


def test_no_more_functions_go_without_their_arguments_than_did() -> None:
    counts: Counter[str] = Counter()
    for file in MODULES:
        counts["/".join(file.parts[:2])] += len(functions_without_args(ast.parse(text_of(file))))
    assert {room: number for room, number in counts.items() if number > WITHOUT_ARGS.get(room, 0)} == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it mends the Desk", ["mends", "Desk"]),
        ("the shift of a pixel; I wish; of course; amended; silent", []),
        ("whole_graph = 1  # lent", ["whole_graph", "lent"]),
    ],
)
def test_private_words_are_found_and_plain_ones_are_not(text: str, words: list[str]) -> None:
    assert private_words(text) == words


def test_a_function_of_three_parameters_without_args_is_found() -> None:
    source = """
class Public:
    def short(self, a, b): ...
    def long(self, a, b, *, c): ...
    def _own(self, a, b, c): ...
def told(a, b, c):
    'Args:'
"""
    assert functions_without_args(ast.parse(source)) == ["long"]


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("see [a](docs/a.md#part) and ![b](b.png 'title')", ["docs/a.md", "b.png"]),
        ("[web](https://example.org) [mail](mailto:a@b.c) [here](#part)", []),
        ("```\n[a](a.md)\n```\n`[b](b.md)`", []),
        ("[a][1]\n\n[1]: ../a.md", ["../a.md"]),
    ],
)
def test_links_are_found_outside_code_and_only_the_relative_ones(markdown: str, found: list[str]) -> None:
    assert links(markdown) == found


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cd /lab && ls", True),
        ("'/lab/data'", True),
        ("tests/lab", False),
        ("/laboratory", False),
        ("It lies in /lab.", True),
        ("../lab", False),
    ],
)
def test_a_folder_is_named_by_its_whole_absolute_path_only(text: str, named: bool) -> None:
    assert names_folder(text, Path("/lab")) == named


def test_without_git_the_ignored_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("# caches\n__pycache__/\n*.egg-info/\n/.venv/\n")
    for kept in ("jobs/a.py", "README.md", ".ci/run"):
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).touch()
    for dropped in ("jobs/__pycache__/a.pyc", "x.egg-info/PKG-INFO", ".venv/bin/python", ".git/config"):
        (tmp_path / dropped).parent.mkdir(parents=True)
        (tmp_path / dropped).touch()
    kept_and_ignore_file = {".gitignore", "jobs/a.py", "README.md", ".ci/run"}
    assert {str(file) for file in kept_files(tmp_path)} == kept_and_ignore_file
