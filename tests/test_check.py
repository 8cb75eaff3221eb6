"""The two questions of `spectr_lite.check`, asked of good rules, bad rules and strangers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from scipy import stats
from verdict_power import DRAWS_ONLY, RIGHT, WRONG, judge
from wrong_variants import KNOWN_BIAS, OfTwoMore

from spectr_lite import check, verifiers
from spectr_lite import distributions as D
from spectr_lite.check import compare, lossless, token_rules
from spectr_lite.check.verdict import _p_values
from spectr_lite.transport import optimal_acceptance
from spectr_lite.verifiers import Verifier
from spectr_lite.verifiers.kseq import KSeq, optimal_rho

# --- strangers: classes that know nothing of this package ---


class TargetSampler:
    """Lossless: draws from the target and looks at nothing."""

    def acceptance(self, draft, target, k):
        return (target * (1 - (1 - draft) ** k)).sum()

    def select(self, draft, target, tokens, generator):
        assert isinstance(draft, np.ndarray)
        assert isinstance(tokens, np.ndarray)
        return generator.choice(len(target), size=len(tokens), p=target)


class KeepFirst:
    """Biased: always keeps the first draft."""

    name = "keep first"

    def acceptance(self, draft, target, k):
        return 1.0

    def select(self, draft, target, tokens, generator):
        return tokens[:, 0]


class TorchSampler:
    """Lossless, and speaks torch; says what it thinks its distribution is."""

    def acceptance(self, draft, target, k):
        return (target * (1 - (1 - draft) ** k)).sum()

    def select(self, draft, target, tokens, generator):
        assert isinstance(draft, torch.Tensor)
        token = D.sample(target, generator, count=len(tokens))
        return verifiers.Selection(token, (tokens == token[:, None]).any(-1))

    def output_distribution(self, draft, target, k):
        return target


class Boaster(KeepFirst):
    """Biased, and claims it is not."""

    def output_distribution(self, draft, target, k):
        return target


class TwoFaced(KSeq):
    """Exact by enumeration; its `_select` forgets the residual."""

    def _select(self, draft, target, tokens, generator):
        chosen = super()._select(draft, target, tokens, generator)
        return torch.where((tokens == chosen[..., None]).any(-1), chosen, tokens[..., 0])


class RareToken(Verifier):
    """Says one rare token in a thousand times; the target says it once in a billion."""

    def _given_drafts(self, draft, target, tokens):
        probs = target.expand(*tokens.shape[:-1], -1) * 0.999
        return probs + 0.001 * (torch.arange(probs.shape[-1]) == 1)


# --- the table ---


def test_rows_hold_what_the_rules_say():
    draft, target = D.five_tokens()
    table = compare(draft, target, ks=(1, 2), verifiers=["kseq", "optimal"])
    assert [(row.verifier, row.k) for row in table.rows] == [
        ("kseq", 1),
        ("kseq", 2),
        ("optimal", 1),
        ("optimal", 2),
    ]
    for row in table.rows:
        rule = verifiers.get(row.verifier)
        assert row.acceptance == pytest.approx(rule.acceptance(draft, target, row.k))
        assert row.optimum == pytest.approx(optimal_acceptance(draft, target, row.k))
        assert row.gap == pytest.approx(row.optimum - row.acceptance, abs=1e-15)
        assert row.ratio == pytest.approx(row.acceptance / row.optimum)
        assert row.total_variation < 1e-12


def test_rules_are_compared_with_the_optimum_of_their_own_draft_distribution():
    draft, target = D.five_tokens()
    table = compare(draft, target, ks=(2,), verifiers=["recursive-wor", "spechub"])
    for row in table.rows:
        probs = verifiers.get(row.verifier).default_drafting
        assert row.optimum == pytest.approx(optimal_acceptance(draft, target, 2, drafting=probs))


def test_every_token_rule_is_listed_unless_some_are_asked_for():
    rows = compare(*D.three_tokens(), ks=(1, 2)).rows
    assert {row.verifier for row in rows} == set(token_rules())
    assert not {"block", "traversal"} & set(token_rules())
    assert ("coupling", 2) not in {(row.verifier, row.k) for row in rows}
    assert all(row.total_variation < 1e-12 for row in rows)
    assert all(row.gap > -1e-12 for row in rows)


def test_names_instances_classes_and_strangers():
    rows = compare(
        *D.five_tokens(),
        ks=[2],
        verifiers=["kseq", KSeq(rho=2.0), KSeq, TargetSampler, KeepFirst()],
    ).rows
    assert [row.verifier for row in rows] == [
        "kseq", "kseq", "kseq", "TargetSampler", "keep first",
    ]  # fmt: skip
    assert rows[0] == rows[2]
    assert rows[1].acceptance < rows[0].acceptance
    assert rows[3].total_variation is None
    assert rows[4].gap < 0
    assert compare(*D.five_tokens(), ks=2, verifiers="kseq").rows == rows[:1]


def test_a_distribution_too_large_is_a_dash():
    table = compare(*D.zipf(3_000), ks=(2,), verifiers=["kseq", "recursive-wor"])
    assert [row.total_variation for row in table.rows] == [None, None]
    assert table.rows[0].acceptance is not None
    assert table.rows[1].acceptance is None  # no closed form, and too large to enumerate
    assert table.rows[1].gap is table.rows[1].ratio is None
    optimum = f"{table.rows[1].optimum:.6f}"
    assert str(table).splitlines()[-1].split() == f"recursive-wor 2 – {optimum} – – –".split()


def test_several_pairs_give_means():
    rows = [D.dirichlet(4, seed=seed) for seed in range(3)]
    draft, target = (np.stack(side) for side in zip(*rows, strict=True))
    table = compare(draft, target, ks=(2,), verifiers=["kseq", TargetSampler])
    assert table.pairs == 3
    assert "means over 3 pairs, and the largest TV" in str(table)
    for index, rule in enumerate(("kseq", TargetSampler)):
        single = [compare(p, q, ks=(2,), verifiers=[rule]).rows[0] for p, q in rows]
        for field in ("acceptance", "optimum", "gap"):
            expected = np.mean([getattr(row, field) for row in single])
            assert getattr(table.rows[index], field) == pytest.approx(expected)


def test_the_error_of_several_pairs_is_the_largest():
    draft, target = D.five_tokens()
    rule, k, bias = next(known for known in KNOWN_BIAS if known[1] == 3)
    both = np.stack([(draft + target) / 2, draft]), np.stack([target, target])
    (row,) = compare(*both, ks=(k,), verifiers=[rule]).rows
    assert row.total_variation == pytest.approx(bias, abs=6e-5)


def test_nothing_in_common_is_no_division_by_zero():
    disjoint = np.array([[1.0, 0.0], [0.0, 1.0]])
    row = compare(disjoint[0], disjoint[1], ks=(2,), verifiers=["kseq"]).rows[0]
    assert (row.acceptance, row.optimum, row.gap, row.ratio) == (0, 0, 0, 1)


def test_the_table_as_text():
    text = str(compare(*D.kseq_worst_case(), ks=(2,), verifiers=["kseq"]))
    lines = text.splitlines()
    assert lines[0] == "P(Y in S) against the optimum, V = 2"
    assert lines[2].split("  ")[0] == "verifier"
    assert re.split(r"\s{2,}", lines[4])[:6] == [
        "kseq", "2", "0.888889", "1.000000", "0.111111", "0.888889",
    ]  # fmt: skip


def test_the_table_as_html():
    class Hostile(KeepFirst):
        name = "<b>"

    page = compare(*D.five_tokens(), ks=(2,), verifiers=["kseq", Hostile])._repr_html_()
    assert page.count("<caption>") == 1
    assert page.count('<th scope="col">') == 7
    assert page.count('<th scope="row">') == 2
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "style" not in page


def test_the_table_as_json():
    table = compare(*D.five_tokens(), ks=(2,), verifiers=["kseq", KeepFirst])
    found = json.loads(table.to_json())
    assert found["pairs"] == 1
    assert found["vocabulary"] == 5
    assert found["rows"][0]["verifier"] == "kseq"
    assert found["rows"][0]["acceptance"] == table.rows[0].acceptance
    assert found["rows"][1]["total_variation"] is None


# --- the verdict ---


@pytest.mark.parametrize("name", verifiers.names())
def test_every_registered_rule_is_found_lossless(name):
    k = next(k for k in (3, 2, 1) if check.is_defined(name, k))
    verdict = lossless(name, *D.five_tokens(), k, samples=20_000, generator=0)
    assert verdict.lossless, str(verdict)
    assert verdict.total_variation < 1e-12
    assert verdict.p_value > verdict.false_alarm
    assert verdict.agreement > verdict.false_alarm
    assert verdict.over == verdict.under == ()
    assert verdict.acceptance == pytest.approx(verdict.sampled_acceptance, abs=0.02)
    assert verdict.answer == "exact"
    assert not verdict.biased
    assert f"{name}, k={k}: lossless, enumerated" in str(verdict)


@pytest.mark.parametrize(("variant", "k", "bias"), KNOWN_BIAS)
def test_wrong_variants_are_flagged_by_samples_alone_too(variant, k, bias, monkeypatch):
    draft, target = D.five_tokens()
    verdict = lossless(variant, draft, target, k, generator=0)
    assert verdict.biased
    assert verdict.total_variation == pytest.approx(bias, abs=6e-5)
    assert verdict.p_value < verdict.false_alarm
    assert verdict.agreement > verdict.false_alarm
    monkeypatch.setattr("spectr_lite.check.table.EXACT_LIMIT", 0)
    verdict = lossless(variant, draft, target, k, generator=1)
    assert verdict.answer == "biased"
    assert verdict.total_variation is verdict.merged is None
    assert verdict.p_value < verdict.false_alarm < verdict.agreement
    assert verdict.sampled == pytest.approx(bias, abs=4 * verdict.noise)
    probs = variant().output_distribution(draft, target, k)
    worst = int(np.abs(probs - target).argmax())
    assert worst == (verdict.over if probs[worst] > target[worst] else verdict.under)[0].token
    for error in verdict.over:
        assert probs[error.token] > target[error.token]
    for error in verdict.under:
        assert probs[error.token] < target[error.token]


def test_strangers_are_judged_too():
    draft, target = D.five_tokens()
    verdict = lossless(TargetSampler, draft, target, 3, samples=50_000, generator=0)
    assert verdict.answer == "no bias found"
    assert "TargetSampler, k=3: no bias found\n  a TV above 0.0" in str(verdict)
    verdict = lossless(KeepFirst(), draft, target, 3, samples=50_000, generator=0)
    assert verdict.answer == "biased"
    assert verdict.sampled == pytest.approx(np.abs(draft - target).sum() / 2, abs=0.01)
    assert verdict.over[0].token == 0
    assert verdict.under[0].token == 4
    assert "keep first, k=3: NOT lossless" in str(verdict)
    assert "said too often: 0 (0.39" in str(verdict)
    assert "said too rarely: 4 (0.05" in str(verdict)
    assert "not enumerated" in str(verdict)


def test_a_stranger_that_speaks_torch_is_spoken_to_in_torch():
    draft, target = (torch.tensor(side) for side in D.five_tokens())
    verdict = lossless(TorchSampler, draft, target, 2, samples=50_000, generator=0)
    assert verdict.answer == "no bias found"  # what a stranger says of itself is no proof
    assert verdict.total_variation == 0


@pytest.mark.parametrize("rule", [Boaster, TwoFaced])
def test_a_rule_that_does_not_do_what_it_says_is_caught(rule):
    verdict = lossless(rule, *D.five_tokens(), 2, samples=50_000, generator=0)
    assert verdict.total_variation < 1e-12
    assert verdict.biased
    assert verdict.agreement < verdict.false_alarm
    assert "disagrees with the rule's own output_distribution" in str(verdict)


class SlightlyOff(Verifier):
    """Moves a millionth from one token to another: no 200,000 samples could tell."""

    def _given_drafts(self, draft, target, tokens):
        moved = target.clone()
        moved[0], moved[1] = target[0] - 1e-6, target[1] + 1e-6
        return moved.expand(*tokens.shape[:-1], -1)


def test_a_slight_bias_is_seen_by_enumeration_alone():
    verdict = lossless(SlightlyOff, *D.five_tokens(), 2, samples=20_000, generator=0)
    assert verdict.total_variation == pytest.approx(1e-6)
    assert min(verdict.p_value, verdict.agreement) > verdict.false_alarm
    assert verdict.biased
    assert [error.token for error in (*verdict.over, *verdict.under)] == [1, 0]


class Slip(TargetSampler):
    """Says, once, a token that the target never says; claims it with a probability of 1e-10."""

    def select(self, draft, target, tokens, generator):
        chosen = super().select(draft, target, tokens, generator)
        chosen[0] = len(target) - 1
        return chosen

    def output_distribution(self, draft, target, k):
        claimed = target.copy()
        claimed[-1] += 1e-10
        return claimed / claimed.sum()


def test_a_slip_that_the_claim_would_excuse_is_seen():
    draft, target = np.full(3, 1 / 3), np.array([0.4, 0.6, 0.0])
    verdict = lossless(Slip, draft, target, 2, samples=2_000, generator=0)
    assert verdict.total_variation < 1e-9
    assert verdict.agreement > verdict.false_alarm
    assert verdict.p_value == 0
    assert verdict.biased


class Denier(Slip):
    """Says, once, a token that the target hardly ever says; claims that it never does."""

    def output_distribution(self, draft, target, k):
        claimed = np.append(target[:-1], 0.0)
        return claimed / claimed.sum()


def test_a_slip_that_the_target_would_excuse_is_seen():
    draft, target = np.full(3, 1 / 3), np.array([0.4, 0.6 - 5e-10, 5e-10])
    verdict = lossless(Denier, draft, target, 2, samples=2_000, generator=0)
    assert verdict.total_variation < 1e-9
    assert verdict.p_value > verdict.false_alarm
    assert verdict.agreement == 0
    assert verdict.biased


def p_values(counts, probs):
    """Of one pair, by token, over all tokens, and by set; every token is a class of its own."""
    own = torch.arange(len(probs)).clamp_max(32).expand(1, 2, -1)
    return _p_values(counts[None], probs[None], own)


def test_the_false_alarm_rate_is_kept_by_many_tokens():
    """The rarest of 1,000 counts is judged as one of 1,000, and a count of 5 by P(5 or more)."""
    counts = np.full(1000, 50)
    tail = stats.binom.sf(np.arange(200) - 1, 50_000, 1e-3)
    counts[0] = np.argmax(2 * tail < 1e-7)
    counts[1:] -= np.arange(999) < counts[0] - 50  # the others make up for it
    assert p_values(counts, np.full(1000, 1e-3))[0] > 1e-6
    found = p_values(np.array([10**6 - 5, 5]), np.array([1 - 2e-7, 2e-7]))
    assert found[0] == pytest.approx(2 * 2 * stats.binom.sf(4, 10**6, 2e-7))


def test_one_rare_token_said_too_often_is_seen(monkeypatch):
    """Chi-square pools it with its neighbours; its own binomial tail does not."""
    monkeypatch.setattr("spectr_lite.check.table.EXACT_LIMIT", 0)
    draft, target = np.array([0.5, 0.5]), np.array([1 - 1e-9, 1e-9])
    verdict = lossless(RareToken, draft, target, 2, samples=50_000, generator=0)
    assert verdict.biased
    assert verdict.over[0].token == 1


def test_one_hot_targets_can_be_judged():
    draft, target = np.array([0.5, 0.5, 0.0]), np.array([1.0, 0.0, 0.0])
    assert lossless("kseq", draft, target, 2, samples=10_000, generator=0).lossless
    assert lossless(KeepFirst, draft, target, 2, samples=10_000, generator=0).biased


def test_distributions_without_enough_tokens_are_judged():
    draft, target = D.bernoulli(0.3, 0.6)
    assert lossless("recursive-wor", draft, target, 4, samples=10_000, generator=0).lossless


def test_several_pairs_are_judged_together():
    rows = [D.dirichlet(4, seed=seed) for seed in range(5)]
    draft, target = (np.stack(side) for side in zip(*rows, strict=True))
    verdict = lossless("kseq", draft, target, 2, samples=50_004, generator=0)
    assert verdict.lossless
    assert verdict.samples == 50_000
    assert lossless(KeepFirst, draft, target, 2, samples=50_000, generator=0).biased
    # Two pairs with opposite errors: their sum would look right.
    swapped = np.array([[0.3, 0.7], [0.7, 0.3]])
    verdict = lossless(KeepFirst, swapped, swapped[::-1].copy(), 2, samples=20_000, generator=0)
    assert verdict.biased


def test_a_large_vocabulary_is_sampled_in_pieces():
    draft, target = (torch.tensor(side).float() for side in D.zipf(32_000, seed=1))
    verdict = lossless("coupling", draft, target, 1, generator=0)
    assert verdict.samples == 6_250
    assert verdict.answer == "no bias found"
    assert verdict.total_variation is None
    assert verdict.merged < 1e-12
    assert lossless(KeepFirst, draft, target, 1, samples=4_000, generator=0).biased


# --- a vocabulary too large to enumerate (tests/verdict_power.py: 32,000, and many times) ---


def rule_name(rule):
    return rule if isinstance(rule, str) else getattr(rule, "name", "") + type(rule).__name__


@pytest.mark.parametrize("rule", [*WRONG, *DRAWS_ONLY], ids=rule_name)
def test_every_wrong_rule_is_caught_at_size(rule):
    (verdict,) = judge(rule, 300, range(1), samples=6_250)
    assert verdict.answer == "biased"
    assert verdict.total_variation is None
    assert "NOT lossless" in str(verdict)
    assert "\n  where target/draft is " in str(verdict)
    assert 1 <= len(verdict.ratios) <= 4
    assert max(abs(share.produced - share.target) for share in verdict.ratios) > 1e-4


def test_drafts_without_replacement_are_merged_to_more_classes():
    """On so few as three classes this bias vanishes for the pair of seed 1."""
    rule = next(rule for rule in WRONG if type(rule).__name__ == "ForgetsToRemove")
    for verdict in judge(rule, 32_000, range(4), samples=4):
        assert verdict.merged > 0.01
        assert verdict.answer == "biased"


@pytest.mark.parametrize("rule", RIGHT)
def test_no_right_rule_is_accused_at_size(rule):
    (verdict,) = judge(rule, 200, range(1), samples=1_000)
    assert verdict.answer == "no bias found"
    assert not verdict.lossless
    assert verdict.merged < 1e-10
    assert min(verdict.p_value, verdict.agreement) > 0.01
    assert verdict.over == verdict.under == verdict.ratios == ()
    assert 0.1 < verdict.detectable < 0.15


class WrongAtSize(KSeq):
    """The parameters of two drafts more, once there are more than ten tokens."""

    def _given_drafts(self, draft, target, tokens):
        rule = super() if draft.shape[-1] <= 10 else OfTwoMore()
        return rule._given_drafts(draft, target, tokens)


def test_a_law_that_is_wrong_only_at_size_is_seen():
    """Its `_select` and the merged pair are right; what is left is P(Y = y | drafts)."""
    draft, target = D.zipf(1_000)
    verdict = lossless(WrongAtSize, draft, target, 8, samples=6_250, generator=0)
    assert verdict.merged < 1e-12
    assert verdict.p_value < verdict.false_alarm
    assert verdict.answer == "biased"


def test_a_select_that_leaves_its_law_is_seen_at_size():
    verdict = lossless(TwoFaced, *D.zipf(500), 4, samples=6_250, generator=0)
    assert verdict.merged < 1e-12
    assert verdict.agreement < verdict.false_alarm
    assert "disagrees with the rule's own output_distribution" in str(verdict)


class NoLaw(KSeq):
    def _given_drafts(self, draft, target, tokens):
        return super()._given_drafts(draft, target, tokens) * float("nan")


def test_a_law_that_is_not_finite_is_named():
    with pytest.raises(
        ValueError, match=r"verifier: kseq\._given_drafts has entries that are not fin"
    ):
        lossless(NoLaw, *D.zipf(500), 4, samples=100, generator=0)
    verdict = lossless(NoLaw, *D.five_tokens(), 2, samples=100, generator=0)
    assert verdict.answer == "biased"


@pytest.mark.parametrize(
    ("n", "rare"), [(200_000, 6e-5), (200_000, 5e-5), (2_000, 0.004), (50, 0.3), (20, 1e-3)]
)
def test_the_false_alarm_of_small_cells_is_exact(n, rare):
    """Two tokens, every count of the rare one: chi-square alone accused 2.3e-5 of 200,000 x 6e-5."""
    counts = np.arange(min(n, 400) + 1)
    found = [3 * min(p_values(np.array([n - c, c]), np.array([1 - rare, rare]))) for c in counts]
    alarm = stats.binom.pmf(counts, n, rare)[np.array(found) < 1e-6].sum()
    assert alarm + stats.binom.sf(counts[-1], n, rare) < 1e-6


def test_what_is_said_to_be_detectable_is_detected():
    """By enumeration: two tokens, and an output wrong by just more than `detectable`."""
    draft, target, n = np.array([0.7, 0.3]), np.array([0.4, 0.6]), 500
    verdict = lossless(TargetSampler, draft, target, 2, samples=n, generator=0)
    counts = np.arange(n + 1)
    found = [3 * min(p_values(np.array([c, n - c]), target)) < 1e-6 for c in counts]
    for sign in (1, -1):
        wrong = target[0] + sign * verdict.detectable * 1.001
        assert stats.binom.pmf(counts, n, wrong)[found].sum() >= 0.99
    assert verdict.detectable < 0.2


def test_pairs_with_different_masses_keep_the_false_alarm():
    """The sum of two different binomials: its exact tail is below what is reported of it."""
    masses, n = np.array([[0.05, 0.95], [0.6, 0.4]]), 40
    one, two = (stats.binom.pmf(np.arange(n + 1), n, mass) for mass in masses[:, 0])
    exact = np.convolve(one, two)
    own = torch.tensor([[[0, 1], [0, 1]]] * 2)
    for total in range(2 * n + 1):
        first = min(total, n)
        counts = np.array([[first, n - first], [total - first, n - total + first]])
        tail = min(exact[: total + 1].sum(), exact[total:].sum())
        assert _p_values(counts, masses, own)[2] / 130 >= min(1, 2 * tail) * (1 - 1e-9)
    # One pair of a hundred says token 0 half of the time: one count is no surprise, two-sided p = 1.
    masses, counts = np.array([[0.5, 0.5], *[[0, 1]] * 99]), np.array([[1, 0], *[[0, 1]] * 99])
    assert _p_values(counts, masses, own[:1].expand(100, -1, -1))[2] == 130


def test_noise_is_no_total_variation_above_one():
    draft, target = D.zipf(2_000)
    verdict = lossless("target-only", draft, target, 2, samples=20, generator=0)
    assert verdict.noise == pytest.approx(verdict.sampled, abs=0.05)


class Counted(KeepFirst):
    """Says token 1 in 280 of 400 draws, whatever is drafted."""

    def select(self, draft, target, tokens, generator):
        return (np.arange(len(tokens)) < 280).astype(int)


def test_the_tests_share_the_false_alarm():
    """Three tests of the draws: by token, over all tokens, by set. The smallest counts three times."""
    verdict = lossless(Counted, [0.5, 0.5], [0.4, 0.6], 2, samples=400, generator=0)
    one = 2 * 2 * stats.binom.sf(279, 400, 0.6)  # two sides, two tokens
    assert verdict.p_value == pytest.approx(3 * one)
    assert verdict.answer == "no bias found"
    third = p_values(np.array([120, 280]), np.array([0.4, 0.6]))[2]
    assert third == pytest.approx(130 * one / 2)  # 130 sets


def test_a_seed_repeats_the_verdict():
    first, again, other = (
        lossless("kseq", *D.five_tokens(), 2, samples=5_000, generator=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    verdict = lossless(TargetSampler, *D.five_tokens(), 2, samples=5_000, generator=3)
    assert verdict == lossless(TargetSampler, *D.five_tokens(), 2, samples=5_000, generator=3)


def test_the_false_alarm_rate_is_kept():
    """A lossless rule: of 200 verdicts no more than a twentieth has a p-value below 0.05."""
    draft, target = D.dirichlet(6, 2.0, 0)
    p_values = [
        lossless("target-only", draft, target, 2, samples=2_000, generator=seed).p_value
        for seed in range(200)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 4 * (0.05 * 0.95 / 200) ** 0.5


def test_a_verdict_becomes_json():
    verdict = lossless(KeepFirst, *D.five_tokens(), 2, samples=2_000, generator=0)
    found = json.loads(json.dumps(verdict.to_dict()))
    assert found["lossless"] is False
    assert found["over"][0]["token"] == 0


# --- what is refused ---


class NeedsArguments:
    def __init__(self, size):
        self.size = size


class Crashes(KeepFirst):
    def select(self, draft, target, tokens, generator):
        raise KeyError("no such token")


class WrongShape(KeepFirst):
    def select(self, draft, target, tokens, generator):
        return tokens


class Floats(KeepFirst):
    def select(self, draft, target, tokens, generator):
        return tokens[:, 0].astype(float)


class OutOfRange(KeepFirst):
    def select(self, draft, target, tokens, generator):
        return tokens[:, 0] + 3


class WrongDrafting(KeepFirst):
    def output_distribution(self, draft, target, k):
        return target[:2]


class RaggedTokens(KeepFirst):
    def select(self, draft, target, tokens, generator):
        return [[0], [1, 2]]


class NoNumber(KeepFirst):
    def acceptance(self, draft, target, k):
        return "most of them"


class Unmakeable(KeepFirst):
    def __init__(self):
        raise RuntimeError("no model loaded")


class Buggy(Verifier):
    def _given_drafts(self, draft, target, tokens):
        return draft.no_such_attribute


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ("best", ValueError, r"verifier: no rule named 'best'"),
        (object(), TypeError, r"verifier: <object.* has no method 'acceptance'.*kseq"),
        (NeedsArguments, TypeError, r"verifier: NeedsArguments cannot be made without arguments"),
        (Verifier, TypeError, r"verifier: Verifier cannot be made without arguments"),
        (Crashes, RuntimeError, r"verifier: keep first\.select raised KeyError: 'no such token'"),
        (
            WrongShape,
            ValueError,
            r"verifier: .*\.select answered int64 of shape \(100, 2\).*\(100,\)",
        ),
        (Floats, ValueError, r"verifier: .*\.select answered float64"),
        (OutOfRange, ValueError, r"verifier: .*\.select answered token [5-7].*ids 0 to 4"),
        (RaggedTokens, ValueError, r"verifier: .*\.select answered list for 100 rows"),
        (NoNumber, ValueError, r"verifier: .*\.acceptance answered 'most of them'"),
        (Unmakeable, TypeError, r"verifier: Unmakeable cannot be made .*\(no model loaded\)"),
        (Buggy, RuntimeError, r"verifier: Buggy\.select raised AttributeError"),
        (WrongDrafting, ValueError, r"verifier: .*output_distribution has shape \(2,\).*\(5,\)"),
    ],
)
def test_rules_that_cannot_be_asked(rule, error, message):
    with pytest.raises(error, match=message):
        lossless(rule, *D.five_tokens(), 2, samples=100, generator=0)


def test_other_bad_arguments():
    draft, target = D.five_tokens()
    with pytest.raises(ValueError, match=r"k: found 0"):
        compare(draft, target, ks=(2, 0))
    with pytest.raises(ValueError, match=r"k: found 0"):
        lossless("kseq", draft, target, 0)
    with pytest.raises(ValueError, match=r"k: found 10{20}\. It must be at most 1,000,000"):
        compare(draft, target, ks=[10**20])
    with pytest.raises(TypeError, match=r"k: expected a whole number, found 1\.5"):
        compare(draft, target, ks=[1.5])
    with pytest.raises(ValueError, match=r"verifiers: 'coupling' is not defined for k in \[2, 4\]"):
        compare(draft, target, ks=(2, 4), verifiers=["coupling"])
    with pytest.raises(ValueError, match=r"k: 'coupling' is not defined for k=2"):
        lossless("coupling", draft, target, 2)
    assert lossless("kseq", draft, target, 2, samples=9, generator=10**20).samples == 9
    with pytest.raises(ValueError, match=r"samples: found 0"):
        lossless("kseq", draft, target, 2, samples=0)
    with pytest.raises(ValueError, match=r"target: entry \[0\] is -0\.5"):
        compare(draft, [-0.5, 1.5, 0, 0, 0])
    with pytest.raises(ValueError, match=r"draft: shape \(0, 5\) holds no pair"):
        compare(np.zeros((0, 5)), np.zeros((0, 5)))


class OfOnePair(Verifier):
    """Says what it was made with, whatever is drafted: lossless for that target alone."""

    name = "of one pair"
    for_any_pair = False

    def __init__(self, table):
        self.table = torch.as_tensor(table)

    def _given_drafts(self, draft, target, tokens):
        return self.table.expand(*tokens.shape[:-1], -1)


def test_a_rule_made_for_one_pair_is_not_judged_on_another():
    draft, target = D.dirichlet(300, 0.3, seed=3)
    verdict = lossless(OfOnePair(target), draft, target, 8, samples=2_000, generator=0)
    assert verdict.answer == "no bias found" and verdict.merged is None
    assert lossless(OfOnePair(draft), draft, target, 8, samples=2_000, generator=0).biased


def test_merging_tokens_never_accuses_kseq_of_a_given_rho():
    """rho* falls as tokens are merged, so that a rho that was large enough stays so."""
    draft, target = D.dirichlet(300, 0.3, seed=3)
    own = float(optimal_rho(*map(torch.from_numpy, (draft, target)), 8))
    verdict = lossless(KSeq(own), draft, target, 8, samples=2_000, generator=0)
    assert verdict.answer == "no bias found" and verdict.merged < 1e-10
