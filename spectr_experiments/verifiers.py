"""What one call of each selection rule costs, next to K-SEQ in the same run.

    python -m spectr_lite reproduce verifiers [--device cuda] [--run-id NAME]

Two jobs are timed. `token`: `_select` for one row with k = 8 drafts (or the number a rule is made for).
`block`: `_verify` for one row with K = 8 paths of L = 4 tokens (one path for the rules made for one).
All rules take turns within a round, so that a slow moment touches all of them. A run is
results/benchmark-verifiers/<run-id>/; the summary ships in spectr_lite/results/.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial

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
KEYS = {"records": ("job", "verifier", "vocabulary", "round")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=whole(2), default=15, help="default: %(default)s")
    sizes = whole(2, 1_000_000)
    parser.add_argument("--vocabularies", type=sizes, nargs="+", default=[50_000, 128_000])


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    config = make_config(device, args.rounds, [*dict.fromkeys(args.vocabularies)])
    timing = partial(measure, config)
    yield Plan(args.run_id or device.type, config, [Phase("timing", ["records"], timing)])


def make_config(device: torch.device, rounds: int, vocabularies: list[int]) -> Record:
    return {
        "device": device.type,
        "vocabularies": vocabularies,
        "k": 8,
        "length": 4,
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


def token_job(name: str, draft: torch.Tensor, target: torch.Tensor, k: int) -> Callable[[], object]:
    rule = verifiers.get(name)
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
    """Medians and quartiles, and their ratios to K-SEQ of the same job."""
    found = grouped(run.read("records"), ["job", "vocabulary", "verifier", "drafts"])
    times = {key: [record["seconds"] for record in lines] for key, lines in found.items()}
    median = {key: statistics.median(values) for key, values in times.items()}
    rows = []
    for key in sorted(times):
        job, vocabulary, verifier, drafts = key
        kseq = next(m for other, m in median.items() if other[:3] == (job, vocabulary, "kseq"))
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
            }
        )
    return {"run": run.folder.name, "config": config, "environment": sessions[-1], "rows": rows}


def summary(found: list[Record]) -> Record:
    return {"command": "python -m spectr_lite reproduce verifiers", "runs": found}
