"""Which two models a command means: a pair by name, a folder, or two models of the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from spectr_lite.models import ModelPair, load_pair, pair_names

AND = " + "  # between target and draft in the name of a pair from the hub


def add_arguments(parser: argparse.ArgumentParser, **several: str) -> None:
    """`several`: nargs="+", where a command takes more than one pair."""
    known = f"{', '.join(pair_names())}, or a directory (default: bundled)"
    parser.add_argument("--pair", help=known, **several)  # type: ignore[arg-type]
    parser.add_argument("--target", help="instead: a model of the Hugging Face hub, or its folder")
    parser.add_argument("--draft", help="and the small model, with the same tokenizer")


def names(args: argparse.Namespace) -> list[str]:
    """The pairs that were asked for. ValueError for half of a pair, or for both kinds at once."""
    if args.target is None and args.draft is None:
        found = args.pair or "bundled"
        return [found] if isinstance(found, str) else found
    if args.pair or not (args.target and args.draft):
        raise ValueError("--target and --draft: give both of them, or --pair alone")
    return [args.target + AND + args.draft]


def load(name: str, device: str | torch.device, dtype: torch.dtype) -> ModelPair:
    """The pair of that name. Raises what `models.load_pair` and `huggingface.load_pair` raise."""
    target, both, draft = name.partition(AND)
    if not both:
        return load_pair(name, device, dtype)
    from spectr_lite.huggingface import pairs  # needs transformers

    return pairs.load_pair(target, draft, device, dtype)


def words(name: str) -> str:
    """The arguments that ask for it again."""
    target, both, draft = name.partition(AND)
    return f"--target {target} --draft {draft}" if both else f"--pair {name}"


def folder_name(name: str) -> str:
    """A short name for a run's folder: of each model, the last part."""
    parts = (Path(part).resolve().name for part in name.split(AND))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))
