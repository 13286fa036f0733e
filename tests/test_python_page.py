"""The code of docs/python.md, run block after block as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_house import ROOT

PAGE = ROOT / "docs" / "python.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_the_page_has_short_blocks() -> None:
    assert len(blocks()) == 5 and all(len(block.splitlines()) <= 12 for block in blocks())


@pytest.mark.slow
def test_the_blocks_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks():
        if block.startswith("# mine.py"):
            Path("mine.py").write_text(block, encoding="utf-8")
            continue
        exec(compile(block, str(PAGE), "exec"), names)
    store, stage = names["store"], names["stage"]
    assert names["result"].exit == 0
    assert store.has(stage.key) and len(names["synthetic"]) == len(names["synthetic"].labels)
    assert store.manifest(names["test"].key).extra["accuracy"] > 10
    jobs = names["again"].to_json()["jobs"]
    assert names["again"].exit == 0 and jobs["cached"] > jobs["done"] > 0
    assert str(names["result"].exit) in capsys.readouterr().out
