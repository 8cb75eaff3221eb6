"""Fill `{{ name }}` on the pages, and draw two figures, from the records and the package itself.

Each module here makes the parts of some pages: FRAGMENTS are Markdown, by the name that a page asks
for, and FIGURES are files of _build/drawn. One that cannot be made fails the build, by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

from spectr_lite.book import plotting

from . import front_page, models_page, reproduction

PAGES = (front_page, models_page, reproduction)


def fragments() -> dict[str, str]:
    """What the pages may ask for, each made now."""
    found = {}
    for name, make in (item for page in PAGES for item in page.FRAGMENTS.items()):
        try:
            found[name] = make()
        except Exception as error:
            raise ExtensionError(f"the fragment {name} cannot be made: {error!r}") from error
    return found


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        plotting.use_style()
        for name, make in {**front_page.FIGURES, **models_page.FIGURES}.items():
            try:
                make().savefig(folder / name, metadata={"Date": None})
            except Exception as error:
                raise ExtensionError(f"the figure {name} cannot be drawn: {error!r}") from error


def fill(app: Sphinx, config: Config) -> None:
    draw(Path(app.srcdir) / "_build" / "drawn")
    config.myst_substitutions = {**config.myst_substitutions, **fragments()}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", fill)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
