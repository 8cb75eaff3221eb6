"""What the transport lab takes from elsewhere: colours and names from the package, D3 from npm.

    python scripts/site/lab_assets.py    the palette, and the picture for pages without JavaScript
    python scripts/site/lab_assets.py --vendor   book/_vendor/d3 as well; needs node and npm

The colours on a light page are those of spectr_lite.plotting. On a dark page each keeps its hue and is
lightened until it stands out from the page as much as it does from white. Text is 4.5:1 on both.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb

from spectr_lite import distributions
from spectr_lite.book import lab
from spectr_lite.book.plotting import COLORS, LABELS, use_style

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "book" / "_static" / "lab"
VENDOR = ROOT / "book" / "_vendor" / "d3"

SHOWN = ("draft", "target", "optimal", "kseq", "recursive", "coupling")
UNDISCOUNTED = "#8C1D40"  # the biased rule: it is no verifier, and has no colour in the book
NAMES = {
    **{key: LABELS[key].replace("$", "") for key in SHOWN},
    "coupling": "one draft",
    "recursive": "recursive",
    "undiscounted": "no discount: biased",
}
LIGHT, DARK = "#ffffff", "#14181e"  # the page
READABLE = 4.5  # WCAG 2.1 AA, text

PACKAGES = {
    "d3-drag": "3.0.1",
    "d3-scale": "4.0.3",
    "d3-selection": "3.0.1",
    "d3-shape": "3.2.1",
    "d3-transition": "3.0.2",
    "esbuild": "0.28.2",
}
ENTRY = """\
export { select } from "d3-selection";
export { scaleBand, scaleLinear, scaleLog } from "d3-scale";
export { drag } from "d3-drag";
export { line } from "d3-shape";
import "d3-transition";
"""


def contrast(color: str, page: str) -> float:
    """WCAG's ratio of relative luminances, 1 to 21."""

    def luminance(one: str) -> float:
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(one)
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dim, bright = sorted((luminance(color), luminance(page)))
    return (bright + 0.05) / (dim + 0.05)


def until(color: str, page: str, ratio: float) -> str:
    """`color` with its lightness moved away from `page` in small steps until the contrast is `ratio`."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(color))
    step = -0.01 if page == LIGHT else 0.01
    while contrast(color, page) < ratio and 0 <= lightness + step <= 1:
        lightness += step
        color = to_hex(colorsys.hls_to_rgb(hue, lightness, saturation)).upper()
    return color


def palette() -> tuple[str, str]:
    """palette.css and palette.js."""
    colors = {**{key: COLORS[key] for key in SHOWN}, "undiscounted": UNDISCOUNTED}
    head = "Written by scripts/site/lab_assets.py from spectr_lite/book/plotting.py."
    css = [f"/* {head} */"]
    for theme, page in (("light", LIGHT), ("dark", DARK)):
        css.append(f'html[data-theme="{theme}"] .lab {{')
        for key, color in colors.items():
            mark = color if theme == "light" else until(color, page, contrast(color, LIGHT))
            css.append(f"  --{key}: {mark}; --{key}-text: {until(mark, page, READABLE)};")
        css.append("}")
    css += [
        f'.lab [data-rule="{k}"] {{ --rule: var(--{k}); --rule-text: var(--{k}-text); }}'
        for k in colors
    ]
    names = json.dumps(NAMES, indent=2, ensure_ascii=False)
    js = f"// {head}\nglobalThis.lab = {{ LABELS: {names} }};\n"
    return "\n".join(css) + "\n", js


def vendor() -> None:
    """D3's modules in one minified classic script, which sets `d3`, with their licences."""
    VENDOR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = [f"{package}@{version}" for package, version in PACKAGES.items()]
        npm = ["npm", "install", "--prefix", name, "--no-audit", "--no-fund", "--silent"]
        subprocess.run([*npm, *wanted], check=True)
        (folder / "entry.mjs").write_text(ENTRY)
        modules = folder / "node_modules"
        bundle = [
            "--bundle",
            "--format=iife",
            "--global-name=d3",
            "--minify",
            "--legal-comments=none",
        ]
        command = [str(modules / ".bin" / "esbuild"), "entry.mjs", *bundle]
        out = VENDOR / "d3.min.js"
        subprocess.run([*command, f"--outfile={out}", "--log-level=error"], cwd=folder, check=True)
        used = sorted([*modules.glob("d3-*"), modules / "internmap"])
        versions = {path.name: json.loads((path / "package.json").read_text()) for path in used}
        licences = {}
        for path in used:
            licences.setdefault((path / "LICENSE").read_text().strip(), []).append(path.name)
        (VENDOR / "LICENSE").write_text(
            "\n\n".join(f"{', '.join(names)}:\n\n{text}" for text, names in licences.items()) + "\n"
        )
        manifest = {
            "file": out.name,
            "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
            "bundler": f"esbuild {PACKAGES['esbuild']}",
            "packages": {name: package["version"] for name, package in versions.items()},
        }
        (VENDOR / "versions.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size:,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vendor", action="store_true", help="bundle D3 again, from npm")
    arguments = parser.parse_args()
    css, js = palette()
    (LAB / "palette.css").write_text(css)
    (LAB / "palette.js").write_text(js)
    use_style()
    plt.rcParams["svg.hashsalt"] = "lab"  # the same bytes every time
    lab.figure(*distributions.three_tokens(), 2).savefig(LAB / "still.svg", metadata={"Date": None})
    if arguments.vendor:
        vendor()
    return 0


if __name__ == "__main__":
    sys.exit(main())
