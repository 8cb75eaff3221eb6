"""What one call of each selection rule costs, next to K-SEQ in the same run.

    python -m spectr_lite reproduce verifiers [--device cuda] [--run-id NAME]

Four jobs are timed. `token`: `_select` for one row with k = 8 drafts (or the number a rule is made
for), and for the rules of PLAIN with k = 2 and 4 too. `plain`: the same by the shortest code in float32
that does it, which makes a residual only when it is needed. The optimal plan has no such code, so that
`optimal` is set beside the plain K-SEQ. `batch`: `_select` for 8 rows at once.
`block`: `_verify` for one row with K = 8 paths of L tokens (one path for the rules made for one).
All rules take turns within a round, so that a slow moment touches all of them. A run is
results/benchmark-verifiers/<run-id>/; the summary ships in spectr_lite/results/.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from spectr_experiments import clocks
from spectr_experiments.records import Phase, Plan, Record, Run, grouped
from spectr_lite import distributions, verifiers
from spectr_lite.commands.arguments import whole
from spectr_lite.distributions import IID, sample

FOLDER = "benchmark-verifiers"
SCHEMA = {
    "records": {"job": str, "verifier": str, "vocabulary": int, "drafts": int, "round": int,
                "seconds": float},
}  # fmt: skip
KEYS = {"records": ("job", "verifier", "vocabulary", "drafts", "round")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=whole(2), default=15, help="default: %(default)s")
    sizes = whole(2, 1_000_000)
    parser.add_argument(
        "--vocabularies", type=sizes, nargs="+", default=[32_000, 50_000, 128_000, 152_000]
    )


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    config = make_config(device, args.rounds, [*dict.fromkeys(args.vocabularies)])
    timing = partial(measure, config)
    yield Plan(args.run_id or device.type, config, [Phase("timing", ["records"], timing)])


def make_config(device: torch.device, rounds: int, vocabularies: list[int]) -> Record:
    return {
        "device": device.type,
        "vocabularies": vocabularies,
        "k": 8,
        "fewer_k": [2, 4],
        "rows": 8,
        "length": 8,
        "rounds": rounds,
        "warm_up": 3,
        "seed": 0,
        "pair": "distributions.zipf(vocabulary, exponent=1.0, mismatch=1.0, seed)",
        "block_rules": ["kseq", "recursive", "optimal", "block", "traversal",
                        "multipath-block", "optimal-block"],
    }  # fmt: skip


def drafts_taken(name: str, wanted: int) -> int:
    """`wanted`, or the number of drafts the rule is made for."""
    for k in (wanted, 2, 1):
        try:
            return verifiers.get(name).check_drafts(k)
        except ValueError:
            continue
    raise ValueError(f"{name}: takes neither {wanted} drafts, nor 2, nor 1.")


def plain_kseq(
    draft: torch.Tensor, target: torch.Tensor, tokens: list[int], generator: torch.Generator
) -> int:
    """K-SEQ for one row (V,): bisection in twenty halvings, then the tests, then the residual."""
    k = len(tokens)
    low, high = 1.0, float(k)
    for _ in range(20):
        rho = (low + high) / 2
        beta = float(torch.minimum(draft, target / rho).sum())
        low, high = (rho, high) if 1 - (1 - beta) ** k > rho * beta else (low, rho)
    for token, coin in zip(tokens, torch.rand(k, generator=generator).tolist(), strict=True):
        if coin * high * float(draft[token]) < float(target[token]):
            return token
    kept = torch.minimum(draft, target / high)
    beta = float(kept.sum())
    left = (target - kept * ((1 - (1 - beta) ** k) / beta)).clamp_min_(0)
    return int(torch.multinomial(left, 1, generator=generator))


def plain_recursive(
    draft: torch.Tensor, target: torch.Tensor, tokens: list[int], generator: torch.Generator
) -> int:
    """Recursive rejection for one row (V,): a test by scalars, and the residual of each refusal."""
    left = target
    for token, coin in zip(
        tokens, torch.rand(len(tokens), generator=generator).tolist(), strict=True
    ):
        if coin * float(draft[token]) < float(left[token]):
            return token
        left = (left - draft).clamp_min_(0)
        left = left / left.sum()
    return int(torch.multinomial(left, 1, generator=generator))


PLAIN = {"kseq": plain_kseq, "recursive": plain_recursive, "optimal": plain_kseq}


def plain_job(name: str, draft: torch.Tensor, target: torch.Tensor, k: int) -> Callable[[], object]:
    generator = torch.Generator(draft.device).manual_seed(0)
    (tokens,) = IID().sample(draft, k, generator).tolist()
    return lambda: PLAIN[name](draft[0], target[0], tokens, generator)


def token_job(
    name: str, draft: torch.Tensor, target: torch.Tensor, k: int, rows: int = 1
) -> Callable[[], object]:
    rule = verifiers.get(name)
    draft, target = draft.repeat(rows, 1), target.repeat(rows, 1)
    generator = torch.Generator(draft.device).manual_seed(0)
    tokens = rule.default_drafting.sample(draft, k, generator)
    return lambda: rule._select(draft, target, tokens, generator)


def block_job(
    name: str, draft: torch.Tensor, target: torch.Tensor, k: int, length: int
) -> Callable[[], object]:
    """Distributions that depend on the depth alone, so that many paths share a prefix as real ones
    do.
    """
    rule = verifiers.get(name)
    generator = torch.Generator(draft.device).manual_seed(0)
    vocabulary = draft.shape[-1]
    shift = [torch.roll(draft, 17 * i, -1) for i in range(length + 1)]
    draft_probs = torch.stack(shift[:-1], 1).unsqueeze(1).expand(1, k, length, vocabulary)
    aims = [torch.roll(target, 17 * i, -1) for i in range(length + 1)]
    target_probs = torch.stack(aims, 1).unsqueeze(1).expand(1, k, length + 1, vocabulary)
    paths = sample(draft_probs.contiguous(), generator)
    return lambda: rule._verify(draft_probs, target_probs, paths, generator)


def jobs(config: Record, device: torch.device) -> Iterator[tuple[Record, Callable[[], object]]]:
    for vocabulary in config["vocabularies"]:
        pair = distributions.zipf(vocabulary, seed=config["seed"])
        draft, target = (torch.as_tensor(p, dtype=torch.float32)[None].to(device) for p in pair)
        for name in verifiers.names():
            rule = verifiers.get(name)
            if rule._given_paths.__func__ is verifiers.Verifier._given_paths:
                k = drafts_taken(name, config["k"])
                key = {"job": "token", "verifier": name, "vocabulary": vocabulary, "drafts": k}
                yield key, token_job(name, draft, target, k)
            for k in (config["k"], *config["fewer_k"]) if name in PLAIN else ():
                key = {"job": "plain", "verifier": name, "vocabulary": vocabulary, "drafts": k}
                if device.type == "cpu":
                    yield key, plain_job(name, draft, target, k)
                yield {**key, "job": "batch"}, token_job(name, draft, target, k, config["rows"])
                if k != config["k"]:
                    yield {**key, "job": "token"}, token_job(name, draft, target, k)
            if IID in rule.valid_for and name in config["block_rules"]:
                k = drafts_taken(name, config["k"])
                key = {"job": "block", "verifier": name, "vocabulary": vocabulary, "drafts": k}
                yield key, block_job(name, draft, target, k, config["length"])


def measure(config: Record, run: Run, seconds: float | None) -> None:
    device = torch.device(config["device"])

    def turn(call: Callable[[], object], _: int) -> Record:
        return {"seconds": clocks.seconds_of(call, device)}

    work = [(cell, partial(turn, call)) for cell, call in jobs(config, device)]
    run.rounds("records", work, config["rounds"], seconds, config["warm_up"], least=2)


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    """Medians and quartiles; their ratios to K-SEQ of the same job, with as many drafts if it was
    timed so. A token is set beside plain code too, where that was timed, and a batch beside as many
    single rows. Both sides of a round met the same moments, so that these are medians of ratios."""
    found = grouped(run.read("records"), ["job", "vocabulary", "verifier", "drafts"])
    times = {key: [record["seconds"] for record in lines] for key, lines in found.items()}
    median = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for key in sorted(times):
        job, vocabulary, verifier, drafts = key
        same = median.get((job, vocabulary, "kseq", drafts))
        kseq = same or median[job, vocabulary, "kseq", config["k"]]
        low, _, high = statistics.quantiles(times[key], n=4)
        rows.append(
            {
                "job": job,
                "vocabulary": vocabulary,
                "verifier": verifier,
                "drafts": drafts,
                "median_seconds": median[key],
                "quartiles": [low, high],
                "ratio_to_kseq": median[key] / kseq,
                "rounds": len(times[key]),
                **ratios(found, key, config.get("rows", 1)),
            }
        )
    return {"run": run.folder.name, "config": config, "environment": sessions[-1], "rows": rows}


def ratios(found: dict[tuple[Any, ...], list[Record]], key: tuple[Any, ...], rows: int) -> Record:
    """`ratio_to_plain` of a token, or `rows` and `ratio_to_rows` of a batch: medians over rounds."""
    beside, name, unit = {
        "token": ("plain", "ratio_to_plain", 1),
        "batch": ("token", "ratio_to_rows", rows),
    }.get(key[0], (None, "", 1))
    others = {record["round"]: record["seconds"] for record in found.get((beside, *key[1:]), [])}
    each = [
        record["seconds"] / (unit * others[record["round"]])
        for record in found[key]
        if record["round"] in others
    ]
    if not each:
        return {}
    return {name: statistics.median(each), **({"rows": rows} if key[0] == "batch" else {})}


def summary(found: list[Record]) -> Record:
    return {"command": "python -m spectr_lite reproduce verifiers", "runs": found}
