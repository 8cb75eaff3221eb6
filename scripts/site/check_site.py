"""Check the built site: every page is there, every link resolves, nothing asks another host.

    python scripts/site/check_site.py [--require-browser]

The first half reads files. The second opens every page in headless Chromium (check_site.mjs). Where
Chromium, node or npm is missing it is left out with a word; with --require-browser it fails there.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from check_notebooks import ROOT, repository
from sphinx_external_toc.parsing import parse_toc_yaml

HTML = ROOT / "_build" / "html"
NODE_MODULES = ["playwright-core@1.65.1", "axe-core@4.14.1", "lighthouse@12.8.2"]

# What a browser fetches (an <a href> it does not), and the kinds of <link rel> that it does not either.
FETCHED = {"[src]": "src", "object[data]": "data", "link[href]": "href"}
NOT_FETCHED = {"canonical", "index", "search", "next", "prev", "author", "license"}
FETCHED_BY_CSS = re.compile(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)")
MARKUP = re.compile(r"\{(cite|ref|numref|eq|doc|term|prf:ref)\b|```|:::|\]\(|\[@|\{\{|\{admonition")


def pages_of_contents() -> list[str]:
    """The pages that _toc.yml names, without suffix."""
    return list(parse_toc_yaml(ROOT / "_toc.yml"))


def check_page(page: Path, soups: dict[Path, BeautifulSoup], tracked: set[str]) -> list[str]:
    soup = soups[page]
    slug = repository()[0].removeprefix("https://github.com/")
    problems = []

    for selector, attribute in FETCHED.items():
        for element in soup.select(selector):
            address = element[attribute]
            if urlsplit(address).netloc and not set(element.get("rel", [])) & NOT_FETCHED:
                problems.append(f"fetches {address}")

    for link in soup.find_all("a", href=True):
        parts = urlsplit(link["href"])
        if parts.netloc:
            # Colab's and the repository's own links name a file of the tree
            inside = re.search(r"github(?:\.com)?/([^/]+/[^/]+)/blob/[^/]+/([^#]+)", link["href"])
            if inside and inside[1] == slug and unquote(inside[2]) not in tracked:
                problems.append(f"link to a file that is not in the tree: {link['href']}")
            if "colab.research" in parts.netloc and not parts.path.endswith(".ipynb"):
                problems.append(f"Colab opens notebooks only: {link['href']}")
            continue
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if target.is_dir():
            target /= "index.html"
        if not target.exists():
            problems.append(f"broken link {link['href']}")
        elif parts.fragment and target.suffix == ".html":
            there = soups.get(target)
            if there and not there.find(id=unquote(parts.fragment)):
                problems.append(f"no such anchor {link['href']}")

    article = soup.find("article") or soup.find("main")
    if article is None:
        return [*problems, "no article on the page"]
    for image in article.find_all("img"):
        alt = (image.get("alt") or "").strip()
        if len(alt) < 8 or alt.endswith((".png", ".svg")) or "/" in alt.split()[0]:
            problems.append(f"image {image.get('src')} has no real alt text ({alt!r})")
    for element in article.select(".system-message, .problematic, .xref.broken"):
        problems.append(f"unresolved: {element.get_text()[:80]!r}")
    for element in article.select("pre, code, script, style, .math"):
        element.extract()
    if leftover := MARKUP.search(article.get_text()):
        problems.append(f"raw markup: {leftover.group()!r}")
    return problems


def check_files() -> list[str]:
    if not (HTML / "index.html").exists():
        return [f"{HTML / 'index.html'} is missing: run `make book` first"]
    problems = [
        f"{docname}.html is in _toc.yml and was not built"
        for docname in pages_of_contents()
        if not (HTML / f"{docname}.html").exists()
    ]
    for report in (*HTML.rglob("*.err.log"), *(ROOT / "_build").glob("**/reports/*.log")):
        problems.append(f"a notebook failed: {report.relative_to(ROOT)}")
    for sheet in HTML.rglob("*.css"):
        for address in FETCHED_BY_CSS.findall(_text(sheet)):
            problems.append(f"{sheet.relative_to(HTML)}: fetches {address}")

    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(git.stdout.splitlines())
    soups = {page: BeautifulSoup(_text(page), "html.parser") for page in HTML.rglob("*.html")}
    for page in sorted(HTML / f"{docname}.html" for docname in pages_of_contents()):
        if page in soups:
            name = page.relative_to(HTML)
            problems += [f"{name}: {problem}" for problem in check_page(page, soups, tracked)]
    return problems


def check_in_browser(required: bool) -> list[str]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    missing += [] if chromium else ["chromium"]
    if missing:
        line = f"the check in a browser needs {', '.join(missing)}"
        if required:
            return [line]
        print(f"Skipped: {line}.")
        return []
    folder = ROOT / "_build" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--silent"]
    subprocess.run([*install, "--prefix", str(folder), *NODE_MODULES], check=True)
    pages = [f"{docname}.html" for docname in pages_of_contents()]
    script = Path(__file__).with_suffix(".mjs")
    run = subprocess.run(["node", str(script), chromium, str(HTML), str(folder), *pages])
    return ["the check in a browser failed (see above)"] if run.returncode else []


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--require-browser", action="store_true", help="fail without Chromium")
    arguments = parser.parse_args()
    problems = check_files()
    print(f"files: {len(pages_of_contents())} pages, {len(problems)} problems", flush=True)
    if not problems:
        problems += check_in_browser(arguments.require_browser)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
