"""`python -m spectr_lite decode`: text streamed as it is decoded, and its block efficiency."""

from __future__ import annotations

import argparse
import os
import sys
import time

import torch

from spectr_lite import verifiers
from spectr_lite.book import environment
from spectr_lite.commands import find, pairs
from spectr_lite.commands.arguments import MOST_SEED, utf8, whole
from spectr_lite.commands.ending import is_expected
from spectr_lite.decoding import Generation, Turn, decode
from spectr_lite.decoding.rendering import LEGEND, TextStream, to_ansi
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.distributions import IID
from spectr_lite.verifiers import Verifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rules = [name for name in verifiers.names() if IID in verifiers.get(name).valid_for]
    rule = f"selection rule: {', '.join(rules)}; or my.module:MyVerifier for your own"
    drafts = "drafted sequences; 0 autoregressive, 1 speculative (default: %(default)s)"
    length = "tokens in each drafted sequence (default: %(default)s)"
    top_p = "keep the likeliest tokens of mass P together"
    add = parser.add_argument
    add("--prompt", required=True, type=utf8, help="the text to continue")
    pairs.add_arguments(parser)
    add("--verifier", default="kseq", help=f"{rule} (default: %(default)s)")
    add("-K", "--num-drafts", type=int, default=8, help=drafts)
    add("-L", "--draft-length", type=int, default=8, help=length)
    add("--max-new-tokens", type=int, default=64, help="default: %(default)s")
    add("--temperature", type=float, default=1.0, help="0 is greedy (default: %(default)s)")
    add("--top-k", type=int, metavar="N", help="keep the N likeliest tokens")
    add("--top-p", type=float, metavar="P", help=top_p)
    for name, kind in (("temperature", float), ("top-k", int), ("top-p", float)):
        add(
            f"--draft-{name}", type=kind, metavar="X", help="of the draft alone (default: the same)"
        )
    add("--seed", type=whole(0, MOST_SEED), help="for the same text every time")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    add("--show-drafts", action="store_true", help="list every drafted sequence, turn by turn")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Decode and print. Raises what `load_pair` and `decode` raise, and RuntimeError when the user's
    own rule raises anything else."""
    try:
        stream(args)
    except KeyboardInterrupt:
        print()  # the text ends where it was stopped
        raise
    except Exception as error:
        if is_expected(error) or ":" not in args.verifier:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{args.verifier} raised {reason}") from error
    return 0


def _rule(name: str) -> Verifier:
    found = find(name)
    rule = found() if isinstance(found, type) else found
    if not isinstance(rule, Verifier):
        raise ValueError(
            f"--verifier: {name!r} is {type(rule).__name__}, which decodes nothing. Derive it from "
            "spectr_lite.verifiers.Verifier."
        )
    return rule


def stream(args: argparse.Namespace) -> None:
    device, dtype = environment.device_and_dtype()
    if args.device == "cpu":
        device, dtype = torch.device("cpu"), torch.float32
    elif args.device == "cuda" and device.type != "cuda":
        raise ValueError("--device: found 'cuda', but torch sees no GPU. Use --device cpu.")
    (name,) = pairs.names(args)
    pair = pairs.load(name, device, dtype)
    prompt = pair.tokenizer.encode(args.prompt).ids or [pair.end_of_text]
    names = ("num_drafts", "draft_length", "max_new_tokens", "temperature", "top_k", "top_p")
    settings = {name: getattr(args, name) for name in names}
    shape = ("temperature", "top_k", "top_p")
    own = {name: getattr(args, f"draft_{name}") for name in shape}
    settings["draft_sampling"] = Sampling(
        **{n: settings[n] if own[n] is None else own[n] for n in shape}
    )
    settings |= {"verifier": _rule(args.verifier), "generator": args.seed}
    end = [pair.end_of_text]
    turns = decode(pair.target, pair.draft, [prompt], stop_tokens=end, **settings)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def show(kind: str, text: str) -> None:
        print(to_ansi(kind, text) if coloured else text, end="", flush=True)

    if coloured:
        for kind, meaning in LEGEND:
            show(kind, meaning)
            print(end="   ")
        print("\n")
    text = TextStream(pair.tokenizer, prompt)
    done: list[Turn] = []
    start = time.perf_counter()
    show("prompt", text.shown)
    for turn in turns:
        done.append(turn)
        if args.show_drafts:
            print(f"\n\nturn {len(done)}: each draft, and | where it ended")
            for path in turn.drafted[0]:
                kept = int((path == turn.block[0, :-1]).cumprod(0).sum())
                show("accepted", f"  {pair.tokenizer.decode(path[:kept].tolist())!r}")
                show("rejected", f" | {pair.tokenizer.decode(path[kept:].tolist())!r}")
                print()
            print(end="=> ")
        for kind, token in zip(turn.kinds(), turn.tokens(), strict=True):
            show(kind, text.add(token))
    seconds = time.perf_counter() - start
    count = sum(len(turn.tokens()) for turn in done)
    efficiency = Generation([], done).block_efficiency
    print(
        f"\n\n{count} tokens in {len(done)} calls of the large model; block efficiency "
        f"{efficiency:.2f} tokens per call; {count / seconds:.1f} tokens/s on {device}"
    )
