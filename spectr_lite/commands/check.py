"""`python -m spectr_lite check`: acceptance, optimum and losslessness on your probabilities."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spectr_lite.check import compare, is_defined, lossless, token_rules
from spectr_lite.commands import find, one_line
from spectr_lite.commands.arguments import MOST_SEED, whole
from spectr_lite.distributions import MOST_DRAFTS

EXIT_BIASED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares selection rules with the optimum on your draft and target, then says of "
        "each whether its output still follows the target. A file with several rows is a batch of "
        "pairs: the table then shows means over them, and a verdict is about all together, with the "
        "samples shared between them. Exit status: 0 no bias found, 1 something is biased, 2 bad input."
    )
    files = "probabilities in .npy, .npz, .csv or .json; FILE.npz:NAME picks an array"
    rule = "a rule's name, or my.module:MyVerifier for your own (default: every token rule)"
    samples = "tokens drawn for each verdict (default: 200000, fewer at a large vocabulary)"
    counts: dict[str, Any] = {"nargs": "+", "type": whole(1, MOST_DRAFTS), "metavar": "K"}
    add = parser.add_argument
    add("--draft", required=True, metavar="FILE", help=files)
    add("--target", required=True, metavar="FILE", help="the same, of the target")
    add("-k", default=[1, 2, 4, 8], help="numbers of drafts (default: 1 2 4 8)", **counts)
    add("--verifier", nargs="+", action="extend", metavar="RULE", help=rule)
    add("--samples", type=whole(1), metavar="N", help=samples)
    add("--seed", type=whole(0, MOST_SEED), default=0, metavar="N", help="default: %(default)s")
    add("--no-verdicts", action="store_true", help="print the table only, which is much faster")
    add("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table and the verdicts. Returns 0, or 1 if some rule is biased."""
    draft, target = load(args.draft, "--draft"), load(args.target, "--target")
    ks, names = ([*dict.fromkeys(found)] for found in (args.k, args.verifier or []))
    chosen = [find(name) for name in names] or None
    table = compare(draft, target, ks, chosen)
    verdicts = []
    if not args.json:
        print(table)
    judged = [(rule, k) for rule in chosen or token_rules() for k in ks if is_defined(rule, k)]
    judged = [] if args.no_verdicts else judged
    for rule, k in tqdm(judged, "verdicts", leave=False, disable=None):  # only on a terminal
        verdict = lossless(rule, draft, target, k, samples=args.samples, generator=args.seed)
        verdicts.append(verdict)
        if not args.json:
            tqdm.write(f"\n{verdict}")
    if args.json:
        results = {**table.to_dict(), "verdicts": [verdict.to_dict() for verdict in verdicts]}
        print(json.dumps(results, indent=2))
    return 0 if not any(verdict.biased for verdict in verdicts) else EXIT_BIASED


def load(path: str, argument: str) -> Any:
    """Probabilities (..., V) from .npy, .npz (FILE.npz:KEY picks an array), .csv or .json.

    FileNotFoundError or ValueError name the `argument` and say what to give instead.
    """
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
            f"{argument}: {file!r} could not be read as {kind[1:]}: {one_line(error)}. "
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
    """The arrays of a file by name; the name is "" unless the file gives one.

    Text may begin with a byte order mark, as Excel writes it.
    """
    if kind == ".json":
        return {"": np.asarray(json.loads(file.read_text("utf-8-sig")), dtype=np.float64)}
    if kind == ".csv":
        lines = [line for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
        table = np.asarray([[float(cell) for cell in line.split(",")] for line in lines])
        # One column is one distribution, as is one row.
        return {"": table.ravel() if 1 in table.shape else table}
    with file.open("rb") as stream:
        content = np.load(stream, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"": content}
        return {name: content[name] for name in content.files}
