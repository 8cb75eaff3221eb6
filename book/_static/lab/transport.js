// The mathematics of the transport lab, for one pair of laws on a small vocabulary. No page, no drawing.
//
// draft, target: arrays of V probabilities; k: the number of i.i.d. drafts. Every function names the formula and its
// counterpart in the Python package. tests/test_lab.py runs both on the same inputs and compares to 1e-9.
"use strict";

lab.transport = (() => {
const sum = (values) => values.reduce((total, value) => total + value, 0);
const total = (length, of) => sum(Array.from({ length }, (_, y) => of(y)));

function normalise(weights) {
  const mass = sum(weights);
  return weights.map((w) => w / mass);
}

// Token ids by target/draft ascending, tokens that are never drafted last. laws.by_ratio
function byRatio(draft, target) {
  const ratio = draft.map((p, y) => (p > 0 ? target[y] / p : Infinity));
  // Two infinite ratios are a tie; their difference would be NaN.
  return draft.map((_, y) => y).sort((a, b) => (ratio[a] === ratio[b] ? a - b : ratio[a] - ratio[b]));
}

// U, R, G at the V + 1 edges of that order: draft mass below, target mass below, P(all k drafts below) = U^k.
function edges(draft, target, k, order) {
  const below = (law) => {
    const masses = order.reduce((all, y) => [...all, all.at(-1) + law[y]], [0]);
    return masses.map((m) => m / masses.at(-1));
  };
  const U = below(draft);
  return { U, R: below(target), G: U.map((u) => u ** k) };
}

// alpha = 1 - max over upper sets of [ draft(A)^k - target(A) ], and an A that attains it: a prefix of the order.
// transport.optimal_acceptance, transport.worst_set
function optimum(draft, target, k) {
  const order = byRatio(draft, target);
  const { U, R, G } = edges(draft, target, k, order);
  let best = 0;
  for (let j = 1; j < G.length; j++) if (G[j] - R[j] > G[best] - R[best]) best = j;
  const excess = G[best] - R[best];
  return {
    acceptance: 1 - Math.min(1, Math.max(0, excess)),
    set: excess > 1e-12 ? order.slice(0, best).sort((a, b) => a - b) : [],
    allInside: U[best] ** k,
    wanted: R[best],
  };
}

// P(Y in S) = sum_y min(draft, target), k = 1. verifiers.coupling
const couplingAcceptance = (draft, target) => total(draft.length, (y) => Math.min(draft[y], target[y]));

// beta(rho) = sum_x min(draft, target / rho). verifiers.kseq.acceptance_of_one
function acceptanceOfOne(draft, target, rho) {
  return Math.min(1, total(draft.length, (y) => Math.min(draft[y], target[y] / rho)));
}

// p_acc = 1 - (1 - beta)^k. verifiers.kseq.acceptance_of_any
const acceptanceOfAny = (beta, k) => -Math.expm1(k * Math.log1p(-beta));

// rho*, where p_acc(rho) = rho beta(rho); below it the residual has negative mass. verifiers.kseq.optimal_rho
// In the order of target/draft beta is A + B / rho between neighbouring ratios, A the draft mass above and B the target
// mass below. With x = B / rho,  F(x) = 1 - (1 - A - x)^k - B - A B / x  is increasing and concave: Newton's method from
// the left climbs to the root and never passes it, so that rho stays on the lossless side.
function optimalRho(draft, target, k) {
  const order = byRatio(draft, target);
  const ratio = order.map((y) => (draft[y] > 0 ? Math.min(target[y] / draft[y], Number.MAX_VALUE) : Number.MAX_VALUE));
  const above = (j) => sum(order.slice(j + 1).map((y) => draft[y]).reverse());
  const below = (j) => sum(order.slice(0, j + 1).map((y) => target[y]));
  const left = ratio.map((r, j) => {
    const at = Math.max(1, r);
    const beta = Math.min(1, Math.max(0, above(j) + below(j) / at));
    return r < 1 || acceptanceOfAny(beta, k) - (above(j) * at + below(j)) > 0;
  });
  const piece = left.filter(Boolean).length; // ratios left of rho*
  const [a, b] = piece ? [above(piece - 1), below(piece - 1)] : [1, 0];
  let x = b / Math.max(1, Math.min(ratio[piece] ?? Infinity, k));
  for (let i = 0; b > 0 && i < 24; i++) {
    const out = Math.max(0, 1 - a - x);
    const hyperbola = x > 0 ? (a * b) / x : 0;
    const value = 1 - out ** k - b - hyperbola;
    const slope = k * out ** (k - 1) + (x > 0 ? hyperbola / x : 0);
    x = Math.min(b, x + (slope > 0 ? Math.max(0, -value / slope) : 0));
  }
  const beta = Math.min(1, Math.max(0, a + x));
  return beta > 0 ? Math.min(k, Math.max(1, acceptanceOfAny(beta, k) / beta)) : 1;
}

// residual = (target - min(draft, target / rho) p_acc / beta)+, unnormalised, of mass 1 - p_acc. verifiers.kseq.residual
function kseq(draft, target, k, rho = optimalRho(draft, target, k)) {
  const beta = acceptanceOfOne(draft, target, rho);
  const acceptance = acceptanceOfAny(beta, k);
  const emitted = draft.map((p, y) => (beta > 0 ? (Math.min(p, target[y] / rho) * acceptance) / beta : 0));
  const residual = target.map((q, y) => Math.max(0, q - emitted[y]));
  return { rho, beta, acceptance, emitted, residual };
}

// [1 - (1 - 1/k)^k] sum_x min(target, k draft). verifiers.kseq.guarantee
function guarantee(draft, target, k) {
  return (1 - (1 - 1 / k) ** k) * total(draft.length, (y) => Math.min(target[y], k * draft[y]));
}

// (target - draft)+ normalised; `target` itself where nothing is left. verifiers.recursive.residual
function leftOver(target, draft) {
  const left = target.map((q, y) => Math.max(0, q - draft[y]));
  return sum(left) > 0 ? normalise(left) : target;
}

// P(Y in S) = 1 - prod_i (1 - sum_y min(t_{i-1}, draft)),  t_0 = target,  t_i = (t_{i-1} - draft)+ normalised.
// verifiers.recursive
function recursive(draft, target, k) {
  const targets = [target];
  let missed = 1;
  for (let i = 0; i < k; i++) {
    missed *= Math.max(0, 1 - couplingAcceptance(draft, targets[i]));
    targets.push(leftOver(targets[i], draft));
  }
  return { acceptance: 1 - missed, targets };
}

// Nested priority, every token its own class. verifiers.optimal.plan, and the ten lines of chapter 6:
//   T     = upper concave hull of the points (R, G) at the edges
//   tau_j = 1 - min(1, min over a < j < b in its block of  sag(T, a, j, b) / sag(G, a, j, b))
//           where sag(f, a, j, b) = how far f hangs below its chord from a to b, as a function of U, at j
//   the winner's law has cumulative T; edge j parts two pools when tau_j <= Z
function nestedPlan(draft, target, k) {
  const order = byRatio(draft, target);
  const { U, R, G } = edges(draft, target, k, order);
  const size = order.length;
  // Edges with no draft mass between them are one edge.
  const kept = U.map((_, j) => j).filter((j) => j === 0 || U[j] > U[j - 1]);
  const corners = [];
  for (const j of kept) {
    while (corners.length > 1) {
      const [a, b] = corners.slice(-2);
      if ((G[b] - G[a]) * (R[j] - R[b]) > (G[j] - G[b]) * (R[b] - R[a])) break;
      corners.pop();
    }
    corners.push(j);
  }
  const T = [...G];
  const tau = new Array(size).fill(0);
  for (let c = 1; c < corners.length; c++) {
    const [first, last] = [corners[c - 1], corners[c]];
    const block = kept.filter((j) => j >= first && j <= last);
    const run = R[last] - R[first];
    if (run <= 0) continue; // tokens the target never says: T = G, and every edge is a vertex
    for (const j of block) T[j] = G[first] + ((G[last] - G[first]) * (R[j] - R[first])) / run;
    const sag = (f, a, j, b) => f[a] + ((f[b] - f[a]) * (U[j] - U[a])) / (U[b] - U[a]) - f[j];
    for (const j of block.slice(1, -1)) {
      let least = 1;
      for (const a of block.filter((i) => i < j)) {
        for (const b of block.filter((i) => i > j)) {
          if (sag(G, a, j, b) > 0) least = Math.min(least, sag(T, a, j, b) / sag(G, a, j, b));
        }
      }
      tau[j] = 1 - Math.max(0, least);
    }
  }
  for (let j = 1; j < size; j++) if (U[j] === U[j - 1]) [tau[j], T[j]] = [tau[j - 1], T[j - 1]];
  T[size] = 1;
  const position = new Array(size);
  const winner = new Array(size);
  order.forEach((y, j) => {
    position[y] = j;
    winner[y] = draft[y] > 0 ? Math.max(0, T[j + 1] - T[j]) : 0;
  });
  return { order, position, tau, winner, U, R, G, T };
}

// The pools at level z: edges with tau <= z part the order into [first, last) intervals.
function poolsAt(plan, z) {
  const open = plan.tau.flatMap((t, j) => (t <= z ? [j] : []));
  return open.map((first, i) => [first, open[i + 1] ?? plan.order.length]);
}

// P(draft i is the winner): uniform among the drafts in the highest pool that any draft reached, averaged over Z.
// verifiers.optimal.NestedPlan.chances
function winnerChances(plan, tokens) {
  const levels = [...new Set(plan.tau)].sort((a, b) => a - b);
  const chances = tokens.map(() => 0);
  levels.forEach((z, i) => {
    const weight = (levels[i + 1] ?? 1) - z;
    const pooled = topPool(plan, tokens, z);
    for (const i of pooled) chances[i] += weight / pooled.length;
  });
  return chances;
}

function topPool(plan, tokens, z) {
  const top = Math.max(...tokens.map((x) => plan.position[x]));
  const [first] = poolsAt(plan, z).findLast(([start]) => start <= top);
  return tokens.flatMap((x, i) => (plan.position[x] >= first ? [i] : []));
}

// --- The rules that can be sampled. prepare(draft, target, k) once, then select(made, tokens, random) per tuple ---

const inOrder = (tests, lastResort) => ({ tests, lastResort });

const sequential = {
  // Accept X_i when u * scale_i draft(X_i) < want_i(X_i), for i = 1..k; otherwise Y ~ lastResort.
  select({ draft, tests, lastResort }, tokens, random) {
    for (let i = 0; i < tokens.length; i++) {
      const { scale, want } = tests(i);
      if (random() * scale * draft[tokens[i]] < want[tokens[i]]) return { token: tokens[i], kept: i };
    }
    return { token: drawFrom(lastResort, random), kept: -1 };
  },
  conditional({ draft, tests, lastResort }, tokens) {
    const law = draft.map(() => 0);
    let reached = 1;
    tokens.forEach((x, i) => {
      const { scale, want } = tests(i);
      const accept = draft[x] > 0 ? Math.min(1, want[x] / (scale * draft[x])) : 0;
      law[x] += reached * accept;
      reached *= 1 - accept;
    });
    const mass = sum(lastResort);
    return law.map((value, y) => value + (mass > 0 ? (reached * lastResort[y]) / mass : 0));
  },
};

const RULES = {
  // verifiers.kseq.KSeq
  kseq: {
    ...sequential,
    prepare(draft, target, k) {
      const { rho, residual } = kseq(draft, target, k);
      return { draft, ...inOrder(() => ({ scale: rho, want: target }), residual) };
    },
  },
  // verifiers.recursive.Recursive
  recursive: {
    ...sequential,
    prepare(draft, target, k) {
      const { targets } = recursive(draft, target, k);
      return { draft, ...inOrder((i) => ({ scale: 1, want: targets[i] }), targets[k]) };
    },
  },
  // verifiers.optimal.Optimal(classes=None)
  optimal: {
    prepare(draft, target, k) {
      const plan = nestedPlan(draft, target, k);
      const residual = target.map((q, y) => Math.max(0, q - plan.winner[y]));
      return { target, plan, residual };
    },
    select({ target, plan, residual }, tokens, random) {
      const z = random();
      const pooled = topPool(plan, tokens, z);
      const chosen = pooled[Math.floor(random() * pooled.length)];
      const x = tokens[chosen];
      if (random() * plan.winner[x] < target[x]) return { token: x, kept: chosen, z, chosen };
      return { token: drawFrom(residual, random), kept: -1, z, chosen };
    },
    conditional({ target, plan, residual }, tokens) {
      const law = target.map(() => 0);
      const mass = sum(residual);
      let rejected = 0;
      winnerChances(plan, tokens).forEach((chance, i) => {
        const x = tokens[i];
        const accept = plan.winner[x] > 0 ? Math.min(1, target[x] / plan.winner[x]) : 1;
        law[x] += chance * accept;
        rejected += chance * (1 - accept);
      });
      return law.map((value, y) => value + (mass > 0 ? (rejected * residual[y]) / mass : 0));
    },
  },
  // The mistake of chapter 4: every draft tested as if it were the only one. Biased, and here to be seen failing.
  // tests/wrong_variants.RhoOne
  undiscounted: {
    ...sequential,
    prepare(draft, target) {
      const residual = target.map((q, y) => Math.max(0, q - draft[y]));
      return { draft, ...inOrder(() => ({ scale: 1, want: target }), residual) };
    },
  },
};

// The exact law of Y: sum over all V^k tuples of P(x) P(Y = y | x). verifiers.Verifier.output_distribution
function outputLaw(rule, draft, target, k) {
  const made = RULES[rule].prepare(draft, target, k);
  const law = draft.map(() => 0);
  const tokens = new Array(k).fill(0);
  const visit = (i, mass) => {
    if (mass === 0) return;
    if (i === k) {
      RULES[rule].conditional(made, tokens).forEach((value, y) => { law[y] += mass * value; });
      return;
    }
    for (let x = 0; x < draft.length; x++) {
      tokens[i] = x;
      visit(i + 1, mass * draft[x]);
    }
  };
  visit(0, 1);
  return law;
}

// The same law for the undiscounted rule, in closed form for any k: the loop emits min(draft, target) p_acc / beta.
function undiscountedLaw(draft, target, k) {
  const { emitted, acceptance } = kseq(draft, target, k, 1);
  const left = leftOver(target, draft);
  return emitted.map((e, y) => e + (1 - acceptance) * left[y]);
}

// --- Sampling ---

// A token drawn in proportion to `weights`; one of weight zero never is. distributions.sample
function drawFrom(weights, random) {
  let level = random() * sum(weights);
  let last = weights.length - 1;
  for (let y = 0; y < weights.length; y++) {
    if (weights[y] > 0) {
      if (level < weights[y]) return y;
      level -= weights[y];
      last = y;
    }
  }
  return last;
}

// sfc32, a small generator with a seed (Chris Doty-Humphrey's; public domain): uniform in [0, 1), 32 bits.
function generator(seed) {
  let [a, b, c, counter] = [seed | 0, 0x9e3779b9, 0x243f6a88, 1];
  const next = () => {
    const t = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t | 0;
    return (t >>> 0) / 4294967296;
  };
  for (let i = 0; i < 16; i++) next();
  return next;
}

// TV(law, other) = sum |law - other| / 2
const totalVariation = (law, other) => total(law.length, (y) => Math.abs(law[y] - other[y])) / 2;

// E TV(empirical law of n draws, target), to leading order: sum_y sqrt(q (1 - q) / (2 pi n))
const expectedVariation = (target, n) =>
  total(target.length, (y) => Math.sqrt((target[y] * (1 - target[y])) / (2 * Math.PI * n)));

return {
  sum, normalise, byRatio, optimum, couplingAcceptance, acceptanceOfOne, acceptanceOfAny, optimalRho, kseq,
  guarantee, leftOver, recursive, nestedPlan, poolsAt, winnerChances, RULES, outputLaw, undiscountedLaw,
  drawFrom, generator, totalVariation, expectedVariation,
};
})();
