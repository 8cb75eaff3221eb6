"""What the theme needs beyond `_config.yml`.

`html_theme_options` in `_config.yml` would replace Jupyter Book's own and lose the Colab and
repository buttons, so the options are filled in here with `setdefault`, once all others are in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector

CHAPTER = re.compile(r"notebooks/(\d\d)-")

# Mark-up of docutils and MyST-NB that a screen reader trips over, and what stands there instead.
MENDED = {
    'role="doc-biblioentry"': 'role="listitem"',  # deprecated, and its parent is a plain list
    '<summary aria-label="Toggle hidden content">': "<summary>",  # would hide the visible words
}


def colab_url(config: Config, docname: str) -> str:
    """Where Colab opens this notebook from: derived from the repository's address."""
    options = config.html_theme_options
    slug = options["repository_url"].removeprefix("https://github.com/").rstrip("/")
    colab = options["launch_buttons"]["colab_url"].rstrip("/")
    return f"{colab}/github/{slug}/blob/{options['repository_branch']}/{docname}.ipynb"


def set_theme_defaults(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    options.setdefault("logo", {"text": config.html_title, "alt_text": ""})
    options.setdefault("navbar_persistent", [])  # the side bar has a search field already
    options.setdefault("article_header_end", ["article-header-buttons"])
    options.setdefault("show_navbar_depth", 1)
    options.setdefault("show_toc_level", 2)
    options.setdefault("pygments_light_style", "a11y-high-contrast-light")
    options.setdefault("pygments_dark_style", "a11y-high-contrast-dark")
    config.html_context.setdefault("default_mode", "auto")
    # [text](repo:path) in a page links to a file of the repository
    files = f"{options['repository_url']}/blob/{options['repository_branch']}/{{{{path}}}}"
    config.myst_url_schemes = {
        **dict.fromkeys(("http", "https", "mailto")),
        "repo": {"url": files},
    }


def tidy_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    # thebe is not used, and its script throws an error on every page
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in str(getattr(script, "filename", None) or script)
        and "thebe" not in str(getattr(script, "attributes", {}).get("body", ""))
    ]
    context["root_title"] = "Start here"
    for found, put in MENDED.items():
        if "body" in context:
            context["body"] = context["body"].replace(found, put)


def add_run_line(app: Sphinx, doctree: nodes.document) -> None:
    """Put "Run it: Colab, notebook" under the title of every chapter."""
    path = Path(app.env.doc2path(app.env.docname))
    title = next(iter(doctree.findall(nodes.title)), None)
    if path.suffix != ".ipynb" or title is None:
        return
    docname = app.env.docname
    colab = nodes.reference("", "Open in Colab", refuri=colab_url(app.config, docname))
    options = app.config.html_theme_options
    source = nodes.reference(
        "",
        "Notebook on GitHub",
        refuri=f"{options['repository_url']}/blob/{options['repository_branch']}/{docname}.ipynb",
    )
    colab["classes"].append("run-colab")
    line = nodes.paragraph("", "", colab, nodes.Text(" "), source, classes=["run-line"])
    title.parent.insert(title.parent.index(title) + 1, line)


def number_chapters_by_name(env: BuildEnvironment) -> None:
    """Chapter 06-... is chapter 6, on the page as in the text, whichever chapters stand before it."""
    for docname, numbers in env.toc_secnumbers.items():
        if not (name := CHAPTER.match(docname)):
            continue
        chapter = int(name[1])
        for anchor, number in numbers.items():
            if number:
                numbers[anchor] = (chapter, *number[1:])
        entries = (*env.tocs[docname].findall(nodes.reference), env.titles[docname])
        for entry in entries:
            if number := entry.get("secnumber"):
                entry["secnumber"] = [chapter, *number[1:]]


def setup(app: Sphinx) -> dict[str, Any]:
    # Figures take their numbers from the sections', so this is the moment between the two.
    numbering = TocTreeCollector.assign_figure_numbers

    def assign_figure_numbers(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        number_chapters_by_name(env)
        return numbering(self, env)

    TocTreeCollector.assign_figure_numbers = assign_figure_numbers
    app.connect("config-inited", set_theme_defaults)
    app.connect("doctree-read", add_run_line)
    app.connect("html-page-context", tidy_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
