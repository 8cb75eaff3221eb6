// The transport lab: state, controls and sampling. Mathematics in transport.js, drawing in charts.js.
// Classic scripts, in the order of the page: a browser refuses modules when the site is opened as a file.
"use strict";

(() => {
const { transport: T, charts, PRESETS, LABELS } = lab;

const MAX_K = 16;
const SIZES = [2, 8];
const MOST = 100_000; // draws
const START = { preset: "three", k: 2, rule: "kseq", seed: 1, n: 0 };
const RULE_NAMES = ["kseq", "recursive", "optimal", "undiscounted"];
const within = (value, low, high) => Math.min(high, Math.max(low, value));
const name = (tokens) => `{${tokens.map((t) => charts.LETTERS[t]).join(", ")}}`;

const app = document.getElementById("lab-app");
app.innerHTML = `
<div class="lab-bar">
  <label>Pair <select name="preset">${Object.entries(PRESETS).map(([key, { label }]) => `<option value="${key}">${label}</option>`).join("")}
    <option value="" hidden>your own</option></select></label>
  <div class="lab-step" role="group" aria-label="Vocabulary"><span>Tokens</span>
    <button type="button" data-do="fewer" aria-label="One token fewer">−</button><output name="size"></output>
    <button type="button" data-do="more" aria-label="One token more">+</button></div>
  <label class="lab-k">Drafts k <input type="range" name="k" min="1" max="${MAX_K}" step="1"><output name="k-shown"></output></label>
  <div class="lab-end"><button type="button" data-do="link">Copy link</button><button type="button" data-do="reset">Reset</button></div>
</div>
<div class="lab-row">
  <section class="lab-panel lab-wide" aria-labelledby="lab-1">
    <h2 id="lab-1">Two laws <span class="lab-key of-draft">draft p</span> <span class="lab-key of-target">target q</span></h2>
    <div class="lab-chart" data-chart="laws"></div>
    <p class="lab-note" data-text="cut"></p>
  </section>
  <section class="lab-panel" aria-labelledby="lab-2">
    <h2 id="lab-2">How often a drafted token is kept</h2>
    <table class="lab-table"><thead><tr><th scope="col">rule</th><th scope="col">acceptance</th><th scope="col">gap</th></tr></thead>
    <tbody></tbody></table>
    <div class="lab-chart" data-chart="curves"></div>
  </section>
</div>
<div class="lab-row lab-even">
  <section class="lab-panel" aria-labelledby="lab-3">
    <h2 id="lab-3">K-SEQ: a discount and a residual</h2>
    <dl class="lab-numbers" data-text="kseq"></dl>
    <div class="lab-chart" data-chart="kseq"></div>
  </section>
  <section class="lab-panel" aria-labelledby="lab-4">
    <h2 id="lab-4">Exact optimum: nested pools</h2>
    <p class="lab-note" data-text="pools"></p>
    <div class="lab-chart" data-chart="pools"></div>
  </section>
</div>
<section class="lab-panel" aria-labelledby="lab-5">
  <h2 id="lab-5">Sample</h2>
  <div class="lab-sample">
    <fieldset class="lab-rules"><legend class="lab-hidden">Rule to sample with</legend>${RULE_NAMES.map((rule) => `
      <label data-rule="${rule}"><input type="radio" name="rule" value="${rule}"><span>${LABELS[rule]}</span></label>`).join("")}</fieldset>
    <div class="lab-actions"><button type="button" data-do="one">Sample one</button><button type="button" data-do="thousand">1,000 more</button>
      <button type="button" data-do="run" class="lab-main">Run</button><button type="button" data-do="again">Start over</button></div>
  </div>
  <p class="lab-trace" data-text="trace"></p>
  <dl class="lab-numbers" data-text="sample"></dl>
  <div class="lab-row lab-even">
    <div><h3>Share of each token</h3><div class="lab-chart" data-chart="counts"></div></div>
    <div><h3>Total variation from the target</h3><div class="lab-chart" data-chart="distance"></div></div>
  </div>
  <p class="lab-hidden" aria-live="polite" data-text="said"></p>
</section>`;

const box = (chart) => app.querySelector(`[data-chart=${chart}]`);
const text = (key) => app.querySelector(`[data-text=${key}]`);
const control = (key) => app.querySelector(`[name="${key}"]`);
const rows = app.querySelector("tbody");

const draw = {
  laws: charts.lawsChart(box("laws"), move),
  curves: charts.curvesChart(box("curves"), (k) => change({ k })),
  kseq: charts.kseqChart(box("kseq")),
  pools: charts.poolsChart(box("pools")),
  counts: charts.countsChart(box("counts")),
  distance: charts.distanceChart(box("distance")),
};

// --- State. The address after # holds all of it; the draws come from a seed, so that `n` brings them back. ---

let state = null;
let run = null; // what was drawn so far
let found = null; // what the rules do on this pair

function encode({ preset, draft, target, k, rule, seed, n }) {
  const law = (values) => values.map((v) => +v.toPrecision(12)).join(",");
  const { make, size, from } = PRESETS[preset] ?? {};
  const pair = make ? `preset=${preset}${size || draft.length === from ? "" : `&v=${draft.length}`}` : `p=${law(draft)}&q=${law(target)}`;
  return `${pair}&k=${k}&rule=${rule}${n ? `&seed=${seed}&n=${n}` : ""}`;
}

function decode(fragment) {
  const given = new URLSearchParams(fragment);
  const whole = (key, low, high, otherwise) => (/^\d+$/.test(given.get(key) ?? "") ? within(+given.get(key), low, high) : otherwise);
  const law = (key) => {
    const values = (given.get(key) ?? "").split(",").map(Number);
    const good = values.length >= SIZES[0] && values.length <= SIZES[1] && values.every((v) => v >= 0 && v < 1e300) && T.sum(values) > 0;
    return good ? T.normalise(values) : null;
  };
  const chosen = {
    k: whole("k", 1, MAX_K, START.k),
    rule: RULE_NAMES.includes(given.get("rule")) ? given.get("rule") : START.rule,
    seed: whole("seed", 1, 2 ** 31 - 1, START.seed),
    n: whole("n", 0, MOST, START.n),
  };
  const [draft, target] = [law("p"), law("q")];
  if (draft && target && draft.length === target.length) return { ...chosen, preset: "", draft, target };
  const preset = Object.hasOwn(PRESETS, given.get("preset") ?? "") ? given.get("preset") : START.preset;
  return { ...chosen, preset, ...pair(preset, whole("v", ...SIZES, undefined)) };
}

function pair(preset, size) {
  const { make, size: fixed, from } = PRESETS[preset];
  const [draft, target] = make(fixed ?? size ?? from);
  return { draft, target };
}

const hasState = (hash) => /[#&](preset|p)=/.test(hash);
let lastWritten = "";
function remember() {
  const fragment = `#${encode(state)}`;
  if (fragment === lastWritten) return;
  lastWritten = fragment;
  history.replaceState(history.state, "", fragment);
}

// A new pair, k, rule or seed starts the sampling afresh; `n` draws are made at once.
function change(update, { animate = true, write = true } = {}) {
  stop();
  state = { ...state, n: 0, ...update };
  solve();
  start();
  show(animate);
  if (write) remember();
}

// --- Moving a bar: the others keep their proportions and share what is left ---

function withMass(law, token, value) {
  const mass = within(value, 0, 1);
  const rest = 1 - law[token];
  return law.map((v, y) => {
    if (y === token) return mass;
    return rest > 1e-12 ? (v / rest) * (1 - mass) : (1 - mass) / (law.length - 1);
  });
}

let held = null; // the law as it was when a drag began, so that going there and back changes nothing
function move(which, token, value, phase) {
  if (phase === "start") held = state[which];
  if (phase === "end") held = null;
  if (value === null) {
    if (phase === "end") { show(true); remember(); }
    return;
  }
  change({ preset: "", [which]: withMass(held ?? state[which], token, value) }, { animate: phase === "key", write: phase !== "drag" });
}

function resize(by) {
  const V = within(state.draft.length + by, ...SIZES);
  if (V === state.draft.length) return;
  if (state.preset && !PRESETS[state.preset].size) return change(pair(state.preset, V));
  const fit = (law) => {
    if (by > 0) return T.normalise([...law, 1 / law.length]);
    const kept = law.slice(0, V);
    return T.sum(kept) > 1e-12 ? T.normalise(kept) : kept.map(() => 1 / V);
  };
  change({ preset: "", draft: fit(state.draft), target: fit(state.target) });
}

// --- What the rules do on this pair ---

function solve() {
  const { draft, target, k, rule } = state;
  const ks = Array.from({ length: MAX_K }, (_, i) => i + 1);
  const one = T.couplingAcceptance(draft, target);
  const plan = T.nestedPlan(draft, target, k);
  found = {
    plan,
    best: T.optimum(draft, target, k),
    kseq: T.kseq(draft, target, k),
    guarantee: T.guarantee(draft, target, k),
    curves: [
      { rule: "optimal", values: ks.map((j) => T.optimum(draft, target, j).acceptance) },
      { rule: "kseq", values: ks.map((j) => T.kseq(draft, target, j).acceptance) },
      { rule: "recursive", values: ks.map((j) => T.recursive(draft, target, j).acceptance) },
      { rule: "coupling", values: ks.map(() => one) },
    ],
    pools: stacked(plan),
    made: T.RULES[rule].prepare(draft, target, k),
    bias: rule === "undiscounted" ? T.totalVariation(T.undiscountedLaw(draft, target, k), target) : 0,
  };
}

// Every pool as a rectangle: the classes it spans, and the range of Z over which it stands.
function stacked(plan) {
  const levels = [...new Set(plan.tau)].filter((t) => t < 1).sort((a, b) => a - b);
  const open = new Map();
  levels.forEach((low, i) => {
    for (const [first, last] of T.poolsAt(plan, low)) {
      const key = `${first}-${last}`;
      open.set(key, { first, last, low: open.get(key)?.low ?? low, high: levels[i + 1] ?? 1 });
    }
  });
  return [...open.values()];
}

function show(animate = false) {
  const { draft, target, k, preset } = state;
  const { best, kseq, plan, pools, curves } = found;
  control("preset").value = preset;
  control("k").value = k;
  control("k-shown").value = k;
  control("size").value = draft.length;
  app.querySelector("[data-do=fewer]").disabled = draft.length <= SIZES[0];
  app.querySelector("[data-do=more]").disabled = draft.length >= SIZES[1];
  draw.laws({ draft, target, set: best.set }, animate);
  draw.curves({ curves, k }, animate);
  draw.kseq({ target, ...kseq }, animate);
  text("cut").innerHTML = best.set.length
    ? `<b>Why not more?</b> ${k === 1 ? "The draft falls" : `All ${k} drafts fall`} in A = ${name(best.set)} with probability <b>${best.allInside.toFixed(4)}</b>;
       the target is there only <b>${best.wanted.toFixed(4)}</b> of the time. The difference is lost by every lossless rule.`
    : "Nothing is in the way: a lossless rule can always keep a drafted token.";
  rows.innerHTML = curves.map(({ rule, values }) => {
    const gap = best.acceptance - values[k - 1];
    const shown = rule === "optimal" ? "" : gap < 5e-7 ? "none" : `−${gap.toFixed(4)}`;
    return `<tr data-rule="${rule}"><th scope="row">${LABELS[rule]}</th><td>${values[k - 1].toFixed(4)}</td><td>${shown}</td></tr>`;
  }).join("");
  numbers("kseq", [
    ["discount ρ*", kseq.rho.toFixed(4)], ["one draft passes, β", kseq.beta.toFixed(4)],
    ["any passes", kseq.acceptance.toFixed(4)], ["guaranteed", found.guarantee.toFixed(4)],
  ]);
  text("pools").textContent = "Draw Z. Of the drafts in the highest pool at that level, one wins at random; it is coupled with the target as a single draft would be.";
  draw.pools({ plan, pools, last: state.rule === "optimal" ? run.last : null }, animate);
  showSample();
}

function numbers(key, pairs) {
  text(key).innerHTML = pairs.map(([what, value]) => `<div><dt>${what}</dt><dd>${value}</dd></div>`).join("");
}

// --- Sampling ---

function start() {
  const { draft, seed, n } = state;
  run = { random: T.generator(seed), counts: draft.map(() => 0), n: 0, kept: 0, trail: [], last: null };
  state.n = 0;
  sample(n);
}

function sample(count) {
  const { draft, target, k, rule } = state;
  const { select } = T.RULES[rule];
  for (let i = 0; i < Math.min(count, MOST - state.n); i++) {
    const drafts = Array.from({ length: k }, () => T.drawFrom(draft, run.random));
    const chosen = select(found.made, drafts, run.random);
    run.counts[chosen.token]++;
    run.kept += drafts.includes(chosen.token);
    run.n++;
    run.last = { ...chosen, drafts };
    // About forty points to a decade.
    if (run.n >= 1.06 * (run.trail.at(-1)?.[0] ?? 0)) run.trail.push([run.n, distance(target)]);
  }
  state.n = run.n;
}

const distance = (target) => T.totalVariation(run.counts.map((c) => c / run.n), target);

function showSample() {
  const { draft, target, rule, k } = state;
  const { n, counts, kept, trail, last } = run;
  for (const input of app.querySelectorAll("[name=rule]")) input.checked = input.value === rule;
  const now = n ? [...trail, [n, distance(target)]] : [];
  draw.counts({ target, counts, n, rule });
  draw.distance({ trail: now, expected: (m) => T.expectedVariation(target, m), bias: found.bias, rule, most: MOST });
  const curve = found.curves.find((c) => c.rule === rule);
  numbers("sample", [
    ["tokens selected", n.toLocaleString("en")],
    ["drafted token kept", n ? (kept / n).toFixed(4) : "–"],
    ["exact acceptance", (curve ? curve.values[k - 1] : T.kseq(draft, target, k, 1).acceptance).toFixed(4)],
    ["total variation", n ? distance(target).toFixed(4) : "–"],
    ["expected of a lossless rule", n ? T.expectedVariation(target, n).toFixed(4) : "–"],
  ]);
  text("trace").innerHTML = last ? trace(last) : `Press <b>Sample one</b>: ${k === 1 ? "one token is" : `${k} tokens are`} drafted, one is selected.`;
  for (const key of ["one", "thousand", "run"]) app.querySelector(`[data-do=${key}]`).disabled = n >= MOST && !timer;
  app.querySelector("[data-do=run]").textContent = timer ? "Pause" : "Run";
}

function trace({ drafts, kept, token, chosen }) {
  const letter = (t) => charts.LETTERS[t];
  const passedOver = (i) => (chosen === undefined ? kept < 0 || i < kept : i === chosen && kept < 0);
  const drafted = drafts.map((t, i) => `<span class="${i === kept ? "lab-kept" : passedOver(i) ? "lab-refused" : "lab-unread"}">${letter(t)}</span>`).join(" ");
  const end = kept >= 0 ? `keep <span class="lab-kept">${letter(token)}</span>` : `none kept; the residual gives <span class="lab-resid">${letter(token)}</span>`;
  return `drafted ${drafted} <span class="lab-arrow" aria-hidden="true">→</span> ${end}`;
}

let timer = 0;
function stop() {
  cancelAnimationFrame(timer);
  timer = 0;
}

// The first draws come slowly enough to be read, then ever faster.
function play() {
  const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let due = 0;
  const frame = (now) => {
    if (now >= due) {
      sample(reduced ? 500 : Math.ceil(run.n / 40));
      due = reduced ? now + 250 : run.n <= 6 ? now + 380 : run.n < 30 ? now + 90 : now;
      drawn();
    }
    if (state.n >= MOST) finish();
    else timer = requestAnimationFrame(frame);
  };
  timer = requestAnimationFrame(frame);
  showSample();
}

function drawn() {
  showSample();
  if (state.rule === "optimal") draw.pools({ plan: found.plan, pools: found.pools, last: run.last }, false);
}

function finish() {
  stop();
  drawn();
  remember();
  text("said").textContent = `${state.n} tokens selected with ${LABELS[state.rule]}: total variation ${distance(state.target).toFixed(4)}, expected of a lossless rule ${T.expectedVariation(state.target, state.n).toFixed(4)}.`;
}

const DO = {
  fewer: () => resize(-1),
  more: () => resize(1),
  one: () => { stop(); sample(1); finish(); },
  thousand: () => { stop(); sample(1000); finish(); },
  run: () => (timer ? finish() : play()),
  again: () => change({ seed: state.seed + 1 }),
  reset: () => change(decode("")),
  async link(button) {
    remember();
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "In the address bar";
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  },
};

app.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) DO[button.dataset.do](button);
});
control("preset").addEventListener("change", ({ target }) => change({ preset: target.value, ...pair(target.value) }));
control("k").addEventListener("input", ({ target }) => change({ k: +target.value }));
app.addEventListener("change", ({ target }) => { if (target.name === "rule") change({ rule: target.value }); });
for (const button of document.querySelectorAll("[data-lab-state]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    change(decode(button.dataset.labState));
    app.scrollIntoView({ block: "start" });
  });
}
addEventListener("hashchange", () => {
  if (hasState(location.hash) && location.hash !== lastWritten) change(decode(location.hash.slice(1)), { write: false });
});
let seen = 0;
new ResizeObserver(() => {
  if (app.clientWidth !== seen && state) show();
  seen = app.clientWidth;
}).observe(app);

const given = hasState(location.hash);
change(decode(given ? location.hash.slice(1) : ""), { animate: false, write: false });
app.dataset.ready = "true";
})();
