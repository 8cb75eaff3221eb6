"""Descriptions of pages, where a link to one is shown: plain words, and the page's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = """
import sys
sys.path.insert(0, {ext!r})
extensions = ["myst_parser", "social_cards"]
myst_enable_extensions = ["dollarmath"]
ogp_site_url = "https://example.org/book/"
ogp_social_cards = {{"image": {card!r}, "image_mini": {card!r}}}
"""
PAGES = {
    "index": 'Read it.\n\nAt "best" a rule keeps $\\tfrac12$ of the drafts, or $p_{max}$ of them.',
    "chapter": "A first paragraph that is long enough to be a description.\n\n*The summary in italics,"
    " which says what a reader will learn here.*",
    "long": "word " * 100,
    "empty": "Short.",
}


def test_a_description_is_the_summary_in_plain_words(tmp_path: Path) -> None:
    card = str(ROOT / "book" / "_static" / "card.png")
    conf = CONF.format(ext=str(ROOT / "book" / "_ext"), card=card)
    (tmp_path / "conf.py").write_text(conf, encoding="utf-8")
    for name, text in PAGES.items():
        (tmp_path / f"{name}.md").write_text(f"---\norphan: true\n---\n# On {name}\n\n{text}\n")
    process = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-b", "html", tmp_path, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found = {}
    for name in PAGES:
        page = (tmp_path / "out" / f"{name}.html").read_text(encoding="utf-8")
        (found[name],) = re.findall(r'property="og:description" content="([^"]*)"', page)
        assert f'name="description" content="{found[name]}"' in page
        (image,) = re.findall(r'"og:image" content="https://example.org/book/([^"]*)"', page)
        assert (tmp_path / "out" / image).is_file()
    assert found["index"] == ("At “best” a rule keeps 1/2 of the drafts, or p_max of them.")
    assert found["chapter"] == "The summary in italics, which says what a reader will learn here."
    assert found["long"].endswith("word …") and len(found["long"]) <= 200
    assert found["empty"] == "On empty"
