// Open every page of the built site in headless Chromium, on a desktop and on a phone, in light and dark, and as a file.
//   node check_site.mjs CHROMIUM HTML_FOLDER NODE_FOLDER PAGE...
// Called by check_site.py. Screenshots go to _build/screenshots.
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { mkdirSync, readFileSync } from "node:fs";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";

const [chromiumPath, html, nodeFolder, ...pages] = process.argv.slice(2);
const require = createRequire(join(nodeFolder, "package.json"));
const { chromium } = require("playwright-core");
const { default: lighthouse } = await import(pathToFileURL(join(nodeFolder, "node_modules/lighthouse/core/index.js")));
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const shots = join(html, "..", "screenshots");
mkdirSync(shots, { recursive: true });

// Findings in the theme's own markup, each by rule and selector. Nothing of ours belongs here.
const ALLOWED = [
  // Their icons are fonts, whose code points axe reads as text; "Ctrl+K" is shown and not spoken.
  { rule: "label-content-name-mismatch", selector: ".theme-switch-button, .search-button-field" },
];

// What a page may load beyond what all pages share: fonts, styles, scripts, MathJax.
const HEAVIEST = 2e6; // bytes
const SHARED = /^\/(_static\/(?!lab\/|cards\/)|mathjax\/)/;

// Both schemes are looked at in full, and a desktop's colours in both.
const VIEWS = [
  { name: "desktop-light", width: 1280, height: 1000, colorScheme: "light", then: "dark" },
  { name: "phone-dark", width: 375, height: 812, colorScheme: "dark" },
];

const TYPES = {
  ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".png": "image/png",
  ".webp": "image/webp", ".json": "application/json", ".woff": "font/woff", ".woff2": "font/woff2",
};
const sizes = new Map();
const pathOf = (url) => normalize(decodeURIComponent(new URL(url, "http://x").pathname));
const server = createServer((request, response) => {
  const path = pathOf(request.url);
  try {
    const body = readFileSync(join(html, path));
    sizes.set(path, body.length);
    response.writeHead(200, { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream" });
    response.end(body);
  } catch {
    response.writeHead(404).end();
  }
});
const listen = (on) => new Promise((done) => on.listen(0, "127.0.0.1", () => done(on.address().port)));
const origin = `http://127.0.0.1:${await listen(server)}`;

const free = createServer();
const debugging = await listen(free); // where Lighthouse will find the browser: a port that is free
await new Promise((done) => free.close(done));
const browser = await chromium.launch({
  executablePath: chromiumPath,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", `--remote-debugging-port=${debugging}`, "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});

// Runs in the page: what a reader would trip over.
function inspect() {
  const problems = [];
  const article = document.querySelector("article") ?? document.body;
  const wide = document.documentElement;
  if (wide.scrollWidth > wide.clientWidth) {
    const culprits = [...document.body.querySelectorAll("*")]
      .filter((e) => e.getBoundingClientRect().right > wide.clientWidth + 1).slice(0, 3)
      .map((e) => `${e.tagName.toLowerCase()}.${[...e.classList].join(".")}`);
    problems.push(`overflows sideways: ${wide.scrollWidth} > ${wide.clientWidth} px (${culprits.join(", ")})`);
  }
  const broken = [...document.querySelectorAll("mjx-merror, [data-mjx-error]")];
  for (const e of broken) problems.push(`MathJax: ${e.dataset?.mjxError ?? e.textContent}`);
  const unset = [...article.querySelectorAll(".math")].filter((e) => !e.querySelector("mjx-container"));
  for (const e of unset) problems.push(`formula not rendered: ${e.textContent.slice(0, 60)}`);
  const edge = article.getBoundingClientRect().right + 1;
  for (const e of article.querySelectorAll("mjx-container")) {
    if (e.getBoundingClientRect().right > edge && !e.closest(".math[tabindex], table, .cell_output, .wide")) {
      problems.push(`formula cut off: ${e.parentElement.textContent.slice(0, 60)}`);
    }
  }
  for (const e of article.querySelectorAll("img")) {
    if (!e.complete || e.naturalWidth === 0) problems.push(`image does not load: ${e.getAttribute("src")}`);
    if ((e.alt ?? "").trim().length < 8) problems.push(`image without real alt text: ${e.getAttribute("src")}`);
  }
  const copy = article.cloneNode(true);
  for (const e of copy.querySelectorAll("pre, code, script, style, mjx-container")) e.remove();
  const raw = copy.textContent.match(/\{cite|```|:::|\]\(|\{\{|\{(ref|numref|prf:ref|admonition)\b|\$\$/);
  if (raw) problems.push(`raw markup: ${raw[0]}`);
  return problems;
}

async function findings([allowed, runOnly]) {
  const { violations } = await window.axe.run(document, { runOnly, resultTypes: ["violations"] });
  return violations.flatMap(({ id, help, nodes }) => nodes
    .filter((n) => !allowed.some((a) => a.rule === id && document.querySelector(n.target[0])?.matches(a.selector)))
    .map((n) => `axe ${id} at ${n.target.join(" ")}: ${(n.any[0] ?? n.all[0] ?? n.none[0])?.message ?? help}`));
}
const WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"];
const CONTRAST = { type: "rule", values: ["color-contrast"] }; // the one rule that the colour scheme decides

let failures = 0;
const weights = [];
const report = (where, problems) => {
  for (const problem of problems) console.error(`  ${where}: ${problem}`);
  failures += problems.length;
};

async function look(view) {
  const { width, height, colorScheme } = view;
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, reducedMotion: "reduce" });
  context.setDefaultTimeout(600_000); // a busy machine is slow, not broken
  for (const path of pages) {
    const problems = [];
    const page = await context.newPage();
    const loaded = new Set();
    page.on("request", (r) => {
      const url = r.url();
      if (url.startsWith(origin)) loaded.add(pathOf(url));
      if (!url.startsWith(origin) && !/^(data|blob|about):/.test(url)) problems.push(`asks another host: ${url}`);
    });
    page.on("response", (r) => { if (r.status() >= 400) problems.push(`${r.status()} ${r.url()}`); });
    page.on("console", (m) => { if (m.type() === "error") problems.push(`console: ${m.text()}`); });
    page.on("pageerror", (e) => problems.push(`script error: ${e.message}`));
    await page.goto(`${origin}/${path}`, { waitUntil: "load" });
    await page.evaluate(() => window.MathJax?.startup?.promise);
    await page.waitForLoadState("networkidle");
    problems.push(...(await page.evaluate(inspect)));
    const own = [...loaded].filter((name) => !SHARED.test(name)).reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0);
    if (own > HEAVIEST) problems.push(`loads ${(own / 1e6).toFixed(1)} MB of its own; ${HEAVIEST / 1e6} are allowed`);
    if (view === VIEWS[0]) weights.push({ path, own });
    const shot = join(shots, path.replace(/\.html$/, "").replaceAll("/", "-"));
    await page.screenshot({ path: `${shot}-${view.name}.png`, fullPage: true });
    await page.evaluate(axe);
    problems.push(...(await page.evaluate(findings, [ALLOWED, WCAG])));
    if (view.then) {
      await page.emulateMedia({ colorScheme: view.then });
      await page.screenshot({ path: `${shot}-desktop-${view.then}.png` });
      const found = await page.evaluate(findings, [ALLOWED, CONTRAST]);
      problems.push(...found.map((problem) => `${problem} (${view.then})`));
    }
    report(`${path} (${view.name})`, problems);
    await page.close();
  }
  await context.close();
}
await Promise.all(VIEWS.map(look));

// The same site opened as files: a browser then refuses modules and fetches, often without a word on the page.
function inspectFile(text) {
  const problems = [];
  if (!document.fonts.check(`16px "${text}"`)) problems.push(`font not loaded: ${text}`);
  const app = document.getElementById("lab-app");
  if (app && (app.dataset.ready !== "true" || app.querySelectorAll("[data-chart] > svg").length !== 6)) problems.push("the lab does not show");
  return problems;
}
async function lookAtFiles() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 1000 } });
  context.setDefaultTimeout(600_000);
  const search = "search.html?q=coupling";
  for (const path of [...pages, search]) {
    const problems = [];
    const page = await context.newPage();
    page.on("console", (m) => { if (m.type() === "error") problems.push(`console: ${m.text()}`); });
    page.on("pageerror", (e) => problems.push(`script error: ${e.message}`));
    page.on("requestfailed", (r) => problems.push(`does not load: ${r.url()}`));
    await page.goto(`${pathToFileURL(html)}/${path}`, { waitUntil: "load" });
    await page.evaluate(() => window.MathJax?.startup?.promise);
    await page.evaluate(() => document.fonts.ready);
    problems.push(...(await page.evaluate(inspectFile, "Source Serif 4")));
    if (path !== search) {
      problems.push(...(await page.evaluate(inspect)));
    } else {
      await page.waitForFunction(() => /\d/.test(document.querySelector(".search-summary, #search-results p")?.textContent ?? ""));
      if (!(await page.locator("#search-results li a").count())) problems.push("finds nothing");
    }
    report(`${path} (as a file)`, problems);
    await page.close();
  }
  await context.close();
}
await lookAtFiles();

// Lighthouse's accessibility score must be 100 on every page. "simulate" slows nothing down, and does not wait
// five seconds after each load; only speed is simulated, and speed is not asked for.
const settings = {
  port: debugging, onlyCategories: ["accessibility"], formFactor: "desktop", screenEmulation: { disabled: true },
  throttlingMethod: "simulate", disableFullPageScreenshot: true, disableStorageReset: true, skipAboutBlank: true, logLevel: "silent",
  pauseAfterFcpMs: 0, pauseAfterLoadMs: 0, cpuQuietThresholdMs: 0, networkQuietThresholdMs: 300,
};
const scores = [];
for (const path of pages) {
  const { lhr } = await lighthouse(`${origin}/${path}`, settings);
  const score = Math.round(100 * (lhr.categories.accessibility.score ?? 0));
  scores.push(score);
  if (score === 100) continue;
  const lost = lhr.categories.accessibility.auditRefs.filter(({ id, weight }) => weight && lhr.audits[id].score === 0);
  report(path, [`Lighthouse accessibility ${score} (${lost.map(({ id }) => id).join(", ") || lhr.runtimeError?.message})`]);
}
console.log(`Lighthouse accessibility: ${Math.min(...scores)} to ${Math.max(...scores)}`);

await browser.close();
server.close();
weights.sort((a, b) => b.own - a.own);
console.log(`heaviest: ${weights.slice(0, 3).map(({ path, own }) => `${path} ${(own / 1e6).toFixed(2)} MB`).join(", ")}`);
console.log(`browser: ${pages.length} pages, ${VIEWS.length} views, ${failures} problems`);
process.exit(failures ? 1 : 0);
