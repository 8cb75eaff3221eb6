// Drives the transport lab in headless Chromium for test_lab.py: reads questions on stdin, answers in JSON on stdout.
//   node lab.mjs CHROMIUM NODE_FOLDER ROOT
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";

const [chromiumPath, nodeFolder, root] = process.argv.slice(2);
const require = createRequire(join(nodeFolder, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const asked = JSON.parse(readFileSync(0, "utf8"));

// The lab's own markup, from the page's source, without the theme around it.
const source = readFileSync(join(root, "book", "transport-lab.md"), "utf8").replaceAll(/"\.\.\/(_static|d3)\//g, '"/$1/');
const markup = source.match(/```\{raw\} html\n([\s\S]*?)\n```/)[1];
const buttons = source.match(/<button.*<\/button>/g).join("\n");
const shell = `<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Transport lab</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><link rel="stylesheet" href="/_static/book.css"><style>
html[data-theme="light"] { --pst-color-background: #fff; --pst-color-text-base: #222832; --pst-color-text-muted: #48566b; --pst-color-border: #d1d5da; }
html[data-theme="dark"] { --pst-color-background: #14181e; --pst-color-text-base: #ced6dd; --pst-color-text-muted: #9ca4af; --pst-color-border: #48566b; }
* { box-sizing: border-box; } body { background: var(--pst-color-background); color: var(--pst-color-text-base); padding: 8px; margin: 0; }
</style></head><body><main><h1>Transport lab</h1><h2>Laws</h2>${markup}${buttons}</main></body></html>`;

const TYPES = { ".js": "text/javascript", ".css": "text/css", ".woff2": "font/woff2" };
const server = createServer((request, response) => {
  const path = normalize(new URL(request.url, "http://x").pathname);
  if (path === "/") return response.writeHead(200, { "Content-Type": "text/html" }).end(shell);
  const file = path.startsWith("/d3/") ? join(root, "book", "_vendor", path) : join(root, "book", path);
  try {
    const body = readFileSync(file);
    response.writeHead(200, { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const origin = `http://127.0.0.1:${server.address().port}/`;
const SLOW = 120_000; // ms; a busy machine is no failure
const browser = await chromium.launch({ executablePath: chromiumPath, headless: true, timeout: SLOW, args: ["--no-sandbox", "--disable-gpu"] });

const errors = [];
async function open(hash = "", { width = 1280, colorScheme = "light", touch = false } = {}) {
  const context = await browser.newContext({
    viewport: { width, height: 900 }, colorScheme, hasTouch: touch, reducedMotion: "reduce",
  });
  context.setDefaultTimeout(SLOW);
  const page = await context.newPage();
  page.on("request", (r) => { if (!r.url().startsWith(origin) && !r.url().startsWith("data:")) errors.push(`asks ${r.url()}`); });
  page.on("response", (r) => { if (r.status() >= 400) errors.push(`${r.status()} ${r.url()}`); });
  page.on("console", (m) => { if (m.type() === "error") errors.push(m.text()); });
  page.on("pageerror", (e) => errors.push(e.stack));
  await page.goto(origin + hash, { waitUntil: "load" });
  await page.waitForSelector("#lab-app[data-ready]");
  await page.evaluate((theme) => { document.documentElement.dataset.theme = theme; }, colorScheme);
  return page;
}

const law = (page, which) => page.$$eval(`.bar.of-${which}`, (bars) => bars.map((b) => Number(b.getAttribute("aria-valuenow"))));
const hash = (page) => page.evaluate(() => location.hash);
const cells = (page) => page.$$eval(".lab-table tbody tr", (rows) => Object.fromEntries(rows.map((r) => [r.dataset.rule, r.children[1].textContent])));

const answers = {};

// 1. The formulae
const page = await open();
answers.numbers = await page.evaluate(async ({ pairs, enumerated }) => {
  const T = lab.transport;
  return pairs.map(({ draft, target, k }) => {
    const made = {
      optimum: T.optimum(draft, target, k).acceptance, set: T.optimum(draft, target, k).set,
      coupling: T.couplingAcceptance(draft, target), kseq: T.kseq(draft, target, k), guarantee: T.guarantee(draft, target, k),
      recursive: T.recursive(draft, target, k).acceptance, winner: T.nestedPlan(draft, target, k).winner,
      undiscounted: T.undiscountedLaw(draft, target, k),
    };
    if (draft.length ** k <= enumerated) {
      made.laws = Object.fromEntries(Object.keys(T.RULES).map((r) => [r, T.outputLaw(r, draft, target, k)]));
      const tuples = Array.from({ length: draft.length ** k }, (_, i) => Array.from({ length: k }, (_, j) => Math.floor(i / draft.length ** (k - 1 - j)) % draft.length));
      made.conditional = Object.fromEntries(Object.keys(T.RULES).map((r) => {
        const prepared = T.RULES[r].prepare(draft, target, k);
        return [r, tuples.map((x) => T.RULES[r].conditional(prepared, x))];
      }));
    }
    return made;
  });
}, asked);

answers.presets = await page.evaluate(async () => {
  return Object.fromEntries(Object.entries(lab.PRESETS).map(([key, { make, size }]) => [
    key, (size ? [size] : [2, 3, 4, 5, 6, 7, 8]).map((V) => make(V)),
  ]));
});

// 2. The selection of tokens, without the page
answers.samples = await page.evaluate(async ({ sampled, draws }) => {
  const T = lab.transport;
  return sampled.map(({ rule, draft, target, k, seed }) => {
    const random = T.generator(seed);
    const made = T.RULES[rule].prepare(draft, target, k);
    const counts = draft.map(() => 0);
    let kept = 0;
    for (let i = 0; i < draws; i++) {
      const drafts = Array.from({ length: k }, () => T.drawFrom(draft, random));
      const { token } = T.RULES[rule].select(made, drafts, random);
      counts[token]++;
      kept += drafts.includes(token);
    }
    return { counts, kept };
  });
}, asked);

// 3. The page: keyboard
answers.start = { draft: await law(page, "draft"), target: await law(page, "target"), cells: await cells(page) };
const first = page.locator(".bar.of-draft").first();
await first.focus();
for (const key of ["ArrowUp", "ArrowUp", "ArrowDown", "PageUp"]) await page.keyboard.press(key);
answers.keyboard = { draft: await law(page, "draft"), hash: await hash(page), focused: await page.evaluate(() => document.activeElement.getAttribute("aria-label")) };
await page.keyboard.press("End");
answers.end = await law(page, "draft");
await page.keyboard.press("Home");
answers.home = await law(page, "draft");

// pointer: there, and back to where it was
await page.click("[data-do=reset]");
answers.reset = { draft: await law(page, "draft"), hash: await hash(page) };
const box = await page.locator(".bar.of-target .column").nth(1).boundingBox();
const grip = await page.locator(".bar.of-target .grip").nth(1).boundingBox();
const floor = box.y + box.height;
const [x, per] = [box.x + box.width / 2, (floor - grip.y) / 0.3];
await page.mouse.move(x, floor - 0.3 * per);
await page.mouse.down();
await page.mouse.move(x, floor - 1.2 * per, { steps: 4 });
answers.dragHigh = await law(page, "target");
await page.mouse.move(x, floor - 0.5 * per, { steps: 4 });
await page.mouse.up();
answers.drag = { target: await law(page, "target"), hash: await hash(page), cells: await cells(page) };

// the address holds everything
await page.selectOption("[name=preset]", "temperature");
await page.locator("[name=k]").fill("5");
await page.check("[name=rule][value=optimal]");
await page.click("[data-do=thousand]");
await page.click("[data-do=one]");
const shown = (p) => p.$$eval("#lab-app :is(select, output, td, dd, svg, [role=slider], .lab-trace)", (all) => all
  .map((e) => e.getAttribute("aria-valuetext") ?? e.getAttribute("aria-label") ?? e.value ?? e.textContent).join(" | "));
answers.link = { hash: await hash(page), text: await shown(page) };
const again = await open(answers.link.hash);
answers.restored = { hash: await hash(again), text: await shown(again) };
await again.evaluate(() => { location.hash = "#p=1,2,1&q=0.5,0,0.5&k=99&rule=nonsense"; });
await again.waitForFunction(() => document.querySelectorAll(".bar").length === 6);
answers.odd = { draft: await law(again, "draft"), k: await again.inputValue("[name=k]") };
await again.evaluate(() => { location.hash = "#p=1,-2&q=x,1&k=2"; });
await again.waitForFunction(() => document.querySelector("[name=k]").value === "2");
answers.broken = await law(again, "draft");

// vocabulary, buttons of the experiments, running to the end
await page.click("[data-do=reset]");
for (let i = 0; i < 9; i++) if (await page.isEnabled("[data-do=more]")) await page.click("[data-do=more]");
answers.more = await law(page, "draft");
for (let i = 0; i < 9; i++) if (await page.isEnabled("[data-do=fewer]")) await page.click("[data-do=fewer]");
answers.fewer = await law(page, "target");
answers.experiments = [];
for (const button of await page.$$("[data-lab-state]")) {
  await button.click();
  answers.experiments.push({ state: await button.getAttribute("data-lab-state"), cells: await cells(page), hash: await hash(page), cut: await page.textContent("[data-text=cut]") });
}
await page.click("[data-do=reset]");
await page.click("[data-do=run]");
await page.waitForTimeout(700);
await page.click("[data-do=run]");
answers.ran = await page.textContent("[data-text=said]");

// 4. Accessibility, on a screen and on a phone, after use
answers.axe = [];
answers.overflow = [];
answers.overlaps = [];
function overlaps() {
  const inner = (e) => { const r = e.getBoundingClientRect(); return { l: r.left + 1, r: r.right - 1, t: r.top + 2, b: r.bottom - 2 }; };
  return [...document.querySelectorAll("#lab-app svg")].flatMap((svg) => {
    const words = [...svg.querySelectorAll("text")].filter((e) => e.textContent.trim() && getComputedStyle(e).opacity > 0);
    const boxes = words.map(inner);
    return words.flatMap((a, i) => words.slice(i + 1).filter((_, j) => {
      const [p, q] = [boxes[i], boxes[i + 1 + j]];
      return p.l < q.r && q.l < p.r && p.t < q.b && q.t < p.b;
    }).map((b) => `${svg.closest("[data-chart]").dataset.chart}: "${a.textContent}" on "${b.textContent}"`));
  });
}
for (const [width, colorScheme] of [[1280, "light"], [375, "dark"], [375, "light"]]) {
  const p = await open("#preset=zipf&v=8&k=3&rule=undiscounted&seed=1&n=500", { width, colorScheme, touch: width < 500 });
  await p.evaluate(axe);
  answers.axe.push(...(await p.evaluate(async () => (await window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }))
    .violations.flatMap(({ id, nodes }) => nodes.map((n) => `${id}: ${n.target.join(" ")}`)))));
  answers.overlaps.push(...(await p.evaluate(overlaps)));
  answers.overflow.push(await p.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth));
  if (width < 500) {
    // a finger on the bar's column sets it
    const column = await p.locator(".bar.of-draft .column").first().boundingBox();
    await p.touchscreen.tap(column.x + column.width / 2, column.y + 60);
    answers.tapped = await law(p, "draft");
    // and on its handle drags it, while the page stays where it is
    const handle = await p.locator(".bar.of-target .handle").nth(1).boundingBox();
    const [x, y] = [handle.x + handle.width / 2, handle.y + handle.height / 2];
    const finger = await p.context().newCDPSession(p);
    const touch = (type, ...touchPoints) => finger.send("Input.dispatchTouchEvent", { type, touchPoints });
    await touch("touchStart", { x, y });
    for (const dy of [10, 20, 30, 40]) await touch("touchMove", { x, y: y - dy });
    await touch("touchEnd");
    answers.touched = { target: await law(p, "target"), hash: await hash(p), scrolled: await p.evaluate(() => scrollY) };
  }
}
answers.errors = errors;

// 5. The same opened as a file, where a browser refuses what the page does not load by itself
const folder = mkdtempSync(join(tmpdir(), "lab-"));
const book = pathToFileURL(join(root, "book")).href;
writeFileSync(join(folder, "lab.html"), shell.replaceAll('"/_static/', `"${book}/_static/`).replaceAll('"/d3/', `"${book}/_vendor/d3/`));
const filed = await browser.newPage();
const refused = [];
filed.on("console", (m) => { if (m.type() === "error") refused.push(m.text()); });
filed.on("pageerror", (e) => refused.push(e.stack));
await filed.goto(pathToFileURL(join(folder, "lab.html")).href + "#preset=five&k=3", { waitUntil: "load" });
answers.file = { errors: refused, ready: await filed.getAttribute("#lab-app", "data-ready"), draft: await law(filed, "draft"), cells: await cells(filed) };
rmSync(folder, { recursive: true });
await browser.close();
server.close();
process.stdout.write(JSON.stringify(answers));
