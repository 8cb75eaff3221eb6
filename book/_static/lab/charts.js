// Drawing. Each chart is made once in its box and draws a view of the state as often as asked.
"use strict";

lab.charts = (() => {
const { select, scaleBand, scaleLinear, scaleLog, drag, line } = d3;
const { LABELS } = lab;

const LETTERS = "abcdefghijklmnop";
const still = matchMedia("(prefers-reduced-motion: reduce)");
const moved = (selection, animate) =>
  animate && !still.matches ? selection.transition().duration(180) : selection.interrupt();
const short = (value) => value.toFixed(2).replace(/^0(?=\.)/, "");

// An <svg> as wide as its box; `height` in px. role "img" needs a spoken label from each draw.
function canvas(box, height, role = "img") {
  const svg = select(box).append("svg").attr("role", role).attr("height", height);
  const width = () => Math.max(240, box.clientWidth);
  return { svg, width, fit: () => { svg.attr("width", width()); return width(); } };
}

// One element of `kind` per datum, by key, with `attributes` set (moving there when `animate`).
function marks(parent, kind, className, data, key, attributes, animate) {
  const joined = parent.selectAll(`${kind}.${className.split(" ")[0]}`).data(data, key);
  const entered = joined.enter().append(kind).attr("class", className);
  for (const [name, value] of Object.entries(attributes)) entered.attr(name, value);
  joined.exit().remove();
  const going = moved(joined, animate);
  for (const [name, value] of Object.entries(attributes)) going.attr(name, value);
  return entered.merge(joined);
}

const words = (parent, className, data, key, attributes, text) =>
  marks(parent, "text", className, data, key, attributes, false).text(text);

// --- 1. The two laws: every bar is a slider ---

function lawsChart(box, onChange) {
  const height = 292;
  const margin = { top: 18, right: 2, bottom: 62, left: 30 };
  const { svg, fit } = canvas(box, height, "group");
  svg.attr("aria-label", "Draft and target probabilities, one slider per bar");
  const y = scaleLinear().range([height - margin.bottom, margin.top]);
  const ground = svg.append("g").attr("aria-hidden", "true");
  const bars = svg.append("g");
  let dragging = false;
  let sizes = null;

  const valueAt = (event) => Math.round(100 * y.invert(event.y)) / 100;
  const slide = drag()
    // A finger scrolls the page unless it starts on a handle; a mouse may start anywhere in the bar's column.
    .filter((event) => !event.button && (event.type !== "touchstart" || event.target.classList.contains("handle")))
    .subject((event) => ({ x: event.x, y: event.y }))
    .container(() => svg.node())
    .on("start", function (event, d) {
      dragging = true;
      select(this).classed("held", true).node().focus({ preventScroll: true });
      onChange(d.which, d.token, event.sourceEvent.type === "touchstart" ? null : valueAt(event), "start");
    })
    .on("drag", (event, d) => onChange(d.which, d.token, valueAt(event), "drag"))
    .on("end", function (event, d) {
      dragging = false;
      select(this).classed("held", false);
      onChange(d.which, d.token, null, "end");
    });
  const STEPS = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 };

  function key(event, d) {
    const ends = { Home: 0, End: 1 };
    if (!(event.key in STEPS) && !(event.key in ends)) return;
    event.preventDefault();
    const step = STEPS[event.key] * (event.shiftKey && Math.abs(STEPS[event.key]) < 0.1 ? 10 : 1);
    onChange(d.which, d.token, ends[event.key] ?? d.value + step, "key");
  }

  return function draw({ draft, target, set }, animate) {
    const width = fit();
    const V = draft.length;
    const band = scaleBand(draft.map((_, i) => i), [margin.left, width - margin.right]).paddingInner(0.22).paddingOuter(0.04);
    const each = band.bandwidth() / 2;
    const top = Math.min(1, Math.ceil((Math.max(...draft, ...target) + 0.1) * 5) / 5);
    if (!dragging) y.domain([0, top]);
    const base = y(0);

    const ticks = [0, 0.5, 1].map((t) => t * y.domain()[1]);
    marks(ground, "line", "grid", ticks, (_, i) => i, { x1: margin.left, x2: width, y1: y, y2: y }, animate);
    words(ground, "tick", ticks, (_, i) => i, { x: margin.left - 6, y: (t) => y(t) + 3.5, "text-anchor": "end" }, (t) => (t ? short(t) : "0"));

    const tokens = draft.map((_, i) => i);
    const middle = (i) => band(i) + each;
    words(ground, "token", tokens, (i) => i, { x: middle, y: base + 17, "text-anchor": "middle" }, (i) => LETTERS[i]);
    const ratio = (i) => (draft[i] > 0 ? target[i] / draft[i] : target[i] > 0 ? Infinity : NaN);
    words(ground, "ratio", tokens, (i) => i, { x: middle, y: base + 35, "text-anchor": "middle" }, (i) => {
      const r = ratio(i);
      return Number.isNaN(r) ? "–" : r === Infinity ? "∞" : r >= 10 ? r.toFixed(0) : r.toFixed(2);
    });
    words(ground, "ratio-name", [0], (i) => i, { x: margin.left - 6, y: base + 35, "text-anchor": "end" }, () => "q/p");
    const inside = tokens.filter((i) => set.includes(i));
    marks(ground, "line", "cut", inside, (i) => i, {
      x1: band, x2: (i) => band(i) + 2 * each, y1: base + 46, y2: base + 46,
    }, false);
    words(ground, "cut-name", inside.slice(0, 1), () => 0, { x: margin.left - 6, y: base + 50, "text-anchor": "end" }, () => "A");

    const data = tokens.flatMap((token) => [
      { which: "draft", token, value: draft[token], x: band(token) },
      { which: "target", token, value: target[token], x: band(token) + each },
    ]);
    const groups = bars.selectAll("g.bar").data(data, (d) => `${d.which}${d.token}`);
    groups.exit().remove();
    const entered = groups.enter().append("g").attr("class", (d) => `bar of-${d.which}`)
      .attr("role", "slider").attr("tabindex", 0)
      .attr("aria-orientation", "vertical").attr("aria-valuemin", 0).attr("aria-valuemax", 1)
      .attr("aria-label", (d) => `${d.which === "draft" ? "Draft p" : "Target q"} of token ${LETTERS[d.token]}`)
      .on("keydown", key).call(slide);
    entered.append("rect").attr("class", "column").on("click", (event, d) => {
      // A tap: the drag filter let it pass.
      if (event.pointerType === "touch") {
        const at = y.invert(event.clientY - svg.node().getBoundingClientRect().top);
        onChange(d.which, d.token, Math.round(100 * at) / 100, "key");
      }
    });
    entered.append("rect").attr("class", "fill").attr("y", base).attr("height", 0);
    entered.append("rect").attr("class", "ring");
    entered.append("line").attr("class", "grip");
    entered.append("text").attr("class", "value").attr("text-anchor", "middle").attr("aria-hidden", "true");
    entered.append("rect").attr("class", "handle");
    const all = entered.merge(groups).classed("narrow", each < 20)
      .attr("aria-valuenow", (d) => +d.value.toFixed(4)).attr("aria-valuetext", (d) => d.value.toFixed(3));
    const clip = (v) => Math.max(0, y(v));
    const put = (name, attributes, animated = animate) => {
      const going = moved(all.select(name), animated && sizes === `${V} ${width}`);
      for (const [attribute, value] of Object.entries(attributes)) going.attr(attribute, value);
    };
    const inset = Math.min(2, each * 0.06);
    put(".column", { x: (d) => d.x, width: each, y: 0, height: height - margin.bottom }, false);
    put(".fill", { x: (d) => d.x + inset, width: each - 2 * inset, y: (d) => clip(d.value), height: (d) => Math.max(0, base - clip(d.value)) });
    put(".ring", { x: (d) => d.x - 1, width: each + 2, y: (d) => clip(d.value) - 16, height: (d) => base - clip(d.value) + 18, rx: 3 }, false);
    put(".grip", { x1: (d) => d.x + inset, x2: (d) => d.x + each - inset, y1: (d) => clip(d.value), y2: (d) => clip(d.value) });
    put(".value", { x: (d) => d.x + each / 2, y: (d) => clip(d.value) - 5 });
    put(".handle", { x: (d) => d.x, width: each, y: (d) => clip(d.value) - 26, height: 44 }, false);
    all.select(".value").text((d) => (d.value === 0 ? "0" : d.value === 1 ? "1" : short(d.value)));
    sizes = `${V} ${width}`;
  };
}

// --- 2. Acceptance against k ---

function curvesChart(box, onPick) {
  const height = 218;
  const margin = { top: 12, right: 118, bottom: 34, left: 34 };
  const { svg, fit } = canvas(box, height);
  const root = svg.append("g");
  const x = scaleLinear();
  const y = scaleLinear().range([height - margin.bottom, margin.top]);
  svg.on("click", (event) => {
    const k = Math.round(x.invert(event.clientX - svg.node().getBoundingClientRect().left));
    if (k >= 1 && k <= 16) onPick(k);
  });

  return function draw({ curves, k }, animate) {
    const width = fit();
    x.domain([1, 16]).range([margin.left, width - margin.right]);
    const low = Math.min(...curves.map((c) => Math.min(...c.values)));
    y.domain([low > 0.999 ? 0 : Math.floor(low * 10 - 1e-9) / 10, 1]);
    if (y.domain()[0] < 0) y.domain([0, 1]);
    const ticks = [y.domain()[0], (y.domain()[0] + 1) / 2, 1];
    marks(root, "line", "grid", ticks, (_, i) => i, { x1: margin.left, x2: width - margin.right, y1: y, y2: y }, animate);
    words(root, "tick", ticks, (_, i) => i, { x: margin.left - 6, y: (t) => y(t) + 3.5, "text-anchor": "end" }, (t) => (t === 0 ? "0" : t === 1 ? "1" : short(t)));
    words(root, "tick-k", [1, 4, 8, 12, 16], (t) => t, { x, y: height - margin.bottom + 17, "text-anchor": "middle" }, (t) => t);
    words(root, "axis", [0], (i) => i, { x: (x(1) + x(16)) / 2, y: height - 2, "text-anchor": "middle" }, () => "drafts k");
    marks(root, "line", "now", [k], () => 0, { x1: x, x2: x, y1: margin.top, y2: height - margin.bottom }, animate);
    const path = line().x((_, i) => x(i + 1)).y((v) => y(v));
    marks(root, "path", "curve", curves, (c) => c.rule, { d: (c) => path(c.values), "data-rule": (c) => c.rule }, animate);
    marks(root, "circle", "dot", curves, (c) => c.rule, {
      cx: x(k), cy: (c) => y(c.values[k - 1]), r: 4, "data-rule": (c) => c.rule,
    }, animate);
    // Names at the ends of the lines, pushed apart where they would overlap.
    const names = curves.map((c) => ({ rule: c.rule, at: y(c.values.at(-1)) })).sort((a, b) => a.at - b.at);
    names.forEach((n, i) => { n.put = Math.max(n.at, i ? names[i - 1].put + 15 : margin.top); });
    const spill = Math.max(0, names.at(-1).put - (height - margin.bottom));
    if (spill) for (let i = names.length - 1, floor = height - margin.bottom; i >= 0; i--, floor -= 15) names[i].put = Math.min(names[i].put, floor);
    marks(root, "line", "leader", names, (n) => n.rule, {
      x1: x(16) + 3, x2: x(16) + 12, y1: (n) => n.at, y2: (n) => n.put, "data-rule": (n) => n.rule,
    }, animate);
    words(root, "name", names, (n) => n.rule, { x: x(16) + 16, y: (n) => n.put + 4, "data-rule": (n) => n.rule }, (n) => LABELS[n.rule]);
    svg.attr("aria-label", `Acceptance against the number of drafts. At k = ${k}: ${curves.map((c) => `${LABELS[c.rule]} ${c.values[k - 1].toFixed(4)}`).join(", ")}.`);
  };
}

// --- 3. K-SEQ: what its loop emits of each token, and the residual that fills the rest ---

function kseqChart(box) {
  const height = 196;
  const margin = { top: 18, right: 2, bottom: 26, left: 2 };
  const { svg, fit } = canvas(box, height);
  const hatch = svg.append("defs").append("pattern").attr("id", "lab-hatch").attr("width", 6).attr("height", 6)
    .attr("patternUnits", "userSpaceOnUse").attr("patternTransform", "rotate(45)");
  hatch.append("line").attr("class", "hatch").attr("y2", 6).attr("x1", 1).attr("x2", 1);
  const root = svg.append("g");

  return function draw({ target, emitted, residual }, animate) {
    const width = fit();
    const band = scaleBand(target.map((_, i) => i), [margin.left, width - margin.right]).paddingInner(0.3).paddingOuter(0.1);
    const y = scaleLinear([0, Math.max(...target)], [height - margin.bottom, margin.top]);
    const base = y(0);
    marks(root, "line", "grid", [0], (i) => i, { x1: margin.left, x2: width, y1: base, y2: base }, false);
    const tokens = target.map((_, i) => i);
    const common = { x: band, width: band.bandwidth() };
    marks(root, "rect", "emitted", tokens, (i) => i, { ...common, y: (i) => y(emitted[i]), height: (i) => base - y(emitted[i]) }, animate);
    marks(root, "rect", "residual", tokens, (i) => i, {
      ...common, y: (i) => y(emitted[i] + residual[i]), height: (i) => Math.max(0, y(emitted[i]) - y(emitted[i] + residual[i])),
    }, animate);
    marks(root, "line", "aim", tokens, (i) => i, {
      x1: (i) => band(i) - 3, x2: (i) => band(i) + band.bandwidth() + 3, y1: (i) => y(target[i]), y2: (i) => y(target[i]),
    }, animate);
    words(root, "token", tokens, (i) => i, { x: (i) => band(i) + band.bandwidth() / 2, y: base + 17, "text-anchor": "middle" }, (i) => LETTERS[i]);
    // Direct labels, on the token with the most of each.
    const widest = (values) => values.indexOf(Math.max(...values));
    const [e, r] = [widest(emitted), widest(residual)];
    const notes = [];
    if (residual[r] > 1e-9) notes.push({ key: "residual", i: r, text: "residual", at: y(emitted[r] + residual[r]) - 5 });
    if (emitted[e] > 1e-9 && e !== r) notes.push({ key: "emitted", i: e, text: "the loop", at: y(emitted[e] + residual[e]) - 5 });
    words(root, "note", notes, (n) => n.key, {
      x: (n) => Math.min(width - 26, Math.max(margin.left + 24, band(n.i) + band.bandwidth() / 2)), y: (n) => n.at, "text-anchor": "middle",
    }, (n) => n.text);
    svg.attr("aria-label", `What K-SEQ emits of each token, loop and residual: ${tokens.map((i) => `${LETTERS[i]} ${emitted[i].toFixed(3)} and ${residual[i].toFixed(3)}`).join(", ")}.`);
  };
}

// --- 4. Nested pools: tokens in the order of q/p, Z upwards ---

function poolsChart(box) {
  const height = 232;
  const margin = { top: 18, right: 34, bottom: 44, left: 30 };
  const { svg, fit } = canvas(box, height);
  const root = svg.append("g");
  const over = svg.append("g");

  return function draw({ plan, pools, last }, animate) {
    const width = fit();
    const V = plan.order.length;
    const x = scaleLinear([0, V], [margin.left, width - margin.right]);
    const z = scaleLinear([0, 1], [height - margin.bottom, margin.top]);
    marks(root, "rect", "pool", pools, (p) => `${p.first}-${p.last}`, {
      x: (p) => x(p.first) + 1, width: (p) => x(p.last) - x(p.first) - 2, y: (p) => z(p.high) + 1,
      height: (p) => Math.max(0.5, z(p.low) - z(p.high) - 2), rx: 2, "fill-opacity": (p) => 0.16 + (0.62 * (p.first + p.last) / 2) / V,
    }, animate);
    words(root, "token", plan.order, (t) => t, { x: (t) => x(plan.position[t] + 0.5), y: height - margin.bottom + 17, "text-anchor": "middle" }, (t) => LETTERS[t]);
    words(root, "tick", [0, 1], (t) => t, { x: margin.left - 6, y: (t) => z(t) + 3.5, "text-anchor": "end" }, (t) => t);
    words(root, "axis", [0], (i) => i, { x: margin.left - 6, y: z(0.5) + 4, "text-anchor": "end" }, () => "Z");
    words(root, "axis-x", [0], (i) => i, { x: (x(0) + x(V)) / 2, y: height - 6, "text-anchor": "middle" }, () => "tokens by q/p, the scarce ones to the right →");
    const shown = last && last.z !== undefined ? [last] : [];
    marks(over, "line", "level", shown, () => 0, { x1: margin.left, x2: width - margin.right, y1: (d) => z(d.z), y2: (d) => z(d.z) }, false);
    words(over, "level-name", shown, () => 0, { x: width - margin.right + 4, y: (d) => z(d.z) + 4 }, (d) => short(d.z));
    const seen = {};
    const balls = shown.flatMap((d) => d.drafts.map((t, i) => {
      const nth = (seen[t] = (seen[t] ?? 0) + 1);
      return { i, cx: x(plan.position[t]) + ((x(1) - x(0)) * nth) / (d.drafts.filter((o) => o === t).length + 1), cy: z(d.z), won: i === d.chosen };
    }));
    marks(over, "circle", "ball", balls, (b) => b.i, { cx: (b) => b.cx, cy: (b) => b.cy, r: (b) => (b.won ? 6.5 : 4.5) }, false).classed("won", (b) => b.won);
    svg.attr("aria-label", `Nested pools. Tokens by q/p: ${plan.order.map((t) => LETTERS[t]).join(" ")}. ${plan.tau.slice(1).map((t, j) => `${LETTERS[plan.order[j]]} and ${LETTERS[plan.order[j + 1]]} part at Z = ${t.toFixed(3)}`).join(", ")}.`);
  };
}

// --- 5. Counts against the target, and the distance on its way down ---

function countsChart(box) {
  const height = 196;
  const margin = { top: 18, right: 2, bottom: 26, left: 2 };
  const { svg, fit } = canvas(box, height);
  const root = svg.append("g");

  return function draw({ target, counts, n, rule }) {
    const width = fit();
    const share = counts.map((c) => (n ? c / n : 0));
    const band = scaleBand(target.map((_, i) => i), [margin.left, width - margin.right]).paddingInner(0.3).paddingOuter(0.1);
    // Early shares are wild: they may pass the top until there are twenty.
    const y = scaleLinear([0, Math.max(...target, ...(n > 20 ? share : []))], [height - margin.bottom, margin.top]).clamp(true);
    const base = y(0);
    marks(root, "line", "grid", [0], (i) => i, { x1: margin.left, x2: width, y1: base, y2: base }, false);
    const tokens = target.map((_, i) => i);
    marks(root, "rect", "count", tokens, (i) => i, { x: band, width: band.bandwidth(), y: (i) => y(share[i]), height: (i) => base - y(share[i]), "data-rule": rule }, false);
    marks(root, "line", "aim", tokens, (i) => i, { x1: (i) => band(i) - 3, x2: (i) => band(i) + band.bandwidth() + 3, y1: (i) => y(target[i]), y2: (i) => y(target[i]) }, false);
    words(root, "token", tokens, (i) => i, { x: (i) => band(i) + band.bandwidth() / 2, y: base + 17, "text-anchor": "middle" }, (i) => LETTERS[i]);
    // Named once, where the bar does not stand in the way.
    const room = tokens.map((i) => target[i] - 10 * Math.max(0, share[i] - target[i] - 0.01));
    const top = room.indexOf(Math.max(...room));
    words(root, "aim-name", [top], () => 0, { x: Math.min(width - 20, Math.max(margin.left + 20, band(top) + band.bandwidth() / 2)), y: y(target[top]) - 6, "text-anchor": "middle" }, () => "target");
    svg.attr("aria-label", `Shares of the ${n} tokens selected: ${tokens.map((i) => `${LETTERS[i]} ${share[i].toFixed(3)}, target ${target[i].toFixed(3)}`).join("; ")}.`);
  };
}

function distanceChart(box) {
  const height = 196;
  const margin = { top: 18, right: 10, bottom: 34, left: 44 };
  const { svg, fit } = canvas(box, height);
  const root = svg.append("g");

  return function draw({ trail, expected, bias, rule, most }) {
    const width = fit();
    const x = scaleLog([1, most], [margin.left, width - margin.right]);
    const y = scaleLog([1e-4, 1], [height - margin.bottom, margin.top]).clamp(true);
    const powers = [1, 0.1, 0.01, 0.001, 0.0001];
    marks(root, "line", "grid", powers, (t) => t, { x1: margin.left, x2: width - margin.right, y1: y, y2: y }, false);
    words(root, "tick", powers, (t) => t, { x: margin.left - 6, y: (t) => y(t) + 3.5, "text-anchor": "end" }, (t) => String(t));
    const ns = [1, 10, 100, 1e3, 1e4, 1e5].filter((n) => n <= most);
    words(root, "tick-n", ns, (t) => t, { x, y: height - margin.bottom + 16, "text-anchor": (t) => (t === most ? "end" : "middle") }, (t) => (t >= 1000 ? `${t / 1000}k` : t));
    words(root, "axis", [0], (i) => i, { x: (margin.left + width - margin.right) / 2, y: height - 2, "text-anchor": "middle" }, () => "tokens selected");
    const path = line().x((d) => x(d[0])).y((d) => y(d[1]));
    marks(root, "path", "expected", expected(1) > 0 ? [0] : [], (i) => i, { d: path([[1, expected(1)], [most, expected(most)]]) }, false);
    words(root, "expected-name", expected(1) > 0 ? [0] : [], (i) => i, { x: x(1) + 6, y: y(expected(x.invert(x(1) + 175))) + 20, "text-anchor": "start" }, () => "expected of a lossless rule");
    const floor = bias > 1e-9 ? [bias] : [];
    marks(root, "line", "bias", floor, () => 0, { x1: margin.left, x2: width - margin.right, y1: y, y2: y }, false);
    words(root, "bias-name", floor, () => 0, { x: width - margin.right, y: (b) => y(b) - 6, "text-anchor": "end" }, (b) => `its bias, ${b.toFixed(3)}`);
    marks(root, "path", "trail", trail.length > 1 ? [trail] : [], () => 0, { d: path, "data-rule": rule }, false);
    marks(root, "circle", "head", trail.length ? [trail.at(-1)] : [], () => 0, { cx: (d) => x(d[0]), cy: (d) => y(d[1]), r: 3.5, "data-rule": rule }, false);
    svg.attr("aria-label", trail.length ? `Total variation from the target after ${trail.at(-1)[0]} tokens: ${trail.at(-1)[1].toFixed(4)}.` : "Total variation from the target: nothing sampled yet.");
  };
}

return { LETTERS, lawsChart, curvesChart, kseqChart, poolsChart, countsChart, distanceChart };
})();
