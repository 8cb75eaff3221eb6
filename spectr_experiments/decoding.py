"""What decoding costs: tokens per second, where a turn's time goes, and what a pair would need.

    python -m spectr_experiments.decoding --pair bundled --run-id cpu-1 [--device cuda] [--minutes 8]
    python -m spectr_experiments.decoding --summarise

All jobs of a run take turns within a round, after a warm-up, so that a slow moment touches all of them.
    library   autoregressive decoding by transformers' generate, with the target's own weights
    loop      our loop: autoregressive, and a grid of K drafts of L tokens; rows side by side
    stages    the same stage by stage, with a clock that waits for the device at each
Reading the prompt is left out everywhere: a loop job is timed from the end of its first turn, the
library from its first token. A loop job ends when the first of its rows does. Speed is tokens
emitted per second; the last block counts whole, as in `Generation.block_efficiency`.

Records go to results/benchmark-decoding/<run-id>-<pair>/records.jsonl, one line per job and round; a
run that was stopped goes on after its last line. The summary, with the verdicts on the targets
below, ships in spectr_lite/results/. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectr_experiments import clocks, records
from spectr_lite import verifiers
from spectr_lite.book import costs
from spectr_lite.book.environment import device_and_dtype
from spectr_lite.book.recorded import paper
from spectr_lite.decoding import Decoder, state
from spectr_lite.distributions import IID
from spectr_lite.models import load_pair, prompts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "benchmark-decoding"
SUMMARY = ROOT / "spectr_lite" / "results" / "benchmark-decoding.json"
MEASURED = ("spectr_lite", "spectr_experiments/decoding.py", ":!spectr_lite/results")  # summaries
LEAST_ROUNDS = 3

# What the decoder is held to, one text at a time: the goal, and whether to stay below it.
TARGETS = {
    "overhead": (0.15, True, "share of a turn that is not a call of a model"),
    "verification": (0.05, True, "verification, as a share of the target's call"),
    "baseline": (1.0, False, "our autoregressive decoding over transformers', tokens per second"),
    "speedup": (2.13, False, "SpecTr over our autoregressive decoding"),
    "gain": (1.37, False, "SpecTr over our speculative decoding"),
}
FULL = {
    "temperature": 1.0,
    "prompt_length": 32,
    "new_tokens": 64,
    "warm_up_tokens": 12,
    "grid": {"num_drafts": [1, 2, 4, 8], "draft_length": [1, 2, 4, 8]},
    "corner": [8, 8],
    "batches": [1, 8, 32],
    "rules": ["kseq", "optimal", "recursive", "traversal", "multipath-block", "optimal-block"],
    "memory_drafts": [1, 2, 4, 8, 16],
}
QUICK = {
    "new_tokens": 8,
    "grid": {"num_drafts": [1, 4], "draft_length": [2]},
    "corner": [4, 2],
    "batches": [1, 2],
    "rules": ["kseq", "optimal"],
    "memory_drafts": [1, 4],
}
LARGE_ON_A_CPU = {"new_tokens": 32, "batches": [1, 8]}


# --- measuring ------------------------------------------------------------------------------------


def jobs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What takes turns in a round: {"part", "rows", "temperature"} and a shape, or a kind of cache."""
    grid, (most, longest), temperature = (config[n] for n in ("grid", "corner", "temperature"))

    def job(
        part: str, k: int, length: int, verifier: str = "kseq", rows: int = 1
    ) -> dict[str, Any]:
        shape = {"num_drafts": k, "draft_length": length, "verifier": verifier}
        return {"part": part, "rows": rows, "temperature": temperature, **shape}

    for t in (0, temperature):
        yield job("loop", 0, 0) | {"temperature": t}
        for cache in config["library_caches"]:
            yield {"part": "library", "rows": 1, "temperature": t, "cache": cache}
    for k in grid["num_drafts"]:
        for length in grid["draft_length"]:
            yield job("loop", k, length)
    rules = [rule for rule in config["rules"] if IID in verifiers.get(rule).valid_for]
    for rule in rules:
        if rule != "kseq":
            yield job("loop", most, longest, rule)
    yield job("loop", 1, longest, "block")
    for rows in config["batches"]:
        if rows > 1:
            for k, length in ((0, 0), (1, longest), (most, longest)):
                yield job("loop", k, length, rows=rows)
    yield job("stages", 0, 0)
    yield job("stages", 1, longest)
    for rule in rules:
        yield job("stages", most, longest, rule)


def work(job: dict[str, Any], pair: Any, library: Any, texts: list[list[int]], seed: int, new: int):
    """What one job measured in one round: turns, their seconds, the tokens they emitted."""
    rows = [texts[(seed + i) % len(texts)] for i in range(job["rows"])]
    if job["part"] == "library":
        return run_library(library, rows, job, seed, new)
    settings = {
        "num_drafts": job["num_drafts"],
        "draft_length": max(job["draft_length"], 1),
        "verifier": job["verifier"],
        "temperature": job["temperature"],
        "new_tokens": new,
        "generator": seed,
    }
    draft = pair.draft if job["num_drafts"] else None
    if job["part"] == "loop":
        run = clocks.run_turns(pair.target, draft, rows, **settings)
        nodes = distinct_nodes(run) if job["num_drafts"] > 1 else None
        return {"turns": run.count, "seconds": run.seconds, "emitted": run.emitted, "nodes": nodes}
    run = clocks.stage_turns(pair.target, draft, rows, **settings)
    return {"turns": run.count, "seconds": run.seconds, "stages": dict(run.stages)}


def distinct_nodes(run: clocks.Turns) -> float:
    """Different nodes of a drafted tree, without the root, on average."""
    return float(
        torch.cat([state.distinct_nodes(turn.drafted) - 1 for turn in run.trace]).double().mean()
    )


def library_model(target: Any) -> Any:
    """transformers' own Llama with the target's weights, device and dtype."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    ours = target.config
    config = LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.width,
        intermediate_size=ours.ffn,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.heads,
        num_key_value_heads=ours.kv_heads,
        max_position_embeddings=ours.context,
        rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        tie_word_embeddings=True,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    )
    weight = target.embed_tokens.weight
    model = AutoModelForCausalLM.from_config(config, dtype=weight.dtype).to(weight.device)
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": tensor
        for name, tensor in target.state_dict().items()
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers' Llama does not take the weights: {missing} {unexpected}")
    model.tie_weights()
    return model.eval().requires_grad_(False)


def run_library(model: Any, rows: list[list[int]], job: dict[str, Any], seed: int, new: int):
    """transformers' generate, timed from its first token on."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    stamps: list[float] = []

    class Stamp(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if not stamps:
                stamps.append(clocks.wait(model.device))
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    torch.manual_seed(seed)
    ids = torch.tensor(rows, device=model.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        stopping_criteria=StoppingCriteriaList([Stamp()]),
        cache_implementation=job["cache"],
        **({"do_sample": True, "top_k": 0} if job["temperature"] else {"do_sample": False}),
    )
    seconds = clocks.wait(model.device) - stamps[0]
    return {"turns": new - 1, "seconds": seconds, "emitted": (new - 1) * len(rows)}


def forwards(pair: Any, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """On a GPU: the models' calls in a turn, each captured in a graph of its own and replayed."""
    k, length = config["corner"]
    slots = config["prompt_length"] + config["new_tokens"] + k * length
    calls = {
        "step": (pair.target, 1),
        "score": (pair.target, 1 + k * length),
        "draft": (pair.draft, k),
        "draft root": (pair.draft, 2),
    }
    for name, (model, count) in calls.items():
        where = {"dtype": torch.int64, "device": model.device}
        tokens, place = torch.zeros(1, count, **where), torch.arange(count, **where)[None]
        mask = torch.ones(1, count, slots, dtype=torch.bool, device=model.device)
        arguments = tokens, place, model.new_cache(1, slots), place, mask
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        with torch.no_grad():
            with torch.cuda.stream(side):
                for _ in range(3):
                    model(*arguments)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                model(*arguments)
        for repeat in range(20):
            start = clocks.wait(model.device)
            graph.replay()
            seconds = clocks.wait(model.device) - start
            yield {"part": "forward", "call": name, "repeat": repeat, "seconds": seconds}


def memory(pair: Any, texts: list[list[int]], config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The caches by number of drafts: bytes in all, those of the text, and those that a copy of the
    text for each draft would take. On a GPU also the peak of all memory beyond what was held."""
    device, longest = torch.device(pair.target.device), config["corner"][1]
    text = config["prompt_length"] + config["new_tokens"]
    for k in config["memory_drafts"]:
        peak = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        decoder = Decoder(pair.target, pair.draft, num_drafts=k, draft_length=longest)
        decoder.generate(texts[:1], max_new_tokens=config["new_tokens"])
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) - held
        size, slots = decoder.state.cache_bytes, decoder.state.slots
        yield {
            "part": "memory",
            "num_drafts": k,
            "slots": slots,
            "bytes": size,
            "text_bytes": size * text // slots,
            "copies_bytes": size * text // slots * max(k, 1),
            "peak_bytes": peak,
        }


def measure(pair: Any, texts: list[list[int]], config: dict[str, Any], folder: Path) -> None:
    """Append records until the minutes are over: whole rounds, and LEAST_ROUNDS of them at least."""
    records = folder / "records.jsonl"
    done = read_records(folder) if records.exists() else []
    library = library_model(pair.target) if config["library_caches"] else None
    todo, begin = list(jobs(config)), time.monotonic()
    # A GPU records its graphs in the warm-up, for buffers of this length.
    warm_up = config["new_tokens" if config["device"] == "cuda" else "warm_up_tokens"]

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", flush=True)

    for job in list(todo):
        try:
            work(job, pair, library, texts, 0, warm_up)
        except Exception as error:
            if job.get("cache") != "static":  # which wants a compiler; no run ends for that
                raise
            say(f"left out {job}: {type(error).__name__}: {error}")
            todo.remove(job)
    say(f"warm; {len(todo)} jobs")
    with records.open("a", encoding="utf-8") as out:

        def write(line: dict[str, Any]) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        if not any(record["part"] == "memory" for record in done):
            for line in memory(pair, texts, config):
                write(line)
        if config["device"] == "cuda" and not any(r["part"] == "forward" for r in done):
            for line in forwards(pair, config):
                write(line)
        for turn in range(rounds_in(done), config["most_rounds"]):
            if turn >= LEAST_ROUNDS and time.monotonic() - begin > 60 * config["minutes"]:
                break
            for job in todo:
                found = work(job, pair, library, texts, turn, config["new_tokens"])
                write({"part": job["part"], "job": job, "round": turn, **found})
            say(f"round {turn + 1}")


def read_records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def by_job(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each job by round; a round begun again replaces what was cut off."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        if "job" in record:
            key = json.dumps(record["job"], sort_keys=True)
            found.setdefault(key, {})[record["round"]] = record
    return {key: list(lines.values()) for key, lines in found.items()}


def rounds_in(records: list[dict[str, Any]]) -> int:
    """Whole rounds."""
    return min((len(lines) for lines in by_job(records).values()), default=0)


# --- summary --------------------------------------------------------------------------------------


def spread(values: list[float]) -> dict[str, Any]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "quartiles": [float(low), float(high)], "n": len(values)}


class Measured:
    """The rounds of one job."""

    def __init__(self, job: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.job, self.lines = job, lines
        self.turns, self.seconds = (np.array([x[n] for x in lines]) for n in ("turns", "seconds"))
        self.per_turn = self.seconds / self.turns

    @property
    def block_efficiency(self) -> float:
        emitted = sum(line["emitted"] for line in self.lines)
        return emitted / int(self.turns.sum()) / self.job["rows"]

    @property
    def efficiency_error(self) -> float | None:
        """Standard error of the block efficiency, from how its rounds differ; None for one."""
        emitted = np.array([line["emitted"] for line in self.lines]) / self.job["rows"]
        off, rounds = emitted - self.block_efficiency * self.turns, len(self.lines)
        if rounds == 1:
            return None
        return float((off @ off * rounds / (rounds - 1)) ** 0.5 / self.turns.sum())

    def times_as_fast_as(self, other: Measured) -> dict[str, Any]:
        """Tokens per second over the other's. Block efficiency is that of all rounds, for texts differ;
        the time of a turn is compared within each round."""
        factor = self.block_efficiency / other.block_efficiency
        return spread(factor * other.per_turn / self.per_turn)

    def stages(self, loop: Measured, step: Measured, calls: dict[str, float]) -> dict[str, Any]:
        """Milliseconds of a turn by stage, medians over the rounds. `loop`: the same turns without a
        clock inside; `step`: autoregressive ones; `calls`: a GPU's models by themselves."""

        def of(name: str) -> float:
            seconds = [line["stages"].get(name, 0.0) / line["turns"] for line in self.lines]
            return 1e3 * statistics.median(seconds)

        total, undisturbed = (1e3 * statistics.median(m.per_turn) for m in (self, loop))
        stages = {name: of(name) for name in clocks.STAGES}
        drafts, length = self.job["num_drafts"], self.job["draft_length"]
        draft, target = of("draft forward"), of("target forward")
        if calls:
            target = 1e3 * calls["score" if drafts else "step"]
            draft = 1e3 * (calls["draft root"] + (length - 1) * calls["draft"]) if drafts else 0.0
        return {
            **{name: self.job[name] for name in ("num_drafts", "draft_length", "verifier")},
            "milliseconds": stages | {"python": total - sum(stages.values())},
            "forwards": {"draft": draft, "target": target},
            "turn": total,
            "undisturbed_turn": undisturbed,
            "overhead": 1 - (draft + target) / undisturbed,
            "verification": stages["verify"] / target,
            "verification_in_steps": stages["verify"] / (1e3 * statistics.median(step.per_turn)),
        }


def summarise_run(folder: Path) -> dict[str, Any]:
    records = read_records(folder)
    config, env = (json.loads((folder / f"{n}.json").read_text()) for n in ("config", "env"))
    rounds = rounds_in(records)
    found = [Measured(json.loads(key), x[:rounds]) for key, x in by_job(records).items()]
    temperature, (most, longest) = config["temperature"], config["corner"]

    def get(
        k: int, length: int, rows: int = 1, verifier: str = "kseq", t: float = temperature
    ) -> Measured:
        shape = {"num_drafts": k, "draft_length": length, "verifier": verifier}
        wanted = {"part": "loop", "rows": rows, "temperature": t, **shape}
        return next(m for m in found if m.job == wanted)

    methods, library, stages = [], [], []
    calls: dict[str, list[float]] = {}
    for record in records:
        if record["part"] == "forward":
            calls.setdefault(record["call"], []).append(record["seconds"])
    call_seconds = {name: statistics.median(seconds) for name, seconds in calls.items()}
    for m in found:
        part, rows = m.job["part"], m.job["rows"]
        if part == "library":
            ours = get(0, 0, t=m.job["temperature"])
            library.append(
                {
                    "cache": m.job["cache"],
                    "temperature": m.job["temperature"],
                    "seconds_per_token": spread(m.per_turn),
                    "ours_seconds_per_token": spread(ours.per_turn),
                    "ours_over_theirs": ours.times_as_fast_as(m),
                }
            )
        elif part == "stages":
            shape = [m.job[n] for n in ("num_drafts", "draft_length")]
            same = get(*shape, verifier=m.job["verifier"])
            stages.append(m.stages(same, get(0, 0), call_seconds))
        elif m.job["temperature"] == temperature:
            alone = get(0, 0, rows)
            methods.append(
                {
                    **{n: m.job[n] for n in ("num_drafts", "draft_length", "verifier", "rows")},
                    "block_efficiency": m.block_efficiency,
                    "block_efficiency_error": m.efficiency_error,
                    "tokens_per_second": spread(m.block_efficiency * rows / m.per_turn),
                    "cost": spread(m.per_turn / alone.per_turn),
                    "speedup": m.times_as_fast_as(alone),
                    "gain": m.times_as_fast_as(get(1, longest, rows)),
                    "nodes": statistics.fmean(line["nodes"] for line in m.lines)
                    if m.job["num_drafts"] > 1
                    else None,
                }
            )
    one = [m for m in methods if m["rows"] == 1 and m["num_drafts"]]
    fit = costs.fit_costs(
        {(m["num_drafts"], m["draft_length"]): m["cost"]["median"]
         for m in one if m["verifier"] == "kseq"})  # fmt: skip
    corner = next(
        m
        for m in one
        if [m["num_drafts"], m["draft_length"], m["verifier"]] == [*config["corner"], "kseq"]
    )
    best = max((m for m in one if m["num_drafts"] > 1), key=lambda m: m["speedup"]["median"])
    # Speculative decoding has a best length of its own, which need not be the longest.
    single = max(
        m["speedup"]["median"] for m in one if (m["num_drafts"], m["verifier"]) == (1, "kseq")
    )
    best = best | {"gain": {"median": best["speedup"]["median"] / single}}
    theirs = min((x["ours_over_theirs"]["median"] for x in library), default=None)
    return {
        "run": folder.name,
        "pair": config["pair"],
        "rounds": rounds,
        "config": config,
        "environment": env,
        "methods": methods,
        "library": library,
        "forward_seconds": call_seconds,
        "stages": stages,
        "costs": vars(fit),
        "needed": needed(fit, corner, most, longest),
        "memory": [record for record in records if record["part"] == "memory"],
        "verdicts": verdicts(
            next(s for s in stages if s["num_drafts"] == most and s["verifier"] == "kseq"),
            corner, best, theirs),
    }  # fmt: skip


def needed(
    fit: costs.Costs, corner: dict[str, Any], most: int, longest: int
) -> dict[str, float | None]:
    """For the paper's speed-up: the block efficiency at this cost; or, at this block efficiency, the
    draft's cost, with scoring as it is and with scoring of any number of tokens for the price of one."""
    wanted, cost, efficiency = (
        TARGETS["speedup"][0],
        corner["cost"]["median"],
        corner["block_efficiency"],
    )
    left = efficiency / wanted - fit.fixed
    return {
        "speedup": wanted,
        "cost": cost,
        "block_efficiency": efficiency,
        "acceptance": costs.acceptance_for(efficiency, longest),
        "block_efficiency_needed": wanted * cost,
        "acceptance_needed": costs.acceptance_for(wanted * cost, longest),
        "draft_step": fit.draft,
        "draft_step_needed": (left - fit.score * (1 + most * longest)) / longest,
        "draft_step_needed_free_scoring": (left - fit.score) / longest,
    }


def verdicts(
    turn: dict[str, Any], corner: dict[str, Any], best: dict[str, Any], theirs: float | None
) -> list[dict[str, Any]]:
    """Each target, the number found, and whether it is met: at the corner, then at the best setting."""
    names = ("num_drafts", "draft_length", "verifier")
    rows = [
        ("overhead", turn["overhead"], corner),
        ("verification", turn["verification"], corner),
        ("baseline", theirs, None),
        ("speedup", corner["speedup"]["median"], corner),
        ("gain", corner["gain"]["median"], corner),
        ("speedup", best["speedup"]["median"], best),
        ("gain", best["gain"]["median"], best),
    ]
    table = []
    for name, found, at in rows:
        goal, below, says = TARGETS[name]
        met = None if found is None else bool(found <= goal if below else found >= goal)
        place = {n: at[n] for n in names} if at else None
        table.append({"target": name, "says": says, "goal": goal, "below": below,
                      "found": found, "met": met, "at": place, "best": at is best})  # fmt: skip
    return table


def summarise() -> dict[str, Any]:
    """All runs; and the cost of a turn that the paper's Table 1 implies, with the same fit."""
    table = [row for row in paper()["table1"] if row["num_drafts"]]
    shapes = [(row["num_drafts"], row["draft_length"]) for row in table]
    cost = [row["block_efficiency"]["value"] / row["speed"]["value"] for row in table]
    implied = dict(zip(shapes, cost, strict=True))
    points = [{"num_drafts": k, "draft_length": n, "cost": c} for (k, n), c in implied.items()]
    return {
        "command": "python -m spectr_experiments.decoding",
        "paper": {"points": points, "costs": vars(costs.fit_costs(implied))},
        "runs": [summarise_run(path.parent) for path in sorted(RESULTS.glob("*/records.jsonl"))],
    }


def write_summary() -> None:
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_text(json.dumps(summarise(), indent=1) + "\n", encoding="utf-8")


def print_verdicts(summary: dict[str, Any]) -> None:
    for row in summary["verdicts"]:
        at = row["at"]
        where = "{verifier}, K={num_drafts}, L={draft_length}".format(**at) if at else ""
        found = "not measured" if row["found"] is None else f"{row['found']:.3f}"
        met = {True: "met", False: "NOT met", None: "-"}[row["met"]]
        bound = "at most" if row["below"] else "at least"
        print(f"{met:8} {row['target']:13} {bound} {row['goal']}, found {found} {where}")


# --- one run --------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", default="bundled")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--run-id", help="beginning of the folder's name; the same one resumes a run"
    )
    parser.add_argument("--minutes", type=float, default=8, help="no new round begins after these")
    parser.add_argument("--rounds", type=int, default=50, help="at most this many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of a little of everything")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the record goes")
    parser.add_argument("--summarise", action="store_true", help="only rewrite the summary")
    options = parser.parse_args()
    if options.summarise:
        write_summary()
        return
    torch.set_num_threads(options.threads)
    device, dtype = torch.device("cpu"), torch.float32
    if options.device == "cuda":
        device, dtype = device_and_dtype()
        if device.type != "cuda":
            sys.exit("--device: found 'cuda', but torch sees no GPU. Use --device cpu.")
    pair = load_pair(options.pair, device, dtype)
    packages, caches = ["torch", "numpy"], []
    try:
        import transformers  # noqa: F401

        packages.append("transformers")
        caches = ["dynamic", "static"] if device.type == "cuda" else ["dynamic"]
    except ImportError:
        print("transformers is not installed: its generate is left out")
    slow = device.type == "cpu" and options.pair != "bundled"
    config = FULL | (QUICK if options.quick else LARGE_ON_A_CPU if slow else {})
    config |= {
        "pair": options.pair,
        "device": options.device,
        "dtype": str(dtype).removeprefix("torch."),
        "library_caches": caches,
        "minutes": options.minutes,
        "most_rounds": 1 if options.quick else options.rounds,
    }
    texts = prompts.load("sotu", pair.tokenizer, length=config["prompt_length"])
    start = records.now()
    run_id = options.run_id or f"{options.device}-{start[:19].replace(':', '')}"
    folder = options.results / f"{run_id}-{options.pair}"
    folder.mkdir(parents=True, exist_ok=True)
    command = (
        f"python -m spectr_experiments.decoding --pair {options.pair} --device {options.device} "
        f"--run-id {run_id} --minutes {options.minutes:g} --threads {options.threads}"
    )
    env = {
        "command": command,
        "start": start,
        "dtype": config["dtype"],
        "weights_sha256": {
            "target": records.weights_sha256(pair.target),
            "draft": records.weights_sha256(pair.draft),
        },
        "prompts": texts.description,
        "prompts_sha256": texts.sha256,
        **records.environment(ROOT, MEASURED, packages, device),
    }  # fmt: skip

    def save(name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")

    save("config.json", config)
    save("env.json", env)
    measure(pair, texts.tokens, config, folder)
    save("env.json", env | {"end": records.now()})
    if options.results == RESULTS:
        write_summary()
    print_verdicts(summarise_run(folder))


if __name__ == "__main__":
    main()
