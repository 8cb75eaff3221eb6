"""Do the tests see a bug? Small deliberate bugs, one at a time, and the tests that claim the place.

    python tests/mutants.py                      all of them, two at a time
    python tests/mutants.py kseq-ratio hf --jobs 1    those of these names or rooms

The suite must pass as it is; then each bug is put into a temporary copy of the checkout (which is
itself never touched), and the tests run until the first one fails. "caught": one failed. "LIVED":
none did, so a bug of this kind could stay unseen: sharpen a test, or, where no test can see a
difference, take the mutant off the list. A mutant with `known` set is expected to live, for the
reason given there; when it is caught after all, take the note away. The exit status is 1 when a
mutant that should be caught lives, 2 when one does not fit the code any more, or its tests are not
there.

`old` must occur exactly once in its file. tests/test_mutants.py checks that, so the list cannot
rot silently.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 300  # a mutant whose tests take longer hangs: the tests have noticed
SHARED = ("torch", "scipy.stats", "scipy.optimize")  # imported once for all mutants


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` becomes `new`; `tests` are the arguments of pytest that must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    known: str = ""  # why it is expected to live

    @property
    def room(self) -> str:
        """The part of the project that it is in."""
        parts = self.file.removesuffix(".py").split("/")
        room = parts[0] if parts[0] != "spectr_lite" else parts[1]
        return "transport" if room == "distributions" else room

    def text(self, root: Path) -> str:
        """The mutated file. Raises ValueError where `old` does not occur exactly once."""
        source = (root / self.file).read_text(encoding="utf-8")
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its old text occurs {count} times in {self.file}")
        return source.replace(self.old, self.new)


VERIFIERS = "spectr_lite/verifiers"
TREES = "tests/test_tree_rules.py -k"
LOSSLESS = "tests/test_verifiers_lossless.py -k"
BLOCKS = "test_the_finished_block_follows_the_target"
DRAWN = "test_a_drawn_block_follows_the_exact_distribution"
EXACT = "test_lossless_and_never_better or test_the_distribution_given"

MUTANTS = [
    # --- what a benchmark times, and what a GPU's turn is predicted to take ---
    Mutant(
        "clocks-rows-share-a-decoder", "spectr_experiments/clocks.py",
        "kept_decoder(target, draft, len(rows), **settings)",
        "kept_decoder(target, draft, 0, **settings)",
        "tests/test_benchmark_decoding.py -k no_clock_runs",
    ),
    Mutant(
        "clocks-first-span-alone", "spectr_experiments/clocks.py",
        "longest + n for n in range(new_tokens)}",
        "longest + n for n in range(1)}",
        "tests/test_benchmark_decoding.py -k no_clock_runs",
    ),
    Mutant(
        "clocks-stages-run-once", "spectr_experiments/clocks.py",
        "for _ in range(2):  # each runs, then is recorded",
        "for _ in range(1):  # each runs, then is recorded",
        "tests/test_benchmark_decoding.py -k no_clock_runs",
    ),
    Mutant(
        "prediction-whole-table", "spectr_experiments/prediction.py",
        "READS_PLACES = {aten.embedding, ",
        "READS_PLACES = {",
        "tests/test_prediction.py -k moves",
    ),
    Mutant(
        "prediction-no-arithmetic", "spectr_experiments/prediction.py",
        'max(device["floor"], self.bytes / device["bandwidth"], arithmetic)',
        'max(device["floor"], self.bytes / device["bandwidth"])',
        "tests/test_prediction.py -k largest",
    ),
    Mutant(
        "gguf-halves-swapped", "training/gguf_file.py",
        "[q & 15, q >> 4]",
        "[q >> 4, q & 15]",
        "tests/test_fetch_smollm2.py -k own_library",
    ),
    Mutant(
        "carry-parts-by-name", "training/carry.py",
        ', key=lambda path: int(path.suffix[1:]))',
        ")",
        "tests/test_gpu_session.py -k joined",
    ),
    # --- the walk from the root, and what the rules for paths share ---
    Mutant(
        "walk-dead-come-back", f"{VERIFIERS}/paths.py",
        "survivors = alive & (here == token.unsqueeze(-1))",
        "survivors = here == token.unsqueeze(-1)",
        "tests/test_decoding.py -k test_every_distribution_shown_to_the_rule",
    ),
    Mutant(
        "walk-offers-the-dead", f"{VERIFIERS}/paths.py",
        "offered = torch.where(alive, here, -1)", "offered = here",
        f"{TREES} '{DRAWN} and kseq'",
    ),
    Mutant(
        "walk-stopped-row-counts-on", f"{VERIFIERS}/paths.py",
        "accepted = accepted + running", "accepted = accepted + survivors.any(-1)",
        f"{TREES} '{DRAWN} and kseq'",
    ),
    Mutant(
        "walk-bonus-from-the-draft", f"{VERIFIERS}/paths.py",
        "last = sample(target_probs_at(path, length), generator)",
        "last = sample(draft_probs_at(path, length - 1), generator)",
        f"{TREES} '{DRAWN} and kseq'",
    ),
    Mutant(
        "walk-exact-bonus-one-node-early", f"{VERIFIERS}/paths.py",
        "stop.append(reached)\n    extra.append(target_probs[..., -1, :]",
        "stop.append(reached)\n    extra.append(target_probs[..., -2, :]",
        f"{TREES} '{BLOCKS} and kseq'",
    ),
    Mutant(
        "walk-shared-prefix-counted-twice", f"{VERIFIERS}/paths.py",
        "torch.stack(stop, -1) * is_first(shared)", "torch.stack(stop, -1)",
        f"{TREES} '{BLOCKS} and kseq'",
    ),
    Mutant(
        "walk-exact-offers-the-dead", f"{VERIFIERS}/paths.py",
        "offered = torch.where(shared[..., i], paths[..., i].unsqueeze(-2), -1)",
        "offered = paths[..., i].unsqueeze(-2).expand_as(shared[..., i])",
        f"{TREES} '{BLOCKS} and kseq'",
    ),
    Mutant(
        "block-residual-sign", f"{VERIFIERS}/paths.py",
        "(weight.unsqueeze(-1) * target - draft)", "(draft - weight.unsqueeze(-1) * target)",
        f"{TREES} '{BLOCKS} and block'",
    ),
    Mutant(
        "block-residual-without-weight", f"{VERIFIERS}/paths.py",
        "(weight.unsqueeze(-1) * target - draft)", "(target - draft)",
        f"{TREES} '{BLOCKS} and block'",
    ),
    Mutant(
        "block-first-passing-coin", f"{VERIFIERS}/paths.py",
        "above = torch.nn.functional.pad(failed[..., 1:], (0, 1), value=1.0)",
        "above = torch.nn.functional.pad(torch.cumprod(1 - coin, -1)[..., :-1], (1, 0), value=1.0)",
        f"{TREES} '{BLOCKS} and block'",
    ),
    Mutant(
        "block-ratio-inverted", f"{VERIFIERS}/paths.py",
        "ratio = torch.where(mass > 0, probability_of(target, token) / mass, 0.0).squeeze(-1)",
        "ratio = torch.where(mass > 0, mass / probability_of(target, token), 0.0).squeeze(-1)",
        f"{TREES} '{BLOCKS} and block'",
    ),
    Mutant(
        "block-weight-not-clipped", f"{VERIFIERS}/paths.py",
        "(weight * ratio).clamp_max(1)", "(weight * ratio)",
        f"{TREES} '{BLOCKS} and block'",
    ),
    Mutant(
        "block-bonus-one-node-early", f"{VERIFIERS}/paths.py",
        "coins.append(weight)\n    extra.append(target_probs[..., -1, :]",
        "coins.append(weight)\n    extra.append(target_probs[..., -2, :]",
        f"{TREES} '{BLOCKS} and block'",
    ),
    # --- the rules for tokens ---
    Mutant(
        "coupling-refuses-less", f"{VERIFIERS}/coupling.py",
        "eta * probability_of(probs, token) < probability_of(target, token)",
        "eta * probability_of(probs, token) <= probability_of(target, token)",
        "tests/test_league_rules.py -k nothing_beside",
    ),
    Mutant(
        "coupling-residual-sign", f"{VERIFIERS}/coupling.py",
        "left = left_over(target, probs)", "left = left_over(probs, target)",
        f"{LOSSLESS} 'test_select_follows and naive'",
    ),
    Mutant(
        "residual-of-nothing", f"{VERIFIERS}/coupling.py",
        "1e-30 * target)", "0 * target)",
        "tests/test_league_rules.py -k refused_by_rounding",
    ),
    Mutant(
        "coupling-ratio-inverted", f"{VERIFIERS}/coupling.py",
        "torch.where(mass > 0, probability_of(target, tokens) / mass, 1.0)",
        "torch.where(mass > 0, mass / probability_of(target, tokens), 1.0)",
        f"{LOSSLESS} '({EXACT}) and coupling'",
    ),
    Mutant(
        "kseq-ratio-inverted", f"{VERIFIERS}/kseq.py",
        "probability_of(target, tokens) / scaled, 0.0)",
        "scaled / probability_of(target, tokens), 0.0)",
        f"{LOSSLESS} '({EXACT}) and kseq'",
    ),
    Mutant(
        "kseq-not-strict", f"{VERIFIERS}/kseq.py",
        "first_passing(tested < probability_of(target, tokens))",
        "first_passing(tested <= probability_of(target, tokens))",
        f"{TREES} '{DRAWN} and kseq'",
    ),
    Mutant(
        "kseq-stale-count", f"{VERIFIERS}/kseq.py",
        "k = (tokens >= 0).sum(-1)\n        rho = self._rho(draft, target, k, tokens.shape[-1])\n"
        "        return",
        "k = (tokens >= -1).sum(-1)\n        rho = self._rho(draft, target, k, tokens.shape[-1])\n"
        "        return",
        f"{TREES} '{DRAWN} and kseq'",
    ),
    Mutant(
        "kseq-residual-of-one-draft", f"{VERIFIERS}/kseq.py",
        "left_over(target, kept * share.unsqueeze(-1))", "left_over(target, kept)",
        f"{LOSSLESS} '({EXACT}) and kseq'",
    ),
    Mutant(
        "kseq-rho-on-the-unsafe-side", f"{VERIFIERS}/kseq.py",
        "return high.clamp(1.0, None)", "return low.clamp(1.0, None)",
        "tests/test_kseq.py -k 'root or any_number'",
    ),
    Mutant(
        "kseq-acceptance-of-one-fewer", f"{VERIFIERS}/kseq.py",
        "return -torch.expm1(k * torch.log1p(-beta))",
        "return -torch.expm1((k - 1) * torch.log1p(-beta))",
        "tests/test_kseq.py -k reference",
    ),
    Mutant(
        "recursive-residual-not-normalised", f"{VERIFIERS}/recursive.py",
        "left / total, target)", "left, target)",
        f"{LOSSLESS} '({EXACT}) and recursive'",
    ),
    Mutant(
        "recursive-row-keeps-the-mass", f"{VERIFIERS}/recursive.py",
        "mass = left.sum().item() / self._rest", "mass = 1 / self._rest",
        "tests/test_league_rules.py -k 'seen_by or rounding or dead'",
    ),
    Mutant(
        "rows-offer-the-dead", f"{VERIFIERS}/nodes.py",
        "strict=True) if each[0] >= 0]", "strict=True)]",
        f"{TREES} '{DRAWN} and (recursive or kseq)'",
    ),
    Mutant(
        "kseq-bracket-trusts-float32-too-much", f"{VERIFIERS}/kseq.py",
        "SINGLE = 4e-6", "SINGLE = 0.0",
        "tests/test_kseq.py -k 'float32_leave'",
    ),
    Mutant(
        "kseq-row-takes-a-repeat-for-the-first", f"{VERIFIERS}/kseq.py",
        "return accepted(low) == accepted(high) >= 0",
        "return accepted(high) >= 0 and drafts[0][accepted(low)] == drafts[0][accepted(high)]",
        "tests/test_kseq.py -k row_decides",
    ),
    Mutant(
        "kseq-row-left-at-another-rho", f"{VERIFIERS}/kseq.py",
        "alpha=share)", "alpha=rho * 1.01)",
        "tests/test_kseq.py -k law_of_a_row",
    ),
    Mutant(
        "plan-of-a-row-at-the-other-end", "spectr_lite/transport/nested.py",
        "- (1 - z) * g", "- z * g",
        "tests/test_optimal.py -k plan_of_one_row",
    ),
    Mutant(
        "recursive-ends-in-the-target", f"{VERIFIERS}/recursive.py",
        "return probs + reached * left", "return probs + reached * target",
        f"{LOSSLESS} '({EXACT}) and recursive'",
    ),
    Mutant(
        "recursive-wor-draft-not-normalised", f"{VERIFIERS}/recursive_wor.py",
        "removed / total, removed)", "removed, removed)",
        f"{LOSSLESS} '({EXACT}) and recursive-wor'",
    ),
    Mutant(
        "recursive-wor-keeps-the-refused", f"{VERIFIERS}/recursive_wor.py",
        "return without(draft, token)", "return draft",
        f"{LOSSLESS} '({EXACT}) and recursive-wor'",
    ),
    Mutant(
        "naive-first-draft-dead-or-alive", f"{VERIFIERS}/naive.py",
        "return tokens.gather(-1, (tokens >= 0)", "return tokens.gather(-1, (tokens >= -1)",
        f"{LOSSLESS} 'dead and naive'",
    ),
    Mutant(
        "naive-luck-of-one-more-draft", f"{VERIFIERS}/naive.py",
        "-torch.expm1((k - 1) *", "-torch.expm1(k *",
        f"{LOSSLESS} 'never_better and naive'",
    ),
    Mutant(
        "target-only-luck-of-one-fewer", f"{VERIFIERS}/target_only.py",
        "-torch.expm1(k *", "-torch.expm1((k - 1) *",
        f"{LOSSLESS} 'reference or (never_better and target-only)'",
    ),
    Mutant(
        "spechub-hub-is-the-unlikeliest", f"{VERIFIERS}/spechub.py",
        "descending=True", "descending=False",
        f"{LOSSLESS} 'never_better and spechub'",
    ),
    Mutant(
        "importance-order-reversed", f"{VERIFIERS}/importance.py",
        "(new < held).to", "(new > held).to",
        "tests/test_league_rules.py -k truncating",
    ),
    Mutant(
        "importance-coin-transposed", f"{VERIFIERS}/importance.py",
        "coins[second, first] = 1 - coins[first, second]",
        "coins[second, first] = coins[first, second]",
        f"{LOSSLESS} '({EXACT}) and importance'",
    ),
    Mutant(
        "importance-stale-count", f"{VERIFIERS}/importance.py",
        "champions[(tokens >= 0).sum(-1) - 1]", "champions[(tokens >= -1).sum(-1) - 1]",
        f"{LOSSLESS} 'dead and importance'",
    ),
    Mutant(
        "optimal-stale-count", f"{VERIFIERS}/optimal.py",
        "k = (tokens >= 0).sum(-1)", "k = (tokens >= -1).sum(-1)",
        f"{LOSSLESS} 'dead and optimal'",
    ),
    Mutant(
        "acceptance-counts-the-dead", f"{VERIFIERS}/base.py",
        "tokens % (draft.shape[-1] + 1), 1.0)", "tokens.clamp_min(0), 1.0)",
        "tests/test_league_rules.py tests/test_verifiers_lossless.py -k "
        "'counts_its_own_acceptance or (never_better and Without)'",
    ),
    Mutant(
        "selection-accepted-only-if-all", f"{VERIFIERS}/base.py",
        "accepted = (drafted == token.unsqueeze(-1)).any(-1)",
        "accepted = (drafted == token.unsqueeze(-1)).all(-1)",
        f"{LOSSLESS} 'test_select_follows and kseq'",
    ),
    Mutant(
        "tree-stop-and-path-swapped", f"{VERIFIERS}/base.py",
        "emit(paths, place // width, place % width, last)",
        "emit(paths, place % width % paths.shape[-2], place % width, last)",
        f"{TREES} '{DRAWN} and traversal'",
    ),
    # --- three steps: at once, one walk, one draw ---
    Mutant(
        "kseq-one-step-below-the-safe-one", f"{VERIFIERS}/kseq.py",
        "return rho.gather(-1, first)", "return rho.gather(-1, (first - 1).clamp_min(0))",
        "tests/test_kseq.py -k step",
    ),
    Mutant(
        "kseq-bins-closed-at-the-other-end", f"{VERIFIERS}/kseq.py",
        ".ceil().nan_to_num(0.0)", ".floor().nan_to_num(0.0)",
        "tests/test_kseq.py -k step",
    ),
    Mutant(
        "steps-walk-on-after-the-end", f"{VERIFIERS}/nodes.py",
        "going = (on >= 0) & (accepted == i)", "going = on >= 0",
        "tests/test_three_steps.py -k walk",
    ),
    Mutant(
        "steps-left-of-the-node-before", f"{VERIFIERS}/nodes.py",
        "place = path, accepted.clamp_max(length - 1)",
        "place = path, (accepted - 1).clamp_min(0)",
        "tests/test_three_steps.py -k walk",
    ),
    Mutant(
        "recursive-steps-forget-the-mass", f"{VERIFIERS}/recursive.py",
        "tested = (coins * mass + shift)", "tested = (coins + shift)",
        "tests/test_three_steps.py -k lossless",
    ),
    Mutant(
        "optimal-block-coins-of-the-draft", f"{VERIFIERS}/optimal_block.py",
        "verify_path(slope.gather(-1, classes) * draft, targets",
        "verify_path(draft.double(), targets",
        f"{TREES} '{DRAWN} and optimal-block'",
    ),
    Mutant(
        "draw-search-side", "spectr_lite/distributions/vectors.py",
        "level, right=True).squeeze", "level, right=False).squeeze",
        "tests/test_three_steps.py -k draw",
    ),
    Mutant(
        "greedy-goes-on-after-a-difference", "spectr_lite/decoding/greedy.py",
        ".view(torch.uint8).cummax(1).values", ".view(torch.uint8)",
        "tests/test_three_steps.py -k greedy",
    ),
    Mutant(
        "kernel-takes-an-unsafe-step", "spectr_lite/kernels/discount.py",
        "e, EDGES), 0)", "e, EDGES), 0) * 0",
        "tests/test_kernels.py -k choose",
    ),
    Mutant(
        "kernel-walk-with-the-first-rho", "spectr_lite/kernels/walk.py",
        "rho_at(start + found, living)", "rho_at(start * 0 + found, living)",
        "tests/test_kernels.py -k choose",
    ),
    Mutant(
        "kernel-missing-marks-one-late", "spectr_lite/kernels/last.py",
        "sound = at < tl.min", "sound = at <= tl.min",
        "tests/test_kernels.py -k choose",
    ),
    Mutant(
        "kernel-times-reversed", "spectr_lite/kernels/plan.py",
        "tl.arange(0, MINE), 1.0 - s)", "tl.arange(0, MINE), s)",
        "tests/test_kernels.py -k choose",
    ),
    # --- the rules for paths ---
    Mutant(
        "optimal-block-draft-for-r", f"{VERIFIERS}/optimal_block.py",
        "marginals.append(plan.winner(draft).to(target.dtype))",
        "marginals.append(draft.to(target.dtype))",
        f"{TREES} '{DRAWN} and optimal-block'",
    ),
    Mutant(
        "optimal-block-exact-draft-for-r", f"{VERIFIERS}/optimal_block.py",
        "marginals.append(marginal.to(target_probs.dtype))",
        "marginals.append(draft_probs[..., i, :])",
        f"{TREES} '{BLOCKS} and optimal-block'",
    ),
    Mutant(
        "optimal-block-stale-count", f"{VERIFIERS}/optimal_block.py",
        "plan = self.selection.plan(draft, target, alive.sum(-1))",
        "plan = self.selection.plan(draft, target, (paths[..., 0] >= 0).sum(-1))",
        f"{TREES} '{DRAWN} and optimal-block'",
    ),
    Mutant(
        "optimal-block-all-stay-alive", f"{VERIFIERS}/optimal_block.py",
        "alive = alive & (offered == offered.gather(-1, winner))", "alive = alive & (offered >= 0)",
        f"{TREES} '{DRAWN} and optimal-block'",
    ),
    Mutant(
        "optimal-block-equal-paths-counted-twice", f"{VERIFIERS}/optimal_block.py",
        "chosen = chosen * is_first(shared)[..., -1]", "chosen = chosen * shared.any(-2)[..., -1]",
        f"{TREES} '{BLOCKS} and optimal-block'",
    ),
    Mutant(
        "traversal-leaf-above-the-fork", f"{VERIFIERS}/traversal.py",
        "leaf = alive & (after[..., j] < i)", "leaf = alive & (after[..., j] <= i)",
        f"{TREES} '{BLOCKS} and traversal'",
    ),
    Mutant(
        "traversal-parent-weight-stale", f"{VERIFIERS}/traversal.py",
        "torch.where(leaf, chance, parent)", "parent",
        f"{TREES} '{BLOCKS} and traversal'",
    ),
    Mutant(
        "traversal-draft-keeps-the-deleted", f"{VERIFIERS}/traversal.py",
        "without(draft[i - 1], token)", "draft[i - 1]",
        f"{TREES} '{BLOCKS} and traversal'",
    ),
    Mutant(
        "traversal-fork-starts-afresh", f"{VERIFIERS}/traversal.py",
        "fresh = before[..., j] < i", "fresh = before[..., j] <= i",
        f"{TREES} '{BLOCKS} and traversal'",
    ),
    Mutant(
        "multipath-power-off-by-one", f"{VERIFIERS}/multipath_block.py",
        "power = (count - 1 - i)", "power = (count - i)",
        f"{TREES} '{BLOCKS} and multipath'",
    ),
    Mutant(
        "multipath-lowest-rank", f"{VERIFIERS}/multipath_block.py",
        "held == held.amax(-1, keepdim=True)", "held == held.amin(-1, keepdim=True)",
        f"{TREES} '{BLOCKS} and multipath'",
    ),
    # --- transport and distributions ---
    Mutant(
        "tail-holds-its-own-token", "spectr_lite/distributions/drafting.py",
        "return torch.cat([backwards[..., 1:], torch.zeros_like(backwards[..., :1])], -1)",
        "return backwards",
        "tests/test_drafting.py -k containment",
    ),
    Mutant(
        "order-reversed", "spectr_lite/distributions/drafting.py",
        "torch.inf).argsort(dim=-1)", "torch.inf).argsort(dim=-1, descending=True)",
        "tests/test_transport.py -k 'awkward and reduced'",
    ),
    Mutant(
        "never-drafted-first", "spectr_lite/distributions/drafting.py",
        "torch.inf).argsort(dim=-1)", "-1.0).argsort(dim=-1)",
        "tests/test_transport.py -k 'awkward or worst_prefix'",
    ),
    Mutant(
        "containment-of-one-fewer", "spectr_lite/distributions/drafting.py",
        "torch.exp(k * torch.log1p(-tail))", "torch.exp((k - 1) * torch.log1p(-tail))",
        "tests/test_drafting.py -k containment",
    ),
    Mutant(
        "top-m-hub-not-needed", "spectr_lite/distributions/drafting.py",
        "inside[..., : count - 1] = 0", "inside[..., : count - 2] = 0",
        "tests/test_drafting.py -k containment",
    ),
    Mutant(
        "clocks-last-to-ring", "spectr_lite/distributions/drafting.py",
        "largest=False", "largest=True",
        "tests/test_drafting.py -k sampled",
    ),
    Mutant(
        "permutations-with-repeats", "spectr_lite/distributions/drafting.py",
        "left = left.scatter(-1, token, 0.0)", "pass",
        "tests/test_drafting.py -k 'plackett or tuples'",
    ),
    Mutant(
        "sample-search-side", "spectr_lite/distributions/vectors.py",
        "level, right=True).clamp_max", "level, right=False).clamp_max",
        "tests/test_distributions.py -k drawn",
    ),
    Mutant(
        "sample-rounds-past-the-end", "spectr_lite/distributions/vectors.py",
        "level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))", "pass",
        "tests/test_distributions.py -k drawn",
    ),
    Mutant(
        "rows-not-normalised", "spectr_lite/distributions/vectors.py",
        "return tensor / total.unsqueeze(-1).to(tensor.dtype)", "return tensor",
        "tests/test_distributions.py",
    ),
    Mutant(
        "rows-may-miss-one-by-more", "spectr_lite/distributions/vectors.py",
        ".eps ** 0.5", ".eps ** 0.4",
        "tests/test_distributions.py",
    ),
    Mutant(
        "dead-draft-reads-a-token", "spectr_lite/distributions/vectors.py",
        ".masked_fill(index < 0, 0.0)", "",
        "tests/test_distributions.py -k dead",
    ),
    Mutant(
        "worst-set-one-short", "spectr_lite/transport/optimum.py",
        "order[: best + 1]", "order[:best]",
        "tests/test_transport.py -k worst_set",
    ),
    Mutant(
        "program-constraint-sense", "spectr_lite/transport/program.py",
        "[sent <= supply, received <= demand]", "[sent <= supply, received >= demand]",
        "tests/test_transport.py -k 'awkward and reduced'",
    ),
    Mutant(
        "program-literal-incomplete", "spectr_lite/transport/program.py",
        "[sent == supply, received == demand] if", "[sent <= supply, received <= demand] if",
        "tests/test_transport.py -k 'awkward and literal'",
    ),
    Mutant(
        "program-completed-twice", "spectr_lite/transport/program.py",
        "np.outer(spare, missing / total)", "np.outer(spare, missing)",
        "tests/test_transport.py -k 'awkward and reduced'",
    ),
    Mutant(
        "program-size-off", "spectr_lite/transport/program.py",
        "math.comb(k - 1, d - 1)", "math.comb(k, d - 1)",
        "tests/test_transport.py -k sizes",
    ),
    Mutant(
        "plan-lower-hull", "spectr_lite/transport/nested.py",
        "vertex = leftward >= rightward", "vertex = leftward <= rightward",
        "tests/test_optimal.py -k 'reference or awkward'",
    ),
    Mutant(
        "plan-heap-lower-hull", "spectr_lite/transport/nested.py",
        "(g[b] - g[a]) * (r[j] - r[b]) > (g[j] - g[b])",
        "(g[b] - g[a]) * (r[j] - r[b]) < (g[j] - g[b])",
        "tests/test_optimal.py -k 'awkward or heap'",
    ),
    Mutant(
        "plan-times-reversed", "spectr_lite/transport/nested.py",
        "return 1 - share[..., :-1]", "return share[..., :-1]",
        "tests/test_optimal.py -k 'awkward or activation'",
    ),
    Mutant(
        "plan-heap-times-reversed", "spectr_lite/transport/nested.py",
        "tau[j] = 1 - now", "tau[j] = now",
        "tests/test_optimal.py -k 'awkward or heap'",
    ),
    Mutant(
        "draw-closed-edges", "spectr_lite/transport/nested.py",
        "active = self.activation.unsqueeze(-2) <= z.unsqueeze(-1)",
        "active = self.activation.unsqueeze(-2) >= z.unsqueeze(-1)",
        f"{LOSSLESS} 'test_select_follows and optimal'",
    ),
    Mutant(
        "bins-share-the-last-class", "spectr_lite/transport/nested.py",
        "inner[..., -1].fill_(classes - 1)", "inner[..., -1].fill_(classes - 2)",
        "tests/test_optimal.py -k special",
    ),
    Mutant(
        "bins-share-the-first-class", "spectr_lite/transport/nested.py",
        "inner[..., 0].fill_(0)", "inner[..., 0].fill_(1)",
        "tests/test_optimal.py -k special",
    ),
    # --- decoding ---
    Mutant(
        "commit-one-too-many", "spectr_lite/decoding/loop.py",
        "torch.minimum((block >= 0).sum(1),", "torch.minimum((block >= 0).sum(1) + 1,",
        "tests/test_decoding.py -k 'turns_account or shown_to_the_rule'",
    ),
    Mutant(
        "move-shifted", "spectr_lite/decoding/loop.py",
        "cache.move(slots + path", "cache.move(slots + 1 + path",
        "tests/test_decoding.py -k 'shown_to_the_rule or greedy'",
    ),
    Mutant(
        "move-of-the-first-path", "spectr_lite/decoding/loop.py",
        "path[:, None] * state.tree.draft_length, slots)", "0 * path[:, None], slots)",
        "tests/test_decoding.py -k 'shown_to_the_rule or greedy'",
    ),
    Mutant(
        "stop-token-goes-on", "spectr_lite/decoding/loop.py",
        "logical_or_(stops.any(1) | (state.length == state.limit))",
        "logical_or_(state.length == state.limit)",
        "tests/test_decoding.py -k stop_token",
    ),
    Mutant(
        "stop-token-block-not-cut", "spectr_lite/decoding/loop.py",
        "kept = torch.where(stops.any(1), stops.to(torch.int8).argmax(1) + 1, kept)", "pass",
        "tests/test_decoding.py -k stop_token",
    ),
    Mutant(
        "stop-token-dropped", "spectr_lite/decoding/loop.py",
        "stops.to(torch.int8).argmax(1) + 1", "stops.to(torch.int8).argmax(1)",
        "tests/test_decoding.py -k stop_token",
    ),
    Mutant(
        "stop-token-behind-the-limit", "spectr_lite/decoding/loop.py",
        " & (column < kept[:, None])", "",
        "tests/test_decoding.py -k stop_token",
    ),
    Mutant(
        "ended-rows-write-on", "spectr_lite/decoding/loop.py",
        "kept = torch.where(state.done, 0, kept)", "pass",
        "tests/test_decoding.py -k stop_token",
    ),
    Mutant(
        "draft-probabilities-stale", "spectr_lite/decoding/loop.py",
        "return draft_probs[depth][rows, path]", "return draft_probs[max(depth - 1, 0)][rows, path]",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "draft-without-temperature", "spectr_lite/decoding/loop.py",
        "probs.append(sampling.probs_or_uniform(logits)[0])", "probs.append(logits.softmax(-1))",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "draft-root-without-temperature", "spectr_lite/decoding/loop.py",
        "sampling.probs_or_uniform(logits[:, -1:])[0]", "logits[:, -1:].softmax(-1)",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "target-node-before", "spectr_lite/decoding/loop.py",
        "path * drafted.shape[2] + depth if depth", "path * drafted.shape[2] + depth - 1 if depth",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "paths-node-before", "spectr_lite/decoding/loop.py",
        "torch.arange(1, probs.shape[1],", "torch.arange(probs.shape[1] - 1,",
        "tests/test_decoding.py -k shown_to_a_rule_for_paths",
    ),
    Mutant(
        "draft-reads-one-token-after-a-bonus", "spectr_lite/decoding/loop.py",
        "torch.arange(-2, 0", "torch.arange(-1, 0",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "prompt-token-blind-to-itself", "spectr_lite/decoding/loop.py",
        "slots, slot <= slots[:, :, None])", "slots, slot < slots[:, :, None])",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "seed-ignored", "spectr_lite/decoding/loop.py",
        "self.random.manual_seed(seed)", "self.random.seed()",
        "tests/test_decoding.py -k one_seed",
    ),
    Mutant(
        "kept-for-emitted", "spectr_lite/decoding/loop.py",
        "[(turn.accepted + 1) * turn.active for", "[turn.kept for",
        "tests/test_decoding.py",
    ),
    Mutant(
        "bonus-after-any-accepted", "spectr_lite/decoding/loop.py",
        '"bonus" if accepted == self.drafted.shape[2]', '"bonus" if accepted > 0',
        "tests/test_decoding.py -k turns_account",
    ),
    Mutant(
        "position-off-by-one", "spectr_lite/decoding/state.py",
        "torch.minimum(root + self.tree.depth_of(node),",
        "torch.minimum(root + 1 + self.tree.depth_of(node),",
        "tests/test_decoding.py -k shown_to_the_rule",
    ),
    Mutant(
        "position-past-the-context", "spectr_lite/decoding/state.py",
        "self.limit[:, None] - 1)", "self.limit[:, None])",
        "tests/test_decoding.py -k context",
    ),
    Mutant(
        "mask-one-slot-too-many", "spectr_lite/decoding/state.py",
        "(held <= node)", "(held <= node + 1)",
        "tests/test_decoding.py -k 'tree_mask or shown_to_the_rule'",
    ),
    Mutant(
        "mask-sees-the-path-before", "spectr_lite/decoding/state.py",
        "first = node - self.depth_of(node) + 1", "first = node - self.depth_of(node)",
        "tests/test_decoding.py -k 'tree_mask or shown_to_the_rule'",
    ),
    Mutant(
        "text-keeps-earlier-stop-tokens", "spectr_lite/decoding/state.py",
        "self.stops.zero_()", "pass",
        "tests/test_graphs.py -k forgets",
    ),
    Mutant(
        "buffers-without-room-for-drafts", "spectr_lite/decoding/state.py",
        "capacity + self.tree.size - 1 <= self.slots", "capacity <= self.slots",
        "tests/test_graphs.py -k another_shape",
    ),
    Mutant(
        "text-ended-before-it-began", "spectr_lite/decoding/state.py",
        "self.done.zero_()", "pass",
        "tests/test_graphs.py -k forgets",
    ),
    Mutant(
        "top-p-edge", "spectr_lite/decoding/sampling.py",
        "<= 1 - self.top_p", "< 1 - self.top_p",
        "tests/test_sampling.py -k 'transformers or ties'",
    ),
    Mutant(
        "top-p-may-keep-nothing", "spectr_lite/decoding/sampling.py",
        "dropped[..., -1].fill_(False)", "pass",
        "tests/test_sampling.py -k 'transformers or ties'",
    ),
    Mutant(
        "top-k-off-by-one", "spectr_lite/decoding/sampling.py",
        "logits.topk(self.top_k)", "logits.topk(self.top_k + 1)",
        "tests/test_sampling.py -k 'transformers or ties'",
    ),
    Mutant(
        "temperature-inverted", "spectr_lite/decoding/sampling.py",
        "logits = logits / min(max(", "logits = logits * min(max(",
        "tests/test_sampling.py -k 'transformers or ties'",
    ),
    Mutant(
        "temperature-overflows", "spectr_lite/decoding/sampling.py",
        "if self.temperature < 1:", "if self.temperature < 0:",
        "tests/test_sampling.py -k tiny",
    ),
    Mutant(
        "float32-softmax-as-it-is", "spectr_lite/decoding/sampling.py",
        "probs.div_(probs.sum(-1, keepdim=True))", "probs",
        "tests/test_sampling.py -k precise",
    ),
    Mutant(
        "greedy-over-nan", "spectr_lite/decoding/sampling.py",
        "others = best - best", "others = torch.zeros_like(best)",
        "tests/test_sampling.py -k told_apart",
    ),
    Mutant(
        "nan-stays", "spectr_lite/decoding/sampling.py",
        "probs.nan_to_num_(1 / probs.shape[-1])", "probs",
        "tests/test_decoding_no_distribution.py -k 'whatever_the_draft or behind_the_end'",
    ),
    Mutant(
        "nan-becomes-zero", "spectr_lite/decoding/sampling.py",
        "probs.nan_to_num_(1 / probs.shape[-1])", "probs.nan_to_num_(0)",
        "tests/test_decoding_no_distribution.py -k 'whatever_the_draft or finished_block'",
    ),
    Mutant(
        "target-without-a-distribution-unseen", "spectr_lite/decoding/loop.py",
        "return block.masked_fill(missing.cumsum(1) > 0, -1)", "return block",
        "tests/test_decoding_no_distribution.py -k 'up_to_where or named'",
    ),
    Mutant(
        "target-missing-only-at-its-own-place", "spectr_lite/decoding/loop.py",
        "missing.cumsum(1) > 0", "missing",
        "tests/test_decoding_no_distribution.py -k up_to_where",
    ),
    Mutant(
        "target-missing-on-another-path", "spectr_lite/decoding/loop.py",
        "missing.gather(1, nodes[block.path])", "missing.gather(1, nodes[0 * block.path])",
        "tests/test_decoding_no_distribution.py -k up_to_where",
    ),
    Mutant(
        "ended-rows-are-stuck", "spectr_lite/decoding/loop.py",
        "(kept == 0) & (done == 0)", "(kept == 0)",
        "tests/test_decoding_no_distribution.py -k nobody",
    ),
    Mutant(
        "buffers-keep-nan", "spectr_lite/decoding/loop.py",
        "self.state = None  # its caches may hold NaN", "pass  # its caches may hold NaN",
        "tests/test_decoding_no_distribution.py -k writes_on",
    ),
    Mutant(
        "enumeration-copies-counted-once", "spectr_lite/decoding/enumeration.py",
        "copies = (drafted[:, :, None] == vocabulary).sum(1)",
        "copies = (drafted[:, :, None] == vocabulary).any(1).long()",
        "tests/test_decoding_exact.py -k 'without_context or literal'",
    ),
    # --- models ---
    Mutant(
        "joined-rows-unchecked", "spectr_lite/models/transformer.py",
        "if part.shape != shape:", "if not len(part):",
        "tests/test_transformer.py -k do_not_fit",
    ),
    Mutant(
        "prompt-makes-logits", "spectr_lite/decoding/loop.py",
        'fill = getattr(model, "fill", model)', "fill = model",
        "tests/test_reading.py -k costs_no_head",
    ),
    Mutant(
        "overflow-not-looked-for", "spectr_lite/models/weights.py",
        "with register_module_forward_hook(check_layer)",
        "with register_module_forward_hook(lambda *_: None)",
        "tests/test_smollm2.py -k float16_cannot_hold",
    ),
    Mutant(
        "cudnn-may-attend", "spectr_lite/models/interface.py",
        "ATTENTION = [", "ATTENTION = [SDPBackend.CUDNN_ATTENTION, ",
        "tests/test_reading.py -k cudnn",
    ),
    # --- transformers' generate ---
    Mutant(
        "hf-padding-is-text", "spectr_lite/huggingface/generate.py",
        "[row[seen].tolist()", "[row.tolist()",
        "tests/test_hf.py -k 'greedy_text_under or no_draft_model'",
    ),
    Mutant(
        "hf-end-token-ignored", "spectr_lite/huggingface/generate.py",
        "if 0 <= i < target.vocab_size", "if i < 0",
        "tests/test_generate_contract.py -k behind_an_end",
    ),
    Mutant(
        "hf-one-token-too-few", "spectr_lite/huggingface/generate.py",
        "length = max(longest - input_ids.shape[1], 1)",
        "length = max(longest - input_ids.shape[1] - 1, 1)",
        "tests/test_hf.py -k 'greedy_text_under or no_draft_model'",
    ),
    Mutant(
        "hf-ended-row-written-on", "spectr_lite/huggingface/outputs.py",
        "(unfinished | (not ends))", "(unfinished | True)",
        "tests/test_hf.py -k stop",
    ),
    Mutant(
        "hf-stopped-row-padded-without-an-end", "spectr_lite/huggingface/outputs.py",
        "(unfinished | (not ends))", "unfinished",
        "tests/test_hf.py -k stop",
    ),
    Mutant(
        "hf-criteria-not-asked", "spectr_lite/huggingface/outputs.py",
        "unfinished &= ~criteria(", "unfinished &= ~type(criteria)(criteria[:2])(",
        "tests/test_hf.py -k stopping_criteria",
    ),
    Mutant(
        "hf-accepted-one-deeper", "spectr_lite/huggingface/outputs.py",
        "t.accepted[:, None] > depth", "t.accepted[:, None] >= depth + 2",
        "tests/test_generate_contract.py -k counts",
    ),
    Mutant(
        "hf-asked-behind-the-limit", "spectr_lite/huggingface/processors.py",
        "range(min(int(count.max()) + 1, self.max_new_tokens))", "range(int(count.max()) + 1)",
        "tests/test_generate_contract.py -k 'nothing_behind'",
    ),
    Mutant(
        "hf-asked-behind-the-end", "spectr_lite/huggingface/processors.py",
        "torch.isin(tokens, self.end_tokens))", "torch.zeros_like(tokens, dtype=torch.bool))",
        "tests/test_generate_contract.py -k 'nothing_behind'",
    ),
    Mutant(
        "hf-derived-warpers-trusted", "spectr_lite/huggingface/processors.py",
        "not {type(processor) for processor in processors} <= SCORES_ALONE",
        "not all(isinstance(processor, tuple(SCORES_ALONE)) for processor in processors)",
        "tests/test_generate_contract.py -k derived",
    ),
    Mutant(
        "hf-processor-reads-backwards", "spectr_lite/huggingface/processors.py",
        "cache.tokens.gather(1, order)", "cache.tokens.gather(1, order.flip(1))",
        "tests/test_hf.py -k 'greedy_text_under or sampled'",
    ),
    Mutant(
        "hf-processor-misses-a-token", "spectr_lite/huggingface/processors.py",
        "(slot >= self.prompt_length[:, None])", "(slot > self.prompt_length[:, None])",
        "tests/test_hf.py -k 'greedy_text_under or sampled'",
    ),
    Mutant(
        "hf-processor-reads-refused-drafts", "spectr_lite/huggingface/processors.py",
        "self.tokens.scatter_(1, destination, self.tokens.gather(1, source))", "pass",
        "tests/test_generate_contract.py -k asked",
    ),
    Mutant(
        "hf-text-of-another-node", "spectr_lite/huggingface/processors.py",
        "seen = new[row, node]", "seen = new[row, node * 0]",
        "tests/test_hf.py -k 'greedy_text_under or sampled'",
    ),
    Mutant(
        "hf-window-unread", "spectr_lite/huggingface/causal_lm.py",
        '"window_size", "attention', '"attention',
        "tests/test_architectures.py -k gpt_neo",
    ),
    Mutant(
        "hf-always-samples", "spectr_lite/huggingface/generate.py",
        "temperature=1.0 if generation_config.do_sample else 0,", "temperature=1.0,",
        "tests/test_hf.py -k 'no_draft_model'",
    ),
    Mutant(
        "hf-seed-ignored", "spectr_lite/huggingface/generate.py",
        "generator=int(torch.randint(2**62, ())),", "generator=None,",
        "tests/test_hf.py -k seed",
    ),
    Mutant(
        "hf-any-model-reads-a-tree", "spectr_lite/huggingface/causal_lm.py",
        "right = wrong <= torch.finfo(model.dtype).eps ** 0.5", "right = True",
        "tests/test_hf.py -k ignores_the_mask",
    ),
    # --- statistics ---
    Mutant(
        "interval-of-90-percent", "spectr_lite/stats.py",
        "stats.t.ppf(0.975,", "stats.t.ppf(0.95,",
        "tests/test_stats.py",
    ),
    Mutant(
        "interval-normal", "spectr_lite/stats.py",
        "stats.t.ppf(0.975, values.size - 1)", "stats.norm.ppf(0.975)",
        "tests/test_stats.py",
    ),
    Mutant(
        "interval-degrees", "spectr_lite/stats.py",
        "stats.t.ppf(0.975, values.size - 1)", "stats.t.ppf(0.975, values.size)",
        "tests/test_stats.py",
    ),
    Mutant(
        "interval-ddof", "spectr_lite/stats.py",
        "stats.sem(values)", "stats.sem(values, ddof=0)",
        "tests/test_stats.py",
    ),
    Mutant(
        "ratio-influence-scale", "spectr_lite/stats.py",
        "/ below.mean()", "/ below",
        "tests/test_stats.py tests/test_reproduce.py -k ratio",
    ),
    Mutant(
        "chi-square-degrees", "spectr_lite/stats.py",
        "degrees = expected.size - 1", "degrees = expected.size",
        "tests/test_stats.py",
    ),
    Mutant(
        "chi-square-divides-by-the-counts", "spectr_lite/stats.py",
        "** 2 / expected)", "** 2 / observed)",
        "tests/test_stats.py",
    ),
    Mutant(
        "chi-square-pool-too-small", "spectr_lite/stats.py",
        "small += 1", "small += 0",
        "tests/test_stats.py",
    ),
    Mutant(
        "chi-square-impossible-count", "spectr_lite/stats.py",
        "if observed[probs == 0].any():", "if False:",
        "tests/test_stats.py",
    ),
    # --- sizes ---
    Mutant(
        "memory-without-the-mask", "spectr_lite/decoding/state.py",
        "5 * batch * tree.size * slots", "0",
        "tests/test_memory.py",
    ),
    Mutant(
        "memory-of-a-cpu-is-endless", "spectr_lite/decoding/state.py",
        '1024 * (sizes["MemAvailable"]', '2**40 * (sizes["MemAvailable"]',
        "tests/test_memory.py",
    ),
    # --- check ---
    Mutant(
        "check-coarse-tolerance", "spectr_lite/check/verdict.py",
        "EXACT_TOLERANCE = 1e-9", "EXACT_TOLERANCE = 1e-4",
        "tests/test_check.py -k slight",
    ),
    Mutant(
        "check-one-token-not-corrected", "spectr_lite/check/verdict.py",
        "single.min() * counts.size", "single.min()",
        "tests/test_check.py -k 'false_alarm or rare'",
    ),
    Mutant(
        "check-sets-not-corrected", "spectr_lite/check/verdict.py",
        "tails.min() * tails.size", "tails.min()",
        "tests/test_check.py -k share",
    ),
    Mutant(
        "check-tests-not-corrected", "spectr_lite/check/verdict.py",
        "p_value = min(1.0, tests * min(against))", "p_value = min(1.0, min(against))",
        "tests/test_check.py -k share",
    ),
    Mutant(
        "check-sum-of-binomials-taken-for-one", "spectr_lite/check/verdict.py",
        "    if len(counts) > 1:\n", "    if len(counts) > 999:\n",
        "tests/test_check.py -k different_masses",
    ),
    Mutant(
        "check-samples-need-not-fit", "spectr_lite/check/verdict.py",
        'answer="biased" if seen or wrong', 'answer="biased" if wrong',
        "tests/test_check.py -k slip",
    ),
    Mutant(
        "check-agreement-ignored", "spectr_lite/check/verdict.py",
        "seen = min(p_value, 1.0 if agreement is None else agreement)", "seen = p_value",
        "tests/test_check.py -k slip",
    ),
    Mutant(
        "check-merged-pair-not-asked", "spectr_lite/check/verdict.py",
        "for known in (error, merged))", "for known in (error,))",
        "tests/test_check.py -k every_wrong_rule",
    ),
    Mutant(
        "check-claim-taken-for-proof", "spectr_lite/check/verdict.py",
        "proven = error is not None and rule.gives_laws", "proven = error is not None",
        "tests/test_check.py -k speaks_torch",
    ),
    Mutant(
        "check-laws-not-bet-on", "spectr_lite/check/verdict.py",
        "against.append(betting_p_value(said, means, EXACT_TOLERANCE))", "against.append(1.0)",
        "tests/test_check.py -k only_at_size",
    ),
    Mutant(
        "binomial-tail-without-the-count", "spectr_lite/stats.py",
        "stats.binom.sf(counts - 1, n, probs)", "stats.binom.sf(counts, n, probs)",
        "tests/test_stats.py -k binomial",
    ),
    Mutant(
        "bets-of-the-best-share-alone", "spectr_lite/stats.py",
        "np.log(log_factors.size) - special.logsumexp(log_factors)", "-np.max(log_factors)",
        "tests/test_stats.py -k 'bets or bayes'",
    ),
    Mutant(
        "unseen-error-of-half-the-level", "spectr_lite/stats.py",
        "stats.binom.isf(level / 2, n, p) + 1", "stats.binom.isf(level / 2, n, p)",
        "tests/test_stats.py -k unseen",
    ),
    Mutant(
        "masked-entries-read", "spectr_lite/distributions/vectors.py",
        'raise TypeError("masked entries have no value")', "pass",
        "tests/test_distributions.py -k no_array",
    ),
    Mutant(
        "overflowing-ratio-never-drafted", "spectr_lite/distributions/drafting.py",
        "(target / draft).clamp_max(largest)", "(target / draft)",
        "tests/test_drafting.py -k '1e_3'",
    ),
    Mutant(
        "check-pairs-poured-together", "spectr_lite/check/verdict.py",
        "counts[row] +=", "counts[0] +=",
        "tests/test_check.py -k several_pairs",
    ),
    Mutant(
        "check-over-and-under-swapped", "spectr_lite/check/verdict.py",
        "if share.produced > share.target]", "if share.produced < share.target]",
        "tests/test_check.py -k strangers_are_judged",
    ),
    Mutant(
        "table-optimum-of-independent-drafts", "spectr_lite/check/table.py",
        "pairs.draft, pairs.target, k, drafting=rule.drafting)", "pairs.draft, pairs.target, k)",
        "tests/test_check.py -k 'own_draft_distribution or rows_hold'",
    ),
    Mutant(
        "table-mean-error", "spectr_lite/check/table.py",
        ".sum(-1).max() / 2)", ".sum(-1).mean() / 2)",
        "tests/test_check.py -k several_pairs",
    ),
]  # fmt: skip


# --- running them ---------------------------------------------------------------------------------


def tracked(root: Path) -> list[str]:
    """The files of the checkout, new ones too, without what git ignores."""
    listed = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0")
    return [name for name in names if name and (root / name).is_file()]


def copy_checkout(root: Path, to: Path) -> None:
    for name in tracked(root):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, to / name)


def start(mutant: Mutant, copy: Path) -> int:
    """Puts the mutant into the copy and begins its tests in a fork, which need not import torch
    again; the fork's process id."""
    (copy / mutant.file).write_text(mutant.text(copy), encoding="utf-8")
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(copy)
    output = os.open(copy.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Without bytecode: two files of one size within a second would be taken for one another.
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    here = {"", str(ROOT), str(ROOT / "tests")}
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in here)]
    words = ["-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
    status = 3
    try:
        status = int(pytest.main(words))
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(mutants: Sequence[Mutant], jobs: int) -> dict[str, bool]:
    """For each mutant whether it lived, printed as it is found; a mutant without tests is left out."""
    for name in SHARED:
        importlib.import_module(name)
    lived: dict[str, bool] = {}
    waiting = list(reversed(mutants))
    running: dict[int, tuple[Mutant, Path, bytes, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / str(number) for number in range(jobs)]
        for copy in copies:
            copy_checkout(ROOT, copy)
        try:
            while waiting or running:
                while waiting and copies:
                    mutant, copy = waiting.pop(), copies.pop()
                    before = (copy / mutant.file).read_bytes()
                    running[start(mutant, copy)] = mutant, copy, before, time.monotonic()
                time.sleep(0.05)
                for pid, (mutant, copy, before, begun) in list(running.items()):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    seconds = time.monotonic() - begun
                    if not ended and seconds < MOST_SECONDS:
                        continue
                    if not ended:
                        os.killpg(pid, signal.SIGKILL)
                        os.waitpid(pid, 0)
                    del running[pid]
                    code = os.waitstatus_to_exitcode(status) if ended else 1
                    if code in (0, 1, 2):  # passed; failed, or hung; an error at import
                        lived[mutant.name] = code == 0
                        word = "LIVED " if code == 0 else "caught"
                        word = f"{word} (known)" if mutant.known else word
                        print(f"{word}  {mutant.name}  {seconds:.0f} s", flush=True)
                    else:
                        output = copy.with_suffix(".txt").read_text(encoding="utf-8")
                        print(f"{mutant.name}: no test ran: {mutant.tests}\n{output}", flush=True)
                    (copy / mutant.file).write_bytes(before)
                    copies.append(copy)
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)
    return lived


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutants or rooms; all if none")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    options = parser.parse_args(words)
    everything = [*MUTANTS, *EXPERIMENTS]
    chosen = [m for m in everything if not options.names or {m.name, m.room} & {*options.names}]
    unknown = {*options.names} - {word for m in everything for word in (m.name, m.room)}
    if unknown:
        parser.error(f"no mutant or room named {', '.join(sorted(unknown))}")
    try:
        for mutant in chosen:
            mutant.text(ROOT)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    start = time.monotonic()
    lived = run(chosen, options.jobs)
    print()
    for room in dict.fromkeys(mutant.room for mutant in chosen):
        names = [mutant.name for mutant in chosen if mutant.room == room]
        caught = sum(lived.get(name) is False for name in names)
        print(f"{room:20} {caught:3} of {len(names):3} caught", *(n for n in names if lived.get(n)))
    print(f"{len(chosen)} mutants in {(time.monotonic() - start) / 60:.1f} minutes")
    if len(lived) < len(chosen):
        return 2
    return int(any(lived[m.name] and not m.known for m in chosen))


# --- experiments: kept apart, for their code moves most -------------------------------------------

EXPERIMENTS = [
    Mutant(
        "records-resumed-batch-again", "spectr_experiments/table1.py",
        'fresh = [r for r in made if (r["cell"], r["seed"], r["prompt"]) not in done]',
        "fresh = made",
        "tests/test_reproduce.py -k resumed_batch",
    ),
    Mutant(
        "records-seed-ignored", "spectr_experiments/table1.py",
        "generator=seed * 1_000_000 + rows.start", "generator=rows.start",
        "tests/test_reproduce.py -k seeds",
    ),
    Mutant(
        "summary-seeds-as-prompts", "spectr_experiments/table1.py",
        'sums[record["prompt"]] = sums.get(record["prompt"], 0) + counts',
        'sums[record["prompt"], record["seed"]] = counts',
        "tests/test_reproduce.py -k independent_units",
    ),
    Mutant(
        "summary-gain-sign", "spectr_experiments/table1.py",
        "[v - other[p] for", "[other[p] - v for",
        "tests/test_reproduce.py -k phases_add",
    ),
    Mutant(
        "summary-cost-inverted", "spectr_experiments/table1.py",
        "[mine[n] / other[n] for n", "[other[n] / mine[n] for n",
        "tests/test_reproduce.py -k cost_is",
    ),
    Mutant(
        "speed-degrees-of-one-factor", "spectr_experiments/speeds.py",
        "spent = sum(p**2 / e.degrees", "spent = sum(p / e.degrees",
        "tests/test_speeds.py -k welchs",
    ),
    Mutant(
        "speed-from-the-busiest-session", "spectr_experiments/speeds.py",
        "return min(found, key=lambda s: s.load[0]", "return max(found, key=lambda s: s.load[0]",
        "tests/test_speeds.py -k quietest",
    ),
    Mutant(
        "speed-without-the-error-of-its-tokens", "spectr_experiments/speeds.py",
        "return tokens.over(cost[0]) if tokens and cost else None",
        "return Estimate(tokens.value, 0.0, 9).over(cost[0]) if tokens and cost else None",
        "tests/test_speeds.py -k quietest",
    ),
    Mutant(
        "rounds-order-fixed", "spectr_experiments/records.py",
        "shift = number % len(cells)", "shift = 0",
        "tests/test_records.py -k rounds",
    ),
    Mutant(
        "rounds-warm-up-recorded", "spectr_experiments/records.py",
        "        for _, turn in cells * (warm_up if left else 0):\n            turn(0)\n",
        "        for cell, turn in cells * (warm_up if left else 0):\n"
        '            self.append(kind, 0, [{**cell, "round": 0, **turn(0)}])\n'
        '            done.add(place({**cell, "round": 0}, self.keys[kind]))\n',
        "tests/test_records.py -k rounds",
    ),
    Mutant(
        "rounds-recorded-again", "spectr_experiments/records.py",
        "if missing(cell, number):", "if True:",
        "tests/test_records.py -k rounds",
    ),
    Mutant(
        "merge-keeps-duplicates", "spectr_experiments/records.py",
        "found.setdefault(where, record) != record",
        "found.setdefault((*where, len(found)), record) != record",
        "tests/test_records.py -k parts_merge",
    ),
    Mutant(
        "merge-takes-the-first-of-two", "spectr_experiments/records.py",
        "found.setdefault(where, record) != record", "found.setdefault(where, record) is None",
        "tests/test_records.py -k parts_merge",
    ),
    Mutant(
        "merge-unsorted", "spectr_experiments/records.py",
        "return sorted(merge(parts, self.keys[kind]), key=lambda r: place(r, self.keys[kind]))",
        "return merge(parts, self.keys[kind])",
        "tests/test_records.py -k parts_merge",
    ),
    Mutant(
        "unfinished-line-kept", "spectr_experiments/records.py",
        "os.truncate(path, path.stat().st_size - rest)", "pass",
        "tests/test_records.py -k unfinished",
    ),
    Mutant(
        "settings-may-change", "spectr_experiments/records.py",
        "        if changed:\n", "        if False:\n",
        "tests/test_records.py -k gone_on_with",
    ),
    Mutant(
        "dirty-for-any-file", "spectr_experiments/records.py",
        '"--porcelain", "--", *sources)', '"--porcelain")',
        "tests/test_records.py -k dirty",
    ),
    Mutant(
        "time-is-never-up", "spectr_experiments/records.py",
        "turn - began + longest > seconds", "False",
        "tests/test_records.py -k in_time",
    ),
    Mutant(
        "time-warm-up-is-free", "spectr_experiments/records.py",
        "seconds -= time.monotonic() - began", "pass",
        "tests/test_records.py -k warm_up",
    ),
    Mutant(
        "time-may-leave-no-round", "spectr_experiments/records.py",
        "max(least, 1), bar)", "least, bar)",
        "tests/test_records.py -k warm_up",
    ),
    Mutant(
        "time-said-from-the-last-round-on", "spectr_experiments/records.py",
        "fit = min(len(items), ", "fit = (len(items), ",
        "tests/test_records.py -k allows",
    ),
    Mutant(
        "fill-records-again", "spectr_experiments/records.py",
        "fresh = [r for r in make(unit) if place(r, key) not in done]", "fresh = make(unit)",
        "tests/test_records.py -k fill",
    ),
    Mutant(
        "damaged-file-not-named", "spectr_experiments/records.py",
        "object_hook=fields", "object_hook=Fields",
        "tests/test_experiments.py -k damaged",
    ),
    Mutant(
        "draft-laws-softmax-before-temperature", "spectr_experiments/table1.py",
        ".cpu().double() / temperature)", ".cpu().double().softmax(-1) / temperature)",
        "tests/test_reproduce.py -k laws_of_a_place",
    ),
    Mutant(
        "records-ended-row-counts-on", "spectr_experiments/table1.py",
        "emitted + (turn.accepted + 1) * turn.active", "emitted + turn.accepted + 1",
        "tests/test_reproduce.py -k ended_row",
    ),
    Mutant(
        "cells-said-twice", "spectr_experiments/table1.py",
        "cells = [*dict.fromkeys(map(Cell.parse, args.cell))]",
        "cells = [*map(Cell.parse, args.cell)]",
        "tests/test_experiments.py -k one_cell",
    ),
    Mutant(
        "cells-of-any-size", "spectr_experiments/table1.py",
        "sum(held.values()) > free:", "False:",
        "tests/test_reproduce.py -k batches",
    ),
    Mutant(
        "colab-weights-fill-the-card", "spectr_experiments/colab.py",
        "pair.weights <= free / 2", "pair.weights <= free",
        "tests/test_colab.py -k half",
    ),
    Mutant(
        "colab-smallest-cell-left-out", "spectr_experiments/colab.py",
        "lost = cells.pop()", "lost = cells.pop(0)",
        "tests/test_colab.py -k without_memory",
    ),
    Mutant(
        "map-first-token-twice", "spectr_experiments/decision.py",
        "fixed=1 - score,", "fixed=1,",
        "tests/test_decision.py -k cost_of_a_turn",
    ),
    Mutant(
        "map-slope-over-all-tokens", "spectr_experiments/decision.py",
        "/ (READ - 1)", "/ READ",
        "tests/test_decision.py -k place",
    ),
    # --- how commands end ---
    Mutant(
        "ending-bugs-in-one-line", "spectr_lite/commands/ending.py",
        'error.__cause__ is not None or "memory" in str(error)', "True",
        "tests/test_arguments.py -k bug",
    ),
    Mutant(
        "ending-stopped-is-bad-input", "spectr_lite/commands/ending.py",
        "return EXIT_STOPPED", "return EXIT_BAD_INPUT",
        "tests/test_arguments.py -k ctrl_c",
    ),
    Mutant(
        "argument-not-a-number", "spectr_lite/commands/arguments.py",
        "number > 0 and math.isfinite(number)", "number >= 0 or math.isnan(number)",
        "tests/test_arguments.py -k minutes",
    ),
    Mutant(
        "argument-paths-are-names", "spectr_lite/commands/arguments.py",
        "re.fullmatch(", "re.match(",
        "tests/test_arguments.py -k training_refuses",
    ),
]  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
