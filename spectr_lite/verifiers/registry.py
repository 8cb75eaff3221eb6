"""Rules by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from spectr_lite.verifiers.base import Verifier

_RULES: dict[str, type[Verifier]] = {}


def register(name: str) -> Callable[[type[Verifier]], type[Verifier]]:
    """Class decorator: makes the rule available as `get(name)`."""

    def add(rule: type[Verifier]) -> type[Verifier]:
        if name in _RULES:
            raise ValueError(
                f"name: {name!r} is already registered by {_RULES[name].__qualname__}."
            )
        rule.name = name
        _RULES[name] = rule
        return rule

    return add


def get(name: str | Verifier) -> Verifier:
    """The rule of this name; a Verifier passes through. Raises ValueError for an unknown name."""
    if isinstance(name, Verifier):
        return name
    if not isinstance(name, str) or name not in _RULES:
        raise ValueError(f"verifier: no rule named {name!r}. Known rules: {', '.join(names())}.")
    return _RULES[name]()


def names() -> tuple[str, ...]:
    """Every registered name, in the order the rules were added."""
    return tuple(_RULES)


def find(name: str) -> Any:
    """A registered rule, or the object at my.module:MyVerifier, importable from where you stand.

    For a command line: ValueError says what is wrong with the argument --verifier.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        return get(name)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"--verifier: {module_name!r} could not be imported ({type(error).__name__}: {reason}). "
            "Give package.module:Class, importable from this directory."
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(
            f"--verifier: module {module_name!r} has no {attribute!r}. Check its name."
        )
    return getattr(module, attribute)
