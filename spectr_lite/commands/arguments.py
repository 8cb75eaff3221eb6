"""Command lines: one-line errors, and values that are refused before any work."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

EXIT_BAD_INPUT = 2
MOST_SEED = 2**63 - 1


class Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage that argparse prints before them."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} ('--help' lists the arguments)\n")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""
    limits = f"of at least {least}" if most is None else f"from {least} to {most:,}"

    def parse(text: str) -> int:
        digits = text.lstrip("-")
        number = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        if number is None or number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"found {text!r}. Give a whole number {limits}.")
        return number

    return parse


def positive(text: str) -> float:
    """A number above 0 that is not infinite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"found {text!r}. Give a number above 0.")
    return number


def folder_name(text: str) -> str:
    """A name that can be a folder's: no path, and nothing a shell would read."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        raise argparse.ArgumentTypeError(
            f"found {text!r}. Give up to 80 letters, digits, '.', '_' and '-', such as cpu-1."
        )
    return text


def utf8(text: str) -> str:
    """A text whose bytes are UTF-8: others reach Python as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"character {error.start + 1} is no UTF-8. Convert the text to UTF-8."
        ) from error
    return text
