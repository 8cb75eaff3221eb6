"""`python -m spectr_lite`: check selection rules, decode text, reproduce the paper's experiments."""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import spectr_lite

EXIT_BIASED = 1
EXIT_BAD_INPUT = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse prints before it."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} ('--help' lists the arguments)\n")


def check(args: argparse.Namespace) -> int:
    """Prints the table and the verdicts. 0: all lossless; 1: something is not; 2: bad input."""
    from spectr_lite.check import compare, lossless
    from spectr_lite.verifiers.registry import find

    draft, target = load(args.draft, "--draft"), load(args.target, "--target")
    chosen = None if args.verifier is None else [find(name) for name in args.verifier]
    table = compare(draft, target, args.k, chosen)
    verdicts = []
    if not args.json:
        print(table)
    for rule, k in _to_judge(chosen, args.k):
        verdict = lossless(rule, draft, target, k, samples=args.samples, generator=args.seed)
        verdicts.append(verdict)
        if not args.json:
            print(f"\n{verdict}", flush=True)
    if args.json:
        results = {**table.to_dict(), "verdicts": [verdict.to_dict() for verdict in verdicts]}
        print(json.dumps(results, indent=2))
    return 0 if all(verdict.lossless for verdict in verdicts) else EXIT_BIASED


def _to_judge(chosen: list[Any] | None, ks: Sequence[int]) -> list[tuple[Any, int]]:
    from spectr_lite.check import is_defined, token_rules

    listed = token_rules() if chosen is None else chosen
    return [(rule, k) for rule in listed for k in ks if is_defined(rule, k)]


def load(path: str, argument: str) -> Any:
    """Probabilities from .npy, .npz (FILE.npz:KEY picks an array), .csv or .json, shape (..., V)."""
    file, key = path, None
    if ".npz:" in path:
        file, _, key = path.rpartition(":")
    kind = Path(file).suffix.lower()
    if kind not in (".npy", ".npz", ".csv", ".json"):
        raise ValueError(
            f"{argument}: found {path!r}. Give a file that ends in .npy, .npz, .csv or .json."
        )
    if not Path(file).is_file():
        raise FileNotFoundError(f"{argument}: there is no file {file!r}. Give the path of one.")
    try:
        arrays = _read(Path(file), kind)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{argument}: {file!r} could not be read as {kind[1:]}: {_one_line(error)}. "
            "It must hold numbers only, one distribution per row."
        ) from error
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key not in arrays:
        found = f"{len(arrays)} arrays" if key is None else f"no array {key!r}"
        raise ValueError(
            f"{argument}: {file!r} holds {found}; it has {', '.join(arrays) or 'none'}. "
            f"Choose one with {file}:NAME."
        )
    return arrays[key]


def _read(file: Path, kind: str) -> dict[str, Any]:
    """The arrays of a file by name; a file of one array has no name for it."""
    import numpy as np

    if kind == ".json":
        return {"": np.asarray(json.loads(file.read_text()), dtype=np.float64)}
    if kind == ".csv":
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        table = np.asarray([[float(cell) for cell in line.split(",")] for line in lines])
        # One column is one distribution, as is one row.
        return {"": table.ravel() if 1 in table.shape else table}
    with file.open("rb") as stream:
        content = np.load(stream, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"": content}
        return {name: content[name] for name in content.files}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _whole(least: int):
    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"found {text!r}. Give a whole number of at least {least}."
            )
        return int(text)

    return parse


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "check",
        help="acceptance, optimum and losslessness of selection rules on your distributions",
        description="Compares selection rules with the optimum on your draft and target, then says of "
        "each whether its output still follows the target. A file with several rows is a batch of "
        "pairs: the table then shows means over them, and a verdict is about all together, with the "
        "samples shared between them. Exit status: 0 lossless, 1 something is not, 2 bad input.",
    )
    files = "probabilities in .npy, .npz, .csv or .json; FILE.npz:NAME picks an array"
    parser.add_argument("--draft", required=True, metavar="FILE", help=files)
    parser.add_argument("--target", required=True, metavar="FILE", help="the same, of the target")
    parser.add_argument(
        "-k",
        nargs="+",
        type=_whole(1),
        default=[1, 2, 4, 8],
        metavar="K",
        help="numbers of drafts (default: 1 2 4 8)",
    )
    parser.add_argument(
        "--verifier",
        nargs="+",
        action="extend",
        metavar="RULE",
        help="a rule's name, or my.module:MyVerifier for your own (default: every token rule)",
    )
    parser.add_argument(
        "--samples",
        type=_whole(1),
        metavar="N",
        help="tokens drawn for each verdict (default: 200000, fewer at a large vocabulary)",
    )
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="default: 0")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=check)


def _add_decode(commands: argparse._SubParsersAction, asked: bool) -> None:
    """The decoder loads models and tokenizers, so it is imported only when it is asked for."""
    parser = commands.add_parser("decode", help="stream text from a pair of models")
    if asked:
        from spectr_lite import decode_command

        decode_command.add_arguments(parser)
        parser.set_defaults(run=decode_command.run)


def _add_reproduce(commands: argparse._SubParsersAction, asked: bool) -> None:
    parser = commands.add_parser("reproduce", help="run the paper's experiments, record and verify")
    if asked:
        from spectr_lite.reproduce import command

        command.add_arguments(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _Parser(prog="spectr_lite", description=spectr_lite.__doc__)
    parser.add_argument("--version", action="version", version=spectr_lite.__version__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="check | decode | reproduce"
    )
    _add_check(commands)
    _add_decode(commands, asked="decode" in arguments[:1])
    _add_reproduce(commands, asked="reproduce" in arguments[:1])
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BAD_INPUT
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"{parser.prog} {args.command}: error: {_one_line(error)}.", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
