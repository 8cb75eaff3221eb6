"""Check what every notebook of the book must keep, so that it diffs well and opens in Colab.

    python scripts/site/check_notebooks.py [NOTEBOOK...]

Outputs stripped; a Colab badge and a set-up cell in front, both out of the site; one title; alt
text for every figure that a cell draws; kernel python3. tests/test_repository.py runs them too.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"\d\d(-[a-z0-9]+)+\.ipynb")
DRAWS = re.compile(r"plt\.(figure|subplots|show|plot|bar|imshow|subplot_mosaic)\b")
COLAB_METADATA = {"accelerator": "GPU", "colab": {"gpuType": "T4"}}


def repository() -> tuple[str, str]:
    """The repository's address and branch, from the one place where they stand."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    return settings["url"].rstrip("/"), settings["branch"]


def colab_address(path: Path) -> str:
    url, branch = repository()
    slug = url.removeprefix("https://github.com/")
    return (
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/"
        f"{path.relative_to(ROOT).as_posix()}"
    )


def install_line() -> str:
    url, branch = repository()
    return f'%pip install -q "spectr_lite @ git+{url}@{branch}"'


def problems_of(path: Path) -> list[str]:
    """What is wrong with one notebook, each as a sentence; empty when nothing is."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells, metadata = notebook["cells"], notebook["metadata"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = []

    if not NAME.fullmatch(path.name):
        found.append("its name is not like 01-words-with-hyphens.ipynb")
    if any(cell["outputs"] or cell["execution_count"] is not None for cell in code):
        found.append("it carries outputs or execution counts: run `make format`")
    if metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not python3")
    if "accelerator" in metadata or "colab" in metadata:
        kept = {key: metadata.get(key) for key in COLAB_METADATA}
        if kept["accelerator"] != "GPU" or (kept["colab"] or {}).get("gpuType") != "T4":
            found.append(f"its Colab metadata is not {json.dumps(COLAB_METADATA)}")

    badge, setup = [*cells, {}, {}][:2]
    if "remove-cell" not in _tags(badge) or colab_address(path) not in _source(badge):
        found.append(f"its first cell is not a badge (tag remove-cell) to {colab_address(path)}")
    elif not re.search(r"!\[[^]]{4,}\]", _source(badge)):
        found.append("its badge has no alt text")
    if "remove-cell" not in _tags(setup) or "environment.report()" not in _source(setup):
        found.append("its second cell is not the set-up cell (tag remove-cell)")
    elif install_line() not in _source(setup):
        found.append(f"its set-up cell does not install with: {install_line()}")

    prose = "\n".join(_source(cell) for cell in cells if cell["cell_type"] == "markdown")
    titles = re.findall(r"^# .+$", re.sub(r"```.*?```", "", prose, flags=re.S), flags=re.M)
    if len(titles) != 1:
        found.append(f"it has {len(titles)} titles (# ...) instead of one")
    for number, cell in enumerate(cells):
        image = cell["metadata"].get("mystnb", {}).get("image", {})
        if cell["cell_type"] != "code" or "remove-cell" in _tags(cell):
            continue
        drawn = _source(cell)
        defines_only = re.search(r"^def ", drawn, flags=re.M) and "plt.show" not in drawn
        if DRAWS.search(drawn) and not defines_only and len(image.get("alt", "")) < 20:
            found.append(f"cell {number} draws a figure and has no alt text (mystnb image alt)")
    return found


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell.get("source", ""))


def _tags(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def main(arguments: list[str]) -> int:
    paths = [Path(name).resolve() for name in arguments]
    paths = paths or sorted((ROOT / "notebooks").glob("*.ipynb"))
    lines = [f"{path.name}: {line}" for path in paths for line in problems_of(path)]
    print("\n".join([*lines, f"{len(paths)} notebooks, {len(lines)} problems"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
