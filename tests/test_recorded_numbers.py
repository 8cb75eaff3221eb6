"""The parts of pages that are made at the build: a page gets what it asks for, or none is built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import recorded_numbers
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parent.parent
CONF = """
import sys
sys.path.insert(0, {ext!r})
{before}
extensions = ["myst_parser", "recorded_numbers"]
myst_enable_extensions = ["substitution"]
"""


def built(folder: Path, page: str, before: str = "") -> tuple[int, str]:
    """Status and output of a build of one page, warnings as errors, as `make book` has them."""
    conf = CONF.format(ext=str(ROOT / "book" / "_ext"), before=before)
    (folder / "conf.py").write_text(conf, encoding="utf-8")
    (folder / "index.md").write_text(f"# Title\n\n{page}\n", encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-b", "html", folder, folder / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    return process.returncode, process.stdout + process.stderr


def test_the_pages_ask_for_every_part_and_for_no_other() -> None:
    asked = []
    for page in (ROOT / "book").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        asked += re.findall(r"^\{\{ (\w+) \}\}$", text, flags=re.M)
    assert sorted(asked) == sorted(
        name for page in recorded_numbers.PAGES for name in page.FRAGMENTS
    )


def test_a_page_shows_what_it_asks_for_and_its_figure(tmp_path: Path) -> None:
    page = "{{ ledger_guarantee }}\n\n![Acceptance](/_build/drawn/acceptance.svg)"
    status, output = built(tmp_path, page)
    assert status == 0, output
    assert "of the optimum" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "_images" / "acceptance.svg").is_file()


def test_a_page_that_asks_for_an_unknown_number_is_not_built(tmp_path: Path) -> None:
    status, output = built(tmp_path, "{{ ledger_of_nothing }}")
    assert status != 0
    assert "ledger_of_nothing" in output


def test_a_summary_without_a_field_ends_the_build(tmp_path: Path) -> None:
    spoil = """
from spectr_lite.book import recorded
whole = recorded.summary
def summary(name):
    found = whole(name)
    for row in found.get("timings", []):
        row.pop("median_ms", None)
    return found
recorded.summary = summary
"""
    status, output = built(tmp_path, "{{ ledger_guarantee }}", spoil)
    assert status != 0
    assert re.search(r"fragment front_numbers cannot be made: KeyError\(.median_ms.\)", output)


@pytest.mark.parametrize("page", recorded_numbers.PAGES, ids=lambda page: page.__name__)
def test_a_part_that_cannot_be_made_is_named(page, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(page.FRAGMENTS))
    monkeypatch.setitem(page.FRAGMENTS, name, lambda: {}["a field"])
    with pytest.raises(ExtensionError, match=f"{name} cannot be made.*a field"):
        recorded_numbers.fragments()
