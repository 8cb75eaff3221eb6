"""Every statement of book/proofs.md, checked on random instances with zeros and ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from spectr_lite import transport, verifiers
from spectr_lite.distributions import IID, TopM, WithoutReplacement
from spectr_lite.transport import nested
from spectr_lite.verifiers import kseq

Law = np.ndarray
RNG_SEED = 20231


def pairs(count: int, vocabulary: int, seed: int = RNG_SEED) -> Iterator[tuple[Law, Law]]:
    """Random pairs; every other one from small whole numbers, so that zeros and tied ratios occur."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        if i % 2:
            weights = rng.integers(0, 4, size=(2, vocabulary)).astype(float)
            weights[np.arange(2), rng.integers(vocabulary, size=2)] += 1
            draft, target = weights / weights.sum(1, keepdims=True)
        else:
            draft, target = rng.dirichlet(np.full(vocabulary, 0.7), size=2)
        yield draft, target


def close(found, expected, tolerance: float = 1e-12) -> bool:
    return np.allclose(found, expected, rtol=0, atol=tolerance)


def subsets(vocabulary: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=vocabulary)))


def tuples(draft: Law, k: int) -> Iterator[tuple[tuple[int, ...], float]]:
    for drafts in itertools.product(range(len(draft)), repeat=k):
        mass = float(np.prod(draft[list(drafts)]))
        if mass > 0:
            yield drafts, mass


def ratio_order(draft: Law, target: Law) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.argsort(np.where(draft > 0, target / draft, np.inf), kind="stable")


def edges(draft: Law, target: Law, order: np.ndarray) -> tuple[Law, Law]:
    return tuple(np.append(0, np.cumsum(probs[order])) for probs in (draft, target))


def couple(winner: Law, target: Law) -> Law:
    kept = winner * np.minimum(
        1, np.divide(target, winner, where=winner > 0, out=np.ones_like(target))
    )
    spare = np.maximum(target - winner, 0)
    return kept + (1 - kept.sum()) * spare / max(spare.sum(), 1e-300)


# --- one draft; the program and its cut ---


def test_maximal_coupling_is_lossless_and_cannot_be_beaten():
    for draft, target in pairs(40, 4):
        assert close(couple(draft, target), target)
        best = transport.solve_lp(draft, target, 1).acceptance
        assert close(np.minimum(draft, target).sum(), best, 1e-9)


def test_both_reductions_keep_the_value_of_the_program():
    for draft, target in pairs(6, 3):
        literal = transport.solve_lp(draft, target, 2, formulation="literal")
        reduced = transport.solve_lp(draft, target, 2, formulation="reduced")
        assert close(literal.acceptance, reduced.acceptance, 1e-9)


@pytest.mark.parametrize("probs", [IID(), WithoutReplacement(), TopM(1)])
def test_the_optimum_is_a_cut_for_any_distribution_of_the_drafts(probs):
    for draft, target in pairs(8, 4):
        if (draft > 0).sum() < 3:
            continue  # the program wants k drafts from distributions that do not repeat
        tokens, mass = probs.tuples(torch.as_tensor(draft), 2)
        inside = [
            mass.numpy() @ A[tokens.numpy()].all(axis=1) - target[A].sum() for A in subsets(4)
        ]
        assert close(
            1 - max(inside), transport.solve_lp(draft, target, 2, drafting=probs).acceptance, 1e-9
        )


@pytest.mark.parametrize("convex", [lambda u: u**2, lambda u: u**5, np.exp, lambda u: abs(u - 0.4)])
def test_some_prefix_is_a_worst_set(convex: Callable):
    for draft, target in pairs(60, 6):
        sets = subsets(6)
        U, R = edges(draft, target, ratio_order(draft, target))
        assert close((convex(sets @ draft) - sets @ target).max(), (convex(U) - R).max())


def test_drafts_without_replacement():
    for draft, target in pairs(40, 5):
        p, k = torch.as_tensor(draft), 3
        if (draft > 0).sum() < k:
            continue
        tokens, mass = WithoutReplacement().tuples(p, k)
        sets = subsets(5)
        inside = np.array([mass.numpy() @ A[tokens.numpy()].all(axis=1) for A in sets])
        assert np.all(inside <= (sets @ draft) ** k + 1e-12)  # (b)
        order = torch.as_tensor(ratio_order(draft, target))
        prefixes = [np.isin(np.arange(5), order[: j + 1]) for j in range(5)]
        by_sum = [inside[(sets == A).all(axis=1).argmax()] for A in prefixes]
        assert close(WithoutReplacement().containment(p, order, k), by_sum, 1e-10)  # (c)
        # Checked, not proved: a prefix is a worst set.
        excess = [value - target[A].sum() for value, A in zip(by_sum, prefixes, strict=True)]
        assert close((inside - sets @ target).max(), max(0, *excess))


# --- K-SEQ ---


def parts(draft: Law, target: Law, k: int, rho: float) -> tuple[float, float, Law]:
    kept = np.minimum(draft, target / rho)
    beta = min(kept.sum(), 1.0)
    passed = 1 - (1 - beta) ** k
    return beta, passed, target - kept * passed / beta


def root(draft: Law, target: Law, k: int) -> float:
    return kseq.optimal_rho(torch.as_tensor(draft), torch.as_tensor(target), k).item()


def bisected(draft: Law, target: Law, k: int) -> float:
    return kseq.bisected_rho(torch.as_tensor(draft), torch.as_tensor(target), k).item()


def overlapping(count: int, vocabulary: int) -> Iterator[tuple[Law, Law]]:
    return (pair for pair in pairs(count, vocabulary) if np.minimum(*pair).sum() > 0)


def test_h_falls_strictly_from_non_negative_to_non_positive():
    for (draft, target), k in itertools.product(overlapping(40, 5), (2, 3, 6)):
        values = []
        for rho in np.linspace(1, k, 40):
            beta, passed, _ = parts(draft, target, k, rho)
            values.append(passed - rho * beta)
        assert values[0] >= -1e-12 and values[-1] <= 1e-12 and np.all(np.diff(values) < 0)
        beta, passed, _ = parts(draft, target, k, root(draft, target, k))
        assert close(passed, root(draft, target, k) * beta, 1e-10)


def test_kseq_is_lossless_from_the_root_on_and_below_it_invalid_or_the_same():
    same_rule = 0
    for (draft, target), k in itertools.product(overlapping(30, 3), (2, 3)):
        star = root(draft, target, k)
        top = parts(draft, target, k, star)[1]
        for rho in [*np.linspace(star + 1e-9, k, 5)] if star < k else [star]:
            _, passed, left = parts(draft, target, k, rho)
            assert left.min() > -1e-9 and passed <= top + 1e-9
            output = verifiers.kseq.KSeq(rho).output_distribution(draft, target, k)
            assert close(output, target, 1e-9)
        for rho in np.linspace(1, star - 1e-3, 5) if star > 1.001 else []:
            if parts(draft, target, k, rho)[2].min() > -1e-12:
                same_rule += 1
                wanted = (target > 0) & (draft > 0)
                assert np.all(target[wanted] >= star * draft[wanted] - 1e-9)
                output = verifiers.kseq.KSeq(rho).output_distribution(draft, target, k)
                assert close(output, target)
        _, passed, left = parts(draft, target, k, star)
        assert close(left, np.maximum(target - star * draft, 0), 1e-9)
        by_tuples = 0.0
        for drafts, mass in tuples(draft, k):
            fails = np.prod([1 - min(1, target[x] / (star * draft[x])) for x in drafts])
            spare = left.clip(0)[list({*drafts})].sum() / max(left.clip(0).sum(), 1e-300)
            by_tuples += mass * (1 - fails + fails * spare)
        assert close(by_tuples, passed, 1e-9)  # membership is acceptance in the loop
    assert same_rule > 0  # the third statement's second case does occur


def test_a_loop_whose_residual_is_negative_emits_some_token_too_often():
    beyond_repair = 0
    for (draft, target), k in itertools.product(overlapping(30, 3), (2, 3)):
        star = root(draft, target, k)
        for rho in np.linspace(1, star - 1e-3, 5) if star > 1.001 else []:
            left = parts(draft, target, k, rho)[2]
            in_loop = np.zeros(3)
            for drafts, mass in tuples(draft, k):
                for x in drafts:
                    passes = min(1, target[x] / (rho * draft[x]))
                    in_loop[x] += mass * passes
                    mass *= 1 - passes
            assert close(in_loop, target - left)
            if left.min() < -1e-9:
                beyond_repair += 1
                assert (in_loop > target + 1e-9).any()
    assert beyond_repair > 20


def test_the_loop_accepts_most_at_the_root_and_the_rule_may_keep_more_beyond():
    draft, target = np.array([1 / 3, 2 / 3]), np.array([5 / 9, 4 / 9])
    assert close(root(draft, target, 2), 4 / 3)
    found = {}
    for rho in (4 / 3, 5 / 3):
        rule = verifiers.kseq.KSeq(rho)
        probs = {x: rule._given_drafts(*map(torch.as_tensor, (draft, target, np.array([x]))))[0]
                 for x, _ in tuples(draft, 2)}  # fmt: skip
        inside = sum(m * float(probs[x][list({*x})].sum()) for x, m in tuples(draft, 2))
        assert close(rule.acceptance(draft, target, 2), inside)
        found[rho] = parts(draft, target, 2, rho)[1], inside
    assert close(found[4 / 3], (8 / 9, 8 / 9))
    assert close(found[5 / 3], (1 - (1 - 0.6) ** 2, 41 / 45))  # 0.84 in the loop, 0.9111 in all


@pytest.mark.parametrize("k", [1, 2, 5])
def test_where_nothing_drafted_is_wanted_every_discount_is_the_same_rule(k):
    draft, target = np.array([0.25, 0.75, 0, 0]), np.array([0, 0, 0.5, 0.5])
    assert root(draft, target, k) == 1
    assert close(bisected(draft, target, k), 1)
    for rho in (None, *np.linspace(1, k, 4)):
        rule = verifiers.kseq.KSeq(rho)
        assert rule.acceptance(draft, target, k) == 0
        assert close(rule.output_distribution(draft, target, k), target)


def test_theorem_1():
    for (draft, target), k in itertools.product(pairs(60, 6), (1, 2, 4, 9)):
        reached = verifiers.get("kseq").acceptance(draft, target, k)
        share = 1 - (1 - 1 / k) ** k
        s = np.minimum(k * draft, target).sum()
        best = transport.optimal_acceptance(draft, target, k)
        assert reached >= share * s - 1e-12 and s >= best - 1e-12 and share >= 1 - 1 / np.e


def test_kseq_is_optimal_where_the_ratio_takes_one_value():
    rng = np.random.default_rng(RNG_SEED)
    for k in (2, 3, 8):
        for _ in range(30):
            common = rng.dirichlet(np.ones(3))
            drafted, wanted = rng.uniform(0.05, 1, 2)
            draft = np.concatenate([drafted * common, [1 - drafted, 0]])
            target = np.concatenate([wanted * common, [0, 1 - wanted]])
            reached = verifiers.get("kseq").acceptance(draft, target, k)
            assert close(reached, transport.optimal_acceptance(draft, target, k), 1e-9)


def test_newton_climbs_and_never_passes_the_root():
    for (draft, target), k in itertools.product(overlapping(60, 6), (2, 5)):
        star = root(draft, target, k)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(draft > 0, target / draft, np.inf)
        below = ratio <= star * (1 + 1e-12)
        A, B = draft[~below].sum(), target[below & (draft > 0)].sum()
        end = min(np.min(ratio[~below], initial=np.inf), k)
        x = B / end
        for _ in range(40 if B > 0 else 0):
            assert B / x >= star - 1e-9
            beta = min(A + x, 1.0)
            assert (1 - (1 - beta) ** k) / beta >= star - 1e-9
            value = 1 - (1 - min(A + x, 1)) ** k - B - A * B / x
            slope = k * (1 - min(A + x, 1)) ** (k - 1) + A * B / x**2
            if slope < 1e-9:
                break
            following = x - value / slope
            assert following >= x - 1e-9
            x = following
        beta = min(A + x, 1.0)
        assert close((1 - (1 - beta) ** k) / beta, star, 1e-3 if close(draft, target) else 1e-9)


def test_the_root_lies_between_any_discount_and_its_other_bound():
    for (draft, target), k in itertools.product(overlapping(60, 6), (1, 2, 5)):
        star = bisected(draft, target, k)
        for rho in np.linspace(1, k, 9):
            s = min(np.minimum(rho * draft, target).sum(), 1.0)
            other = s / -np.expm1(np.log1p(-s) / k) if s < 1 else 1.0
            assert min(rho, other) - 1e-9 <= star <= max(rho, other) + 1e-9


def test_a_grid_ends_on_the_safe_side_too():
    rng = np.random.default_rng(RNG_SEED)
    for (draft, target), k, N in itertools.product(overlapping(30, 6), (2, 5, 40), (1, 7, 100)):
        steps = k ** (np.arange(N + 1) / N)
        found = [parts(draft, target, k, rho) for rho in steps]
        safe = [
            passed <= rho * beta + 1e-15
            for rho, (beta, passed, _) in zip(steps, found, strict=True)
        ]
        rho = steps[first := safe.index(True)]
        star, (beta, passed, left) = root(draft, target, k), found[first]
        if passed < 1 - 1e-9:  # beyond, P is flat to rounding
            assert rho >= star - 1e-9  # (a)
        assert left.min() > -1e-14
        lost = parts(draft, target, k, star)[1] - passed
        assert -1e-12 <= lost <= (1 - 1 / k) ** (k - 1) * np.log(k) / N + 1e-12  # (b)
        for step, (sum_of_minima, _, _) in zip(steps, found, strict=True):
            low = (target <= step * draft) & (draft > 0)
            assert close(target[low].sum() / step + 1 - draft[low].sum(), sum_of_minima)  # (c)
        chat = min(rho, passed / beta + 0.1 * rng.random())
        kept = np.minimum(draft, target / rho)
        if chat * beta < 1 - 1e-9:  # (d)
            wrong = target - chat * kept
            output = kept * passed / beta + (1 - passed) * wrong / wrong.sum()
            variation = abs(output - target).sum() / 2
            assert variation <= abs(chat - passed / beta) * beta + 1e-12


def test_the_grid_of_the_package_is_that_grid():
    for (draft, target), k in itertools.product(overlapping(30, 6), (2, 5, 40)):
        p, q = torch.as_tensor(draft), torch.as_tensor(target)
        step = np.log(kseq.stepped_rho(p, q, k).item()) / np.log(k) * kseq.STEPS
        assert close(step, round(step), 1e-6)
        star = np.log(root(draft, target, k)) / np.log(k) * kseq.STEPS
        if parts(draft, target, k, root(draft, target, k))[1] < 1 - 1e-9:
            assert -1e-3 <= step - star < 1 + 1e-3


# --- the loop ---


def test_theorem_2_by_listing_every_drafted_sequence():
    rng = np.random.default_rng(RNG_SEED)
    drafts_distribution, target_probs_at = rng.dirichlet(
        np.ones(2), size=(2, 7)
    )  # one distribution per context
    contexts = {
        c: i for i, c in enumerate(c for n in range(3) for c in itertools.product((0, 1), repeat=n))
    }

    def follow(all_probs: np.ndarray, sequence: tuple[int, ...]) -> float:
        return float(
            np.prod([all_probs[contexts[sequence[:i]]][y] for i, y in enumerate(sequence)])
        )

    for name in ("kseq", "optimal"):
        rule, text = verifiers.get(name), np.zeros((2, 2, 2))

        def go(alive, emitted, mass, rule=rule, text=text):
            if not alive or len(emitted) == 2:
                for rest in itertools.product((0, 1), repeat=3 - len(emitted)):
                    whole = emitted + rest
                    text[whole] += (
                        mass * follow(target_probs_at, whole) / follow(target_probs_at, emitted)
                    )
                return
            i = contexts[emitted]
            tokens = torch.tensor([[sequence[len(emitted)] for sequence in alive]])
            probs = rule._given_drafts(
                torch.as_tensor(drafts_distribution[i]), torch.as_tensor(target_probs_at[i]), tokens
            )[0]
            for y, chance in enumerate(probs.tolist()):
                left = [sequence for sequence in alive if sequence[len(emitted)] == y]
                go(left, (*emitted, y), mass * chance)

        sequences = list(itertools.product((0, 1), repeat=2))
        for drafted in itertools.product(sequences, repeat=3):
            go(list(drafted), (), np.prod([follow(drafts_distribution, s) for s in drafted]))
        wanted = [follow(target_probs_at, s) for s in itertools.product((0, 1), repeat=3)]
        assert close(text.ravel(), wanted)


def test_a_coin_used_at_two_positions_breaks_theorem_2():
    """One draft of two tokens, no context, Algorithm 1 at both positions."""
    draft, target = np.array([0.5, 0.5]), np.array([0.8, 0.2])
    passes = np.minimum(1, target / draft)
    left = np.maximum(target - draft, 0) / np.maximum(target - draft, 0).sum()

    def text(again: Callable) -> Law:
        """`again`(x, y): P(the second test passes | the first did)."""
        probs = np.zeros((2, 2))
        for x, y in itertools.product(range(2), repeat=2):
            mass, second = draft[x] * draft[y], again(x, y)
            probs += mass * (1 - passes[x]) * np.outer(left, target)
            probs[x, y] += mass * passes[x] * second
            probs[x] += mass * passes[x] * (1 - second) * left
        return probs

    wanted = np.outer(target, target)
    assert close(text(lambda x, y: passes[y]), wanted)
    reused = text(lambda x, y: min(1, passes[y] / passes[x]))  # the coin was below passes[x]
    assert abs(reused - wanted).sum() / 2 > 0.02


# --- winners ---


def random_winner(draft: Law, k: int, rng: np.random.Generator) -> Law:
    """The distribution of a winner that is chosen by chance, differently for every tuple."""
    probs = np.zeros(len(draft))
    for drafts, mass in tuples(draft, k):
        np.add.at(probs, list(drafts), mass * rng.dirichlet(np.full(k, 0.3)))
    return probs


def test_a_rule_is_a_winner_and_a_coupling():
    rng = np.random.default_rng(RNG_SEED)
    for draft, target in pairs(20, 4):
        winner = random_winner(draft, 3, rng)
        assert close(couple(winner, target), target)  # (a)
        assert np.all(subsets(4) @ winner >= (subsets(4) @ draft) ** 3 - 1e-12)
        assert close(transport.solve_lp(draft, winner, 3).acceptance, 1, 1e-9)  # (c)
        rule, probs = verifiers.get("kseq"), np.zeros(4)  # (b), for K-SEQ
        for drafts, mass in tuples(draft, 3):
            chance = rule._given_drafts(
                *map(torch.as_tensor, (draft, target)), torch.tensor([drafts])
            )[0]
            inside = np.where(np.isin(np.arange(4), drafts), chance.numpy(), 0)
            probs += mass * inside
            probs[drafts[0]] += mass * (1 - inside.sum())
        assert np.minimum(probs, target).sum() >= rule.acceptance(draft, target, 3) - 1e-9


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_hull_is_convex_in_u_possible_and_optimal_for_every_weight(k):
    for draft, target in pairs(60, 6):
        made = nested.plan(torch.as_tensor(draft), torch.as_tensor(target), k)
        winner = made.winner(torch.as_tensor(draft)).numpy()
        order = np.argsort(made.class_of.numpy())
        U, _ = edges(draft, target, order)
        T = np.append(0, np.cumsum(winner[order]))
        used = draft[order] > 0
        assert np.all(np.diff(winner[order][used] / draft[order][used]) > -1e-9)
        assert (T - U**k).min() >= -1e-12 and close(T[-1], 1) and close(winner[draft == 0], 0)
        sets = subsets(6)
        assert np.all(sets @ winner >= (sets @ draft) ** k - 1e-12)
        for w in (0, 0.1, 0.5, 1, 2):
            bound = (w * (sets @ target) + 1 - (sets @ draft) ** k).min()
            assert close(np.minimum(winner, w * target).sum(), bound, 1e-11)


# --- nested priority ---


def sag(f: Law, U: Law, a: int, j: int, b: int) -> float:
    return f[a] + (f[b] - f[a]) * (U[j] - U[a]) / (U[b] - U[a]) - f[j]


def times(U: Law, T: Law, k: int) -> Law:
    """tau of the edges 0..C-1, from the formula of the theorem."""
    G, last = U**k, len(U) - 1
    if k == 1:
        return np.zeros(last)
    least = [
        min(
            sag(T, U, a, j, b) / sag(G, U, a, j, b)
            for a in range(j)
            for b in range(j + 1, last + 1)
        )
        for j in range(1, last)
    ]
    return np.array([0.0, *(max(0.0, 1 - s) for s in least)])


def nested_winner(U: Law, k: int, tau: Law) -> Law:
    """The winner's cumulative distribution at the edges: chords of u^k, averaged over Z exactly."""
    levels = np.unique(tau)
    total = np.zeros(len(U))
    for level, weight in zip(levels, np.diff(np.append(levels, 1.0)), strict=True):
        active = np.append(np.flatnonzero(tau <= level), len(U) - 1)
        total += weight * np.interp(U, U[active], U[active] ** k)
    return total


def enumerated_winner(draft: Law, class_of: np.ndarray, tau: Law, k: int) -> Law:
    levels = np.unique(tau)
    weights = np.diff(np.append(levels, 1.0))
    probs = np.zeros(len(draft))
    for drafts, mass in tuples(draft, k):
        for level, weight in zip(levels, weights, strict=True):
            pool = np.cumsum(tau <= level)[class_of[list(drafts)]]
            top = pool == pool.max()
            np.add.at(probs, list(drafts), mass * weight * top / top.sum())
    return probs


def test_a_pooled_rule_has_a_chord_for_its_distribution():
    rng = np.random.default_rng(RNG_SEED)
    for draft, _ in pairs(12, 5):
        draft = (draft + 0.05) / (draft + 0.05).sum()
        U = np.append(0, np.cumsum(draft))
        tau = np.where(rng.random(5) < 0.5, 0.0, 1.0)
        tau[0] = 0
        probs = enumerated_winner(draft, np.arange(5), tau, 3)
        active = np.append(np.flatnonzero(tau == 0), 5)
        assert close(np.cumsum(probs), np.interp(U, U[active], U[active] ** 3)[1:])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_possible_winner_is_a_nested_one(k):
    rng = np.random.default_rng(RNG_SEED)
    for draft, target in pairs(16, 5):
        hull = nested.plan(*map(torch.as_tensor, (draft, target)), k).winner(torch.as_tensor(draft))
        for wanted in (hull.numpy(), random_winner(draft, k, rng)):
            used = np.flatnonzero(draft > 0)
            order = used[np.argsort(wanted[used] / draft[used], kind="stable")]
            U, T = edges(draft, wanted, order)
            tau = times(U, T, k)
            assert close(nested_winner(U, k, tau), T, 1e-10)
            class_of = np.zeros(5, dtype=int)
            class_of[order] = np.arange(len(order))
            assert close(enumerated_winner(draft, class_of, tau, k), wanted, 1e-10)


def removal(U: Law, T: Law, k: int) -> Law:
    G, s = U**k, 0.0
    remaining, tau = list(range(len(U))), np.zeros(len(U) - 1)
    while len(remaining) > 2:
        value, place = min(
            (sag(T, U, a, j, b) / sag(G, U, a, j, b), i + 1)
            for i, (a, j, b) in enumerate(
                zip(remaining, remaining[1:], remaining[2:], strict=False)
            )
        )
        s = max(s, value)
        if s >= 1:
            break
        tau[remaining.pop(place)] = 1 - s
    return tau


def test_removal_finds_the_times_and_so_does_the_package():
    tied = 0
    for (draft, target), k in itertools.product(pairs(60, 7), (2, 5)):
        draft = (draft + 0.02) / (draft + 0.02).sum()
        p, q = torch.as_tensor(draft), torch.as_tensor(target)
        made = nested.plan(p, q, k)
        U = made.draft_below.numpy()
        T = np.append(0, np.cumsum(made.winner(p).numpy()[np.argsort(made.class_of.numpy())]))
        tau = times(U, T, k)
        tied += len(np.unique(tau.round(9))) < len(tau) - 1
        assert close(removal(U, T, k), tau, 1e-8)
        # Where two edges are tied to rounding either may come first; the distribution decides.
        assert close(nested_winner(U, k, made.activation.numpy()), T, 1e-10)
    assert tied > 0


# --- bins ---


@pytest.mark.parametrize("k", [2, 3])
def test_any_classes_and_any_times_keep_the_output_exact(k):
    rng = np.random.default_rng(RNG_SEED)
    for draft, target in pairs(16, 5):
        class_of = rng.integers(0, 3, size=5)
        tau = np.array([0.0, *rng.random(2)])
        mass = np.bincount(class_of, draft, 3)
        U = np.append(0, np.cumsum(mass))
        share = np.diff(nested_winner_with_empty(U, k, tau)) / np.where(mass > 0, mass, 1)
        winner = share[class_of] * draft
        assert close(enumerated_winner(draft, class_of, tau, k), winner)
        assert close(couple(winner, target), target)


def nested_winner_with_empty(U: Law, k: int, tau: Law) -> Law:
    """As `nested_winner`, for classes that may be empty: equal edges are one point."""
    distinct, first = np.unique(U.round(15), return_index=True)
    merged = [tau[(U[:-1].round(15) == u)].min() for u in distinct[:-1]]
    probs = nested_winner(U[first], k, np.array(merged))
    return np.interp(U, U[first], probs)


def test_what_bins_can_cost():
    for (draft, target), k in itertools.product(pairs(20, 60), (2, 4)):
        p, q = torch.as_tensor(draft), torch.as_tensor(target)
        for classes in (5, 8, 16):
            made = nested.plan(p, q, k, classes)
            class_of = made.class_of.numpy()
            drafted, wanted = (np.bincount(class_of, probs, classes) for probs in (draft, target))
            spread = np.divide(wanted, drafted, where=drafted > 0, out=np.zeros(classes))
            even = np.where(draft > 0, spread[class_of] * draft, target)
            reached = np.minimum(made.winner(p).numpy(), target).sum()
            best = transport.optimal_acceptance(draft, target, k)
            assert best - abs(even - target).sum() / 2 - 1e-12 <= reached <= best + 1e-12


def test_the_plan_of_the_classes_keeps_what_the_plan_of_the_tokens_keeps():
    """Of the spread target. Where it is 0 the two winners differ, and it does not matter."""
    other_winners = 0
    for (draft, target), k in itertools.product(pairs(60, 12), (2, 4)):
        p = torch.as_tensor(draft)
        order = ratio_order(draft, target)
        class_of = np.empty(12, int)
        class_of[order] = np.arange(12) // 3
        for kind in ((draft > 0) & (target == 0), draft == 0):  # classes of their own
            class_of[kind] = -1 if (draft[kind] > 0).all() else 4
        class_of += 1
        drafted, wanted = (np.bincount(class_of, probs, 6) for probs in (draft, target))
        spread = np.divide(wanted, drafted, where=drafted > 0, out=np.zeros(6))
        even = np.where(draft > 0, spread[class_of] * draft, target)
        groups = [np.bincount(class_of, probs, 6) for probs in (draft, even)]
        of_class = nested.plan(*map(torch.as_tensor, groups), k).winner(torch.as_tensor(groups[0]))
        rate = np.divide(of_class.numpy(), drafted, where=drafted > 0, out=np.zeros(6))
        classes, tokens = rate[class_of] * draft, nested.plan(p, torch.as_tensor(even), k).winner(p)
        assert close(np.minimum(classes, even).sum(), np.minimum(tokens.numpy(), even).sum(), 1e-9)
        other_winners += not close(classes, tokens.numpy(), 1e-6)
    assert other_winners > 5


def test_a_cup_of_pairs_is_the_plan_for_all():
    for draft, target in pairs(40, 6):
        p, q = torch.as_tensor(draft), torch.as_tensor(target)
        player = p
        for k in (2, 4, 8, 16):
            player = nested.plan(player, q, 2, classes=None).winner(player)
            assert close(player, nested.plan(p, q, k, classes=None).winner(p), 1e-10)
            accepted = torch.minimum(player, q).sum().item()
            assert close(accepted, transport.optimal_acceptance(draft, target, k), 1e-10)
