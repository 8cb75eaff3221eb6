"""`python -m spectr_lite`: check selection rules, decode text, reproduce the paper's experiments."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import spectr_lite
from spectr_lite.commands import one_line

EXIT_BAD_INPUT = 2
VERBS = {  # verb: what it does, and its module, imported only when the verb is given
    "check": (
        "acceptance, optimum and losslessness of selection rules on your distributions",
        "spectr_lite.commands.check",
    ),
    "decode": ("stream text from a pair of models", "spectr_lite.commands.decode"),
    "reproduce": ("run the paper's experiments, record and verify", "spectr_experiments.command"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse prints before it."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} ('--help' lists the arguments)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _Parser(prog="spectr_lite", description=spectr_lite.__doc__)
    parser.add_argument("--version", action="version", version=spectr_lite.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(VERBS))
    for verb, (what, module) in VERBS.items():
        command = commands.add_parser(verb, help=what)
        if verb in arguments[:1]:
            importlib.import_module(module).add_arguments(command)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BAD_INPUT
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"{parser.prog} {args.command}: error: {one_line(error)}.", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
