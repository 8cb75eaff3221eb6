// The pairs one can start from: (V) -> [draft, target]. Those with a fixed V ignore it.
// Counterparts: spectr_lite.distributions.three_tokens, five_tokens, kseq_worst_case, uniform_on_subset, tempered.
"use strict";

lab.PRESETS = (() => {
const { normalise } = lab.transport;

const each = (V, of) => Array.from({ length: V }, (_, y) => of(y));
const zipf = (V, exponent) => normalise(each(V, (y) => (y + 1) ** -exponent));
const half = (V) => Math.ceil(V / 2);

return {
  three: { label: "The book’s example", size: 3, make: () => [[1 / 2, 1 / 3, 1 / 6], [0.1, 0.3, 0.6]] },
  five: {
    label: "Chapter 4’s five tokens", size: 5,
    make: () => [[0.4, 0.25, 0.2, 0.1, 0.05], [0.1, 0.3, 0.1, 0.2, 0.3]],
  },
  bernoulli: { label: "Bernoulli, K-SEQ’s worst", size: 2, make: () => [[1 / 3, 2 / 3], [5 / 9, 4 / 9]] },
  zipf: {
    label: "Zipf, neighbours swapped", from: 6,
    make: (V) => {
      const target = zipf(V, 1);
      return [target.map((q, y) => target[y ^ 1] ?? q), target];
    },
  },
  peaked: {
    label: "Peaked draft", from: 5,
    make: (V) => [normalise(each(V, (y) => (y ? 0.15 / (V - 1) : 0.85))), normalise(each(V, (y) => (y ? 0.6 / (V - 1) : 0.4)))],
  },
  temperature: { label: "Temperature 1 against 1/2", from: 6, make: (V) => [zipf(V, 1), zipf(V, 2)] },
  subset: {
    label: "Two ratios: 0 and one other", from: 4,
    make: (V) => [each(V, () => 1 / V), each(V, (y) => (y < half(V) ? 1 / half(V) : 0))],
  },
  disjoint: {
    label: "Disjoint", from: 4,
    make: (V) => [each(V, (y) => (y < half(V) ? 1 / half(V) : 0)), each(V, (y) => (y < half(V) ? 0 : 1 / (V - half(V))))],
  },
  equal: { label: "Equal", from: 4, make: (V) => [zipf(V, 1), zipf(V, 1)] },
};
})();
