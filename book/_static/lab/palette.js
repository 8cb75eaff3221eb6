// Written by scripts/site/lab_assets.py from spectr_lite/book/plotting.py.
globalThis.lab = { LABELS: {
  "draft": "draft p",
  "target": "target q",
  "optimal": "exact optimum",
  "kseq": "K-SEQ",
  "recursive": "recursive",
  "coupling": "one draft",
  "undiscounted": "no discount: biased"
} };
