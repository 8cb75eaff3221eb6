// What scrolls sideways can be reached from the keyboard; what does not is no stop on the way.
async function markScrolling() {
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll("div.math, .cell_output, .cell_output .output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", markScrolling);
addEventListener("resize", markScrolling);
