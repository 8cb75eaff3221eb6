"""How often `check.lossless` accuses wrong rules and right ones, V = 32,000, k = 8, default samples.

    python tests/verdict_power.py --repeats 100 --right 1000            # hours
    python tests/verdict_power.py --repeats 10 --right 0 --only Deduplicated NotOverdone

Prints a line for every rule: accused / repeats, the seeds that went wrong, and the least p-value. A rule
that only draws (no P(Y = y | drafts)) must be caught where its bias is above `detectable`.
"""

from __future__ import annotations

import argparse
import sys

import torch
import wrong_variants as wrong
from test_league_rules import (
    ForgetsToRemove,
    KeepsTheFirstResidual,
    RemovesFromRepeats,
    TakesTheDraftForTheWinner,
)
from test_tree_rules import RanksTiesInTwoWays

from spectr_lite import check
from spectr_lite import distributions as D

V, K = 32_000, 8
WRONG = [
    wrong.Deduplicated(),
    wrong.RhoOne(),
    wrong.PlainResidual(),
    wrong.StaleCount(),
    wrong.OfTwoMore(),
    wrong.NotOverdone(),
    ForgetsToRemove(),
    RemovesFromRepeats(),
    KeepsTheFirstResidual(),
    TakesTheDraftForTheWinner(),
    RanksTiesInTwoWays(),
]
DRAWS_ONLY = [
    wrong.SelectsAs(rule)
    for rule in (
        wrong.RhoOne(),
        wrong.PlainResidual(),
        wrong.StaleCount(),
        wrong.OfTwoMore(),
        wrong.NotOverdone(),
        KeepsTheFirstResidual(),
        RanksTiesInTwoWays(),
    )
]
RIGHT = [name for name in check.token_rules() if check.is_defined(name, K)]


def judge(
    rule: object, vocabulary: int, seeds: range, samples: int | None = None
) -> list[check.Verdict]:
    """The verdict on `rule` for each seed, with a pair of its own."""
    verdicts = []
    for seed in seeds:
        draft, target = (torch.tensor(side) for side in D.zipf(vocabulary, seed=seed))
        verdicts.append(check.lossless(rule, draft, target, K, samples, generator=seed))
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="of each wrong rule")
    parser.add_argument(
        "--right", type=int, default=1000, help="verdicts, shared by the right rules"
    )
    parser.add_argument("--only", nargs="+", help="names of rules")
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(rule, True, args.repeats) for rule in WRONG + DRAWS_ONLY]
    jobs += [(rule, False, -(-args.right // len(RIGHT))) for rule in RIGHT]
    failed = False
    for rule, biased, repeats in jobs:
        name = rule if isinstance(rule, str) else getattr(rule, "name", "unnamed")
        name = type(rule).__name__ if name == "unnamed" else name
        if not repeats or (args.only and not any(name.startswith(word) for word in args.only)):
            continue
        found = judge(rule, V, range(args.first_seed, args.first_seed + repeats))
        seeds = [i + args.first_seed for i, v in enumerate(found) if v.biased != biased]
        failed = failed or len(seeds) > repeats // 100 * biased
        print(
            f"{name:40} {'wrong' if biased else 'right'}  accused {sum(v.biased for v in found)} / "
            f"{repeats}, by samples {sum(v.p_value < v.false_alarm for v in found)}, least p "
            f"{min(v.p_value for v in found):.1e}, detectable {found[0].detectable:.3f}, "
            f"wrong for seeds {seeds}",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
