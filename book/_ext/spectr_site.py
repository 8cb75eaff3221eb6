"""What no setting of the theme can do: a run line under each chapter's title, and tidier pages."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

# Mark-up of docutils and MyST-NB that a screen reader trips over, and what stands there instead.
MENDED = {
    'role="doc-biblioentry"': 'role="listitem"',  # deprecated, and its parent is a plain list
    '<summary aria-label="Toggle hidden content">': "<summary>",  # would hide the visible words
}
RUN_LINE = (
    '<p class="run-line"><a class="run-colab reference external" href="{colab}">Open in Colab</a> '
    '<a class="reference external" href="{source}">Notebook on GitHub</a></p>'
)


def run_line(config: Config, docname: str) -> str:
    """Where Colab opens this notebook from, and where it lies, by the repository's address."""
    options = config.html_theme_options
    source = f"{options['repository_url']}/blob/{options['repository_branch']}/{docname}.ipynb"
    colab = f"{options['launch_buttons']['colab_url']}/github/"
    return RUN_LINE.format(source=source, colab=source.replace("https://github.com/", colab, 1))


def add_run_line(app: Sphinx, doctree: nodes.document) -> None:
    """Raw, so that neither the search nor a page's description takes it for text of the chapter."""
    title = next(iter(doctree.findall(nodes.title)), None)
    if str(app.env.doc2path(app.env.docname)).endswith(".ipynb") and title is not None:
        line = nodes.raw("", run_line(app.config, app.env.docname), format="html")
        title.parent.insert(title.parent.index(title) + 1, line)


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


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", add_run_line)
    app.connect("html-page-context", tidy_page, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
