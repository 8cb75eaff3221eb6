// What scrolls sideways can be reached from the keyboard; what does not is no stop on the way.
async function markScrolling() {
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll("div.math, .cell_output, .cell_output .output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
  // A formula inside a line cannot break; when the line is too short for it, it scrolls by itself.
  for (const formula of document.querySelectorAll(".bd-article mjx-container:not([display])")) {
    formula.classList.remove("wide");
    const line = formula.closest("p, li, dd, dt, h1, h2, h3, h4, figcaption, td, th");
    const wide = line && !line.closest("table") && formula.offsetWidth > line.clientWidth;
    formula.classList.toggle("wide", Boolean(wide));
    if (wide) formula.tabIndex = 0;
  }
}
addEventListener("load", markScrolling);
addEventListener("resize", markScrolling);
// Under a search result stands a piece of its page. A browser fetches none from a file: there the results stand alone.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
