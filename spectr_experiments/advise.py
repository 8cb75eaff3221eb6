"""Which rule, how many drafts, how long: for your two models, your prompts and your device.

    python -m spectr_lite advise --target TARGET --draft DRAFT --prompts FILE

Tokens per call come by replay (replay.py): text is decoded once, and every rule and shape is judged on
the same scored trees. Costs are timed: of a turn in every setting, all of them in turns within a
round, and of single calls of both models. Then the setting that the two predict to be the fastest is
decoded with, beside autoregressive decoding. advice.py makes the answer of it. Explained in chapter 10.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from spectr_experiments import advice, clocks, dumps, replay
from spectr_experiments.advice import CELL, KEYS, PLAIN, SCHEMA, cells
from spectr_experiments.records import Phase, Plan, Record, Run
from spectr_lite import verifiers
from spectr_lite.commands import pairs
from spectr_lite.commands.arguments import positive, whole
from spectr_lite.decoding.sampling import Sampling
from spectr_lite.distributions import check_count
from spectr_lite.models import LanguageModel, ModelPair, prompts
from spectr_lite.models.prompts import ids_sha256
from spectr_lite.models.weights import sha256_of

FOLDER = "advise"
RULES = ("kseq", "recursive", "optimal", "optimal-block", "block")
SHAPES = {"num_drafts": [1, 2, 4, 8], "draft_lengths": [1, 2, 4, 8]}
MINUTES, TEXTS, PROMPT_LENGTH, NEW_TOKENS = 5.0, 32, 32, 48
STRIDE = (
    3  # neighbours say much the same: one turn in three is replayed, at other places in each text
)
TIMED_TOKENS, MOST_ROUNDS, LEAST_ROUNDS = 24, 30, 3
MOST = 8  # settings that are timed for longer
SHARES = {"replay": 5, "cost": 4, "decode": 1}


def advise(
    target: LanguageModel,
    draft: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    minutes: float = MINUTES,
    folder: str | Path | None = None,
    **settings: Any,
) -> advice.Advice:
    """Advice for two models of the loop and a list of prompts, each a list of token ids.

    `settings`: verifiers, num_drafts, draft_lengths (lists), temperature, top_k, top_p, new_tokens. The
    records go to `folder`, from which an earlier call with the same arguments goes on, or nowhere.
    Raises ValueError for fewer than two prompts, for drafts that no rule takes, and whatever `Decoder`
    raises.
    """
    config = make_config([list(prompt) for prompt in prompts], **settings)
    config["device"] = torch.device(target.device).type
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(Path(folder or scratch), SCHEMA, KEYS)
        with run.lock():
            run.open(config, resume=True, kinds=list(SCHEMA))
            for kind in SCHEMA:
                run.mend(kind, 0)
            for phase in phases(config, target, draft, prompts):
                phase.measure(run, 60 * minutes * phase.share / sum(SHARES.values()))
            return advice.Advice(**advice.summarise(run, config, []))


# --- as an experiment -----------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    pairs.add_arguments(parser)
    add("--dump", type=Path, metavar="FILE", help="recorded logits in place of models: no costs")
    add("--prompts", type=Path, metavar="FILE", help="text, a prompt a line (default: speeches)")
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    add("--top-k", type=whole(1), metavar="N")
    add("--top-p", type=positive, metavar="P")
    add("--verifiers", nargs="+", metavar="RULE", help=f"default: {' '.join(RULES)}")
    for name, numbers in SHAPES.items():
        option, shown = f"--{name.replace('_', '-')}", " ".join(map(str, numbers))
        add(option, nargs="+", type=whole(1), metavar="N", help=f"default: {shown}")
    add(
        "--new-tokens",
        type=whole(2),
        default=NEW_TOKENS,
        help="of each text (default: %(default)s)",
    )


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    names = ("verifiers", *SHAPES, "temperature", "top_k", "top_p", "new_tokens")
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.dump:
        yield _dump_plan(args, settings)
        return
    (name,) = pairs.names(args)
    pair = pairs.load(name, device, dtype)
    texts = read_prompts(args.prompts, pair)
    config = make_config(texts, **settings) | {"pair": pair.name, "device": device.type}
    run_id = args.run_id or f"{device.type}-{pairs.folder_name(name)}"
    yield Plan(run_id, config, phases(config, pair.target, pair.draft, texts), MINUTES)


def _dump_plan(args: argparse.Namespace, settings: Record) -> Plan:
    if args.pair or args.target or args.draft or args.prompts:
        raise ValueError("--dump: leave out --pair, --target, --draft and --prompts")
    _, most, longest = dumps.check(args.dump)["paths"]
    for name, limit in zip(SHAPES, (most, longest), strict=True):
        settings.setdefault(name, [n for n in SHAPES[name] if n < limit] + [limit])
        if max(settings[name]) > limit:
            raise ValueError(
                f"--{name.replace('_', '-')}: found {max(settings[name])}, the dump has {limit}"
            )
    texts = dumps.texts(args.dump)
    config = make_config([[text] for text in texts], **settings)
    config |= {"dump": args.dump.name, "dump_sha256": sha256_of(args.dump)}
    run_id = args.run_id or args.dump.stem
    shape, rules = (config["num_drafts"], config["draft_lengths"]), _rules(config)

    def trees(text: int) -> Iterator[tuple[None, replay.ScoredTree]]:
        for tree in dumps.trees(args.dump, text, Sampling(**sampling(config))):
            yield None, tree

    def measure(run: Run, seconds: float | None) -> None:
        fill(config, run, texts, lambda text: totals(trees(text), shape, rules), seconds)

    return Plan(run_id, config, [Phase("replay", ["tokens", "nodes"], measure)], MINUTES)


def read_prompts(path: Path | None, pair: ModelPair) -> list[list[int]]:
    if path is None:
        return prompts.load("sotu", pair.tokenizer, count=TEXTS, length=PROMPT_LENGTH).tokens
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--prompts: {path} is not UTF-8 text ({error}). Save it as such"
        ) from None
    return [pair.tokenizer.encode(line).ids for line in lines if line.strip()]


def make_config(
    texts: Sequence[Sequence[int]],
    *,
    verifiers: Sequence[str] = RULES,
    num_drafts: Sequence[int] = SHAPES["num_drafts"],
    draft_lengths: Sequence[int] = SHAPES["draft_lengths"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    new_tokens: int = NEW_TOKENS,
) -> Record:
    if len(texts) < 2:
        raise ValueError(
            f"prompts: found {len(texts)}. An interval over texts needs two at least, a useful one "
            "about twenty; give one a line"
        )
    Sampling(temperature, top_k, top_p)  # which checks them
    found = {
        "verifiers": list(verifiers),
        "num_drafts": sorted({check_count(n, "num_drafts") for n in num_drafts}),
        "draft_lengths": sorted({check_count(n, "draft_lengths") for n in draft_lengths}),
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "new_tokens": check_count(new_tokens, "new_tokens", least=2),
        "prompts": len(texts),
        "prompts_sha256": ids_sha256([list(text) for text in texts]),
    }
    if not cells(found):
        raise ValueError(
            f"verifiers: none of {', '.join(verifiers)} decodes with {list(num_drafts)} i.i.d. drafts"
        )
    return found


# --- measuring ------------------------------------------------------------------------------------


def phases(
    config: Record, target: LanguageModel, draft: LanguageModel, texts: Sequence[Sequence[int]]
) -> list[Phase]:
    held = config, target, draft, texts
    return [
        Phase("replay", ["tokens", "nodes"], partial(replay_texts, *held), SHARES["replay"]),
        Phase("cost", ["calls", "turns"], partial(time_turns, *held), SHARES["cost"]),
        Phase("decode", ["decoded"], partial(decode_best, *held), SHARES["decode"]),
    ]


def sampling(config: Record) -> Record:
    return {name: config[name] for name in ("temperature", "top_k", "top_p")}


def _rules(config: Record) -> dict[str, verifiers.Verifier]:
    return {name: verifiers.get(name) for name in {cell["verifier"] for cell in cells(config)}}


def replay_texts(
    config: Record, target: Any, draft: Any, texts: Any, run: Run, seconds: float | None
) -> None:
    shape, rules = (config["num_drafts"], config["draft_lengths"]), _rules(config)
    decoder = replay.Watched(
        target, draft, num_drafts=shape[0][-1], draft_length=shape[1][-1], **sampling(config)
    )

    def measure(text: int) -> tuple[int, Record, Record]:
        turns = replay.turns_of_text(decoder, texts[text], config["new_tokens"], text)
        return totals(itertools.islice(turns, text % STRIDE, None, STRIDE), shape, rules)

    fill(config, run, range(len(texts)), measure, seconds)


def totals(turns: Any, shape: Any, rules: Any) -> tuple[int, Record, Record]:
    """Of one text: how many turns; the tokens that each rule would emit in them, by shape; and by
    depth the nodes visited, with the sums of the optimum and of each token rule's acceptance there."""
    count, nodes = 0, {}
    tokens = {name: torch.zeros(len(shape[0]), len(shape[1])).double() for name in rules}
    for turn, tree in turns:
        count += 1
        for name, rule in rules.items():
            tokens[name] += replay.expected_tokens(rule, tree, *shape)
        for depth, (optimum, accepted) in enumerate(replay.visited(tree, turn, rules)):
            held = nodes.setdefault(depth, {"visits": 0, "optimum": 0.0, "acceptance": {}})
            held["visits"] += 1
            held["optimum"] += optimum
            for name, value in accepted.items():
                held["acceptance"][name] = held["acceptance"].get(name, 0.0) + value
    return count, tokens, nodes


def fill(config: Record, run: Run, texts: Sequence[int], measure: Any, seconds: Any) -> None:
    """Records what `measure(text)` finds, `totals`, for every text that has no records yet."""
    settings = cells(config)
    places = [{n: i for i, n in enumerate(config[name])} for name in SHAPES]

    def make(text: int) -> list[Record]:
        count, tokens, nodes = measure(text)
        known = run.done("nodes")
        fresh = [depth for depth in nodes if (text, depth) not in known]
        run.append("nodes", 0, [{"text": text, "depth": d, **nodes[d]} for d in fresh])
        found = []
        for cell in settings if count else ():
            place = places[0][cell["num_drafts"]], places[1][cell["draft_length"]]
            emitted = float(tokens[cell["verifier"]][place])
            found.append({"text": text, **cell, "turns": count, "tokens": emitted})
        return found

    def records_of(text: int) -> list[Record]:
        return [{"text": text, **cell} for cell in settings]

    run.fill("tokens", texts, records_of, make, seconds, least=2)


def time_turns(
    config: Record, target: Any, draft: Any, texts: Any, run: Run, seconds: float | None
) -> None:
    drafts, lengths = config["num_drafts"], config["draft_lengths"]
    slots = max(map(len, texts)) + TIMED_TOKENS + drafts[-1] * lengths[-1]
    read = {"target": {1, *(1 + k * n for k in drafts for n in lengths)}, "draft": {1, *drafts}}
    calls = []
    for role, model in (("target", target), ("draft", draft)):
        for tokens in sorted(read[role]):
            clock = clocks.call(model, tokens, slots)
            calls.append(({"model": role, "tokens": tokens}, partial(_seconds, clock)))
    share = None if seconds is None else seconds / 8
    run.rounds("calls", calls, MOST_ROUNDS, share, least=LEAST_ROUNDS)

    def turn(cell: Record, number: int) -> Record:
        found = run_cell(config, target, draft, texts, cell, number)
        return {"turns": found.count, "seconds": found.seconds}

    began = time.monotonic()
    turns = [(cell, partial(turn, cell)) for cell in (PLAIN, *cells(config))]
    share = None if seconds is None else 7 * seconds / 8
    warm_up = int(config["device"] == "cuda")  # which records its graphs in it
    run.rounds("turns", turns, LEAST_ROUNDS, share, warm_up=warm_up, least=LEAST_ROUNDS)
    # More rounds for those that may be the fastest.
    first = [list(setting[n] for n in CELL) for setting in advice.settings_of(run, config)[:MOST]]
    turns = [job for job in turns if job[0] is PLAIN or list(job[0].values()) in first]
    share = None if share is None else share - (time.monotonic() - began)
    run.rounds("turns", turns, MOST_ROUNDS, share, warm_up=0)


def _seconds(clock: Any, number: int) -> Record:
    return {"seconds": clock()}


def run_cell(
    config: Record, target: Any, draft: Any, texts: Any, cell: Record, number: int
) -> clocks.Turns:
    """Some turns of one setting on the text of a round, timed."""
    plain = cell["num_drafts"] == 0
    return clocks.run_turns(
        target,
        None if plain else draft,
        [texts[number % len(texts)]],
        new_tokens=max(TIMED_TOKENS, 3 * cell["draft_length"]),
        generator=number,
        verifier="kseq" if plain else cell["verifier"],
        num_drafts=cell["num_drafts"],
        draft_length=max(cell["draft_length"], 1),
        **sampling(config),
    )


def decode_best(
    config: Record, target: Any, draft: Any, texts: Any, run: Run, seconds: float | None
) -> None:
    """The setting of the largest predicted speed, and autoregressive decoding, in turns.

    A setting once chosen stays: later rounds of a resumed run go on with it.
    """
    chosen = [{n: r[n] for n in CELL} for r in run.read("decoded") if r["num_drafts"]]
    best = chosen[0] if chosen else {n: advice.settings_of(run, config)[0][n] for n in CELL}

    def turn(cell: Record, number: int) -> Record:
        found = run_cell(config, target, draft, texts, cell, number)
        return {"turns": found.count, "emitted": found.emitted, "seconds": found.seconds}

    jobs = [(cell, partial(turn, cell)) for cell in (PLAIN, best)]
    run.rounds("decoded", jobs, len(texts), seconds, least=min(LEAST_ROUNDS, len(texts)))


summarise, show, report, summary = advice.summarise, advice.show, advice.report, advice.summary
