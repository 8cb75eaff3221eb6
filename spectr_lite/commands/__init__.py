"""The commands of `python -m spectr_lite`, and how they find a rule that is named to them."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def find(name: str) -> Any:
    """A registered rule, or the object at my.module:MyVerifier, importable from the current directory.

    ValueError says what is wrong with the argument --verifier.
    """
    from spectr_lite import verifiers  # here, so that `--help` does not load torch

    module_name, colon, attribute = name.partition(":")
    if not colon:
        return verifiers.get(name)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"--verifier: {module_name!r} could not be imported ({reason}). "
            "Give package.module:Class, importable from this directory."
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(
            f"--verifier: module {module_name!r} has no {attribute!r}. Check its name."
        )
    return getattr(module, attribute)


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without its last full stop, fit for any terminal."""
    return " ".join(str(error).encode(errors="backslashreplace").decode().split()).rstrip(".")
