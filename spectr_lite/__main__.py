"""`python -m spectr_lite`: check selection rules, decode text, reproduce the paper's experiments."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import spectr_lite
from spectr_lite.commands.arguments import Parser
from spectr_lite.commands.ending import ended

VERBS = {  # verb: what it does, and its module, imported only when the verb is given
    "check": (
        "acceptance, optimum and losslessness of selection rules on your distributions",
        "spectr_lite.commands.check",
    ),
    "decode": ("stream text from a pair of models", "spectr_lite.commands.decode"),
    "advise": (
        "which rule and how many drafts pay for your models, here",
        "spectr_experiments.command",
    ),
    "reproduce": ("run the paper's experiments, record and verify", "spectr_experiments.command"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    return ended(
        " ".join(["spectr_lite", *(v for v in words[:1] if v in VERBS)]), lambda: run(words)
    )


def run(words: list[str]) -> int:
    if words[:1] == ["advise"]:  # an experiment like others, with a verb of its own
        words = ["reproduce", *words]
    parser = Parser(prog="spectr_lite", description=spectr_lite.__doc__)
    parser.add_argument("--version", action="version", version=spectr_lite.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(VERBS))
    for verb, (what, module) in VERBS.items():
        command = commands.add_parser(verb, help=what)
        if verb in words[:1]:
            importlib.import_module(module).add_arguments(command)
    args = parser.parse_args(words)
    args.words = words
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
