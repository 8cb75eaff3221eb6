"""Every recorded number of the book, by one command: the paper's Table 1 and Appendix E, and what the
parts of the package cost. The paper's own numbers: spectr_lite/book/paper.json.

    python -m spectr_lite reproduce table1 --pair bundled --subset      block efficiency, then timing
    python -m spectr_lite reproduce appendix-e                          latency along K and along L
    python -m spectr_lite reproduce decoding | transport | verifiers | drafts | models | next-token-laws
    python -m spectr_lite reproduce verify results/table1/bundled-cpu-2   a finished run, by its hashes
    python -m spectr_lite reproduce summarise                           results/ -> spectr_lite/results/
    python -m spectr_lite reproduce predict     what a turn should cost on a GPU, by counting its kernels

A run is results/<experiment>/<run-id>/ (table1: <pair>-<run-id>/) with config.json, env.json (one entry
per session), manifest.json (hashes) and its records, gzipped JSON lines in a fixed order. Table 1 has
three kinds:

records      {"cell": "kseq K=8 L=4 T=1.0", "verifier", "num_drafts", "draft_length", "temperature",
              "seed", "prompt" (its number), "calls", "emitted"}         batched; one per prompt and seed
timing       {"cell", ..., "temperature", "round", "prompt", "calls", "emitted", "seconds"}    batch of 1
draft-laws   {"law", "rule": "optimum" | "kseq", "k", "temperature", "prompt", "places", "acceptance"}
             the exact one-step acceptance, averaged over places; "kseq" for the distribution "iid" alone

Autoregressive decoding is "autoregressive K=0 L=0 T=1.0". Speculative decoding is kseq with K = 1,
where kseq, recursive and optimal are one rule, and optimal-block and traversal are block verification:
so K = 1 has the cells kseq and block alone.

spectr_lite/results/table1.json, which pages read:
    {"command": "...", "runs": [{"run", "pair", "device", "label", "text", "new_tokens", "seeds",
      "prompts", "config", "environment",
      "cells": [{"verifier", "num_drafts", "draft_length", "temperature",
        "n": prompts, "continuations", "block_efficiency", "interval": [low, high],
        "gain": {"over": "kseq", "difference", "interval"} | null    same K, L, T; paired by prompt
        "command": the cell alone, for one reader's minute,
        "timing": {"n": rounds, "seconds_per_token", "quartiles": [..], "seconds_per_call"} | null,
        "steps": {"value", "error", "degrees", "interval"} | null,   a turn's cost, see speeds.py
        "speed_over_kseq": the same | null                   same K, L, T}],
      "draft_laws": [{"law": "iid" | "without-replacement" | "top-1" | ..., "rule", "k",
        "temperature", "n": prompts, "acceptance", "interval",
        "over": {"kseq" | "optimum" (both i.i.d.): {"difference", "interval"}}    paired by prompt}]}]}
Intervals are 95%, by the delta method for a ratio of sums, prompts being the independent units.
appendix-e.json: {"command", "runs": [{"run", "device", "label", "config", "environment",
      "cells": [{"num_drafts", "draft_length", "n": rounds, "draft", "score", "verify", "commit",
        "copy", "turn" (median seconds of a turn and its stages), "turn_quartiles", "positions",
        "score_ratio", "verify_ratio" (to the one-token call), "turn_ratio"}]}]}
K = 0 is autoregressive decoding, to which the ratios are; the O(1)-call model says score_ratio = 1.
"""
