"""Every example in a docstring of the package gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import spectr_lite

LEAST_MODULES_WITH_EXAMPLES = 10
OPTIONAL = {"gguf", "huggingface_hub", "ipywidgets", "pyarrow", "transformers"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(spectr_lite.__path__, "spectr_lite.")
    if not module.name.endswith("__main__")
)


def examples(name: str) -> list[doctest.DocTest]:
    """The examples of a module; none of one that needs a package that is not installed."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in OPTIONAL:
            return []
        raise
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name, capsys):
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in examples(name):
        runner.run(test)
    assert runner.summarize().failed == 0, capsys.readouterr().out


def test_there_are_examples():
    assert sum(bool(examples(name)) for name in MODULES) >= LEAST_MODULES_WITH_EXAMPLES
