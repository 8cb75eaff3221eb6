"""What decoding costs: tokens per second, where a turn's time goes, and what a pair would need.

    python -m spectr_lite reproduce decoding --pair bundled --run-id cpu-1

All jobs of a run take turns within a round, after a warm-up, so that a slow moment touches all of them.
    library   autoregressive decoding by transformers' generate, with the target's own weights
    assisted  the same with the draft as transformers' assistant, where it is a model of theirs too
    loop      our loop: autoregressive, and a grid of K drafts of L tokens; rows side by side
    stages    the same stage by stage, with a clock that waits for the device at each
Reading the prompt is left out everywhere: a loop job is timed from the end of its first turn, the
library from its first token. A loop job ends when the first of its rows does. Speed is tokens
emitted per second; the last block counts whole, as in `Generation.block_efficiency`.

A run is results/benchmark-decoding/<run-id>-<pair>/. The summary, with the verdicts on the targets
below, ships in spectr_lite/results/. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from spectr_experiments import clocks, prediction
from spectr_experiments.records import Phase, Plan, Record, Run, grouped, place, weights_sha256
from spectr_experiments.speeds import Estimate
from spectr_lite import verifiers
from spectr_lite.book import costs
from spectr_lite.book.recorded import paper
from spectr_lite.commands import pairs
from spectr_lite.decoding import Decoder, state
from spectr_lite.distributions import IID
from spectr_lite.models import Transformer, prompts

FOLDER = "benchmark-decoding"
SCHEMA = {
    "records": {"part": str, "job": dict, "round": int, "turns": int, "seconds": float,
                "emitted": int | None, "nodes": float | None, "stages": dict | None},
    "memory": {"part": str | None, "num_drafts": int, "slots": int, "bytes": int, "text_bytes": int,
               "copies_bytes": int, "peak_bytes": int | None},
    "forward": {"part": str | None, "call": str, "repeat": int, "seconds": float},
}  # fmt: skip
KEYS = {"records": ("job", "round"), "memory": ("num_drafts",), "forward": ("call", "repeat")}
MOST_ROUNDS = 50
REPLAYS = 20
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
SHORT = {  # one draft and many, at every length, against transformers' two ways
    "grid": {"num_drafts": [1, 8], "draft_length": [1, 2, 4, 8]},
    "batches": [1],
    "rules": ["kseq"],
    "memory_drafts": [8],
}
LARGE_ON_A_CPU = {"new_tokens": 32, "batches": [1, 8]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pairs.add_arguments(parser)
    less = parser.add_mutually_exclusive_group()
    less.add_argument("--quick", action="store_true", help="one round of a little of everything")
    less.add_argument("--short", action="store_true", help="K-SEQ alone, 1 and 8 drafts, one text")


def plans(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[Plan]:
    (name,) = pairs.names(args)
    pair = pairs.load(name, device, dtype)
    config = make_config(pair, device, args.quick, args.short)
    texts = prompts.load("sotu", pair.tokenizer, length=config["prompt_length"])
    config |= {"prompts": texts.description, "prompts_sha256": texts.sha256}
    timing = partial(measure, config, pair, texts.tokens)
    run_id = f"{args.run_id or device.type}-{pairs.folder_name(name)}"
    yield Plan(run_id, config, [Phase("decoding", list(SCHEMA), timing)], minutes=8)


def make_config(pair: Any, device: torch.device, quick: bool, short: bool = False) -> Record:
    """All that decides what a run records, but its prompts."""
    slow = device.type == "cpu" and pair.name != "bundled"
    less = QUICK if quick else (LARGE_ON_A_CPU if slow else {}) | (SHORT if short else {})
    caches = library_caches(device)
    return FULL | less | {
        "pair": pair.name,
        "device": device.type,
        "dtype": str(next(pair.target.parameters()).dtype).removeprefix("torch."),
        "weights_sha256": {"target": weights_sha256(pair.target), "draft": weights_sha256(pair.draft)},
        "library_caches": caches,
        "assisted": bool(caches) and type(pair.draft) is Transformer,
        "most_rounds": 1 if quick else MOST_ROUNDS,
    }  # fmt: skip


def library_caches(device: torch.device) -> list[str]:
    """The kinds of cache that transformers' generate is timed with."""
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: its generate is left out")
        return []
    return ["dynamic", "static"] if device.type == "cuda" else ["dynamic"]


# --- measuring ------------------------------------------------------------------------------------


def jobs(config: Record) -> Iterator[Record]:
    """What takes turns in a round: {"part", "rows", "temperature"} and a shape, or a kind of cache."""
    grid, (most, longest), temperature = (config[n] for n in ("grid", "corner", "temperature"))

    def job(part: str, k: int, length: int, verifier: str = "kseq", rows: int = 1) -> Record:
        shape = {"num_drafts": k, "draft_length": length, "verifier": verifier}
        return {"part": part, "rows": rows, "temperature": temperature, **shape}

    for t in (0, temperature):
        yield job("loop", 0, 0) | {"temperature": t}
        for cache in config["library_caches"]:
            yield {"part": "library", "rows": 1, "temperature": t, "cache": cache}
    for length in grid["draft_length"] if config.get("assisted") else ():
        yield {"part": "assisted", "rows": 1, "temperature": temperature, "draft_length": length}
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


def work(
    job: Record, pair: Any, library: list[Any], texts: list[list[int]], new: int, seed: int
) -> Record:
    """What one job measured in one round: turns, their seconds, the tokens they emitted."""
    rows = [texts[(seed + i) % len(texts)] for i in range(job["rows"])]
    if job["part"] in ("library", "assisted"):
        return run_library(library, rows, job, seed, new)
    settings = {name: job[name] for name in ("num_drafts", "verifier", "temperature")}
    settings |= {"draft_length": max(job["draft_length"], 1), "new_tokens": new, "generator": seed}
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


def run_library(
    models: list[Any], rows: list[list[int]], job: Record, seed: int, new: int
) -> Record:
    """transformers' generate, timed from the end of its first turn on; `models` has its assistant, if
    there is one, behind it."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    model, how = models[0], {"cache_implementation": job.get("cache")}
    if job["part"] == "assisted":
        how = {"assistant_model": models[1]}
        models[1].generation_config.update(
            num_assistant_tokens=job["draft_length"],
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
    stamps: list[tuple[float, int]] = []  # when a turn ended, and how long the text then was

    class Stamp(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            now = time.perf_counter() if stamps else clocks.wait(model.device)
            stamps.append((now, input_ids.shape[1]))
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    torch.manual_seed(seed)
    ids = torch.tensor(rows, device=model.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        stopping_criteria=StoppingCriteriaList([Stamp()]),
        **how,
        **({"do_sample": True, "top_k": 0} if job["temperature"] else {"do_sample": False}),
    )
    (start, begun), ended = stamps[0], clocks.wait(model.device)
    emitted = (stamps[-1][1] - begun) * len(rows)
    return {"turns": len(stamps) - 1, "seconds": ended - start, "emitted": emitted}


def forwards(pair: Any, config: Record) -> dict[str, tuple[Any, int]]:
    """The models' calls in a turn: model and number of tokens."""
    k, length = config["corner"]
    return {
        "step": (pair.target, 1),
        "score": (pair.target, 1 + k * length),
        "draft": (pair.draft, k),
        "draft root": (pair.draft, 2),
    }


def replay(name: str, model: Any, count: int, slots: int) -> list[Record]:
    """On a GPU: one of those calls captured in a graph of its own, and replayed."""
    clock = clocks.call(model, count, slots)
    return [{"call": name, "repeat": n, "seconds": clock()} for n in range(REPLAYS)]


def memory(pair: Any, texts: list[list[int]], config: Record, k: int) -> Record:
    """The caches with k drafts: bytes in all, those of the text, and those that a copy of the text
    for each draft would take. On a GPU also the peak of all memory beyond what was held."""
    device, peak = torch.device(pair.target.device), None
    text = config["prompt_length"] + config["new_tokens"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    decoder = Decoder(pair.target, pair.draft, num_drafts=k, draft_length=config["corner"][1])
    decoder.generate(texts[:1], max_new_tokens=config["new_tokens"])
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - held
    size, slots = decoder.state.cache_bytes, decoder.state.slots
    return {
        "num_drafts": k,
        "slots": slots,
        "bytes": size,
        "text_bytes": size * text // slots,
        "copies_bytes": size * text // slots * max(k, 1),
        "peak_bytes": peak,
    }


def measure(
    config: Record, pair: Any, texts: list[list[int]], run: Run, seconds: float | None
) -> None:
    """Whole rounds until the time is over, and LEAST_ROUNDS of them at least."""
    own = [pair.target, *([pair.draft] if config.get("assisted") else [])]
    library = [*map(library_model, own)] if config["library_caches"] else []
    # A GPU records its graphs in the warm-up, for buffers of this length.
    warm_up = config["new_tokens" if config["device"] == "cuda" else "warm_up_tokens"]
    turns = []
    for job in jobs(config):
        turn = partial(work, job, pair, library, texts)
        try:
            turn(warm_up, 0)
        except Exception as error:
            if job.get("cache") != "static":  # which wants a compiler; no run ends for that
                raise
            print(f"left out {job}: {type(error).__name__}: {error}", flush=True)
        else:
            turns.append(({"part": job["part"], "job": job}, partial(turn, config["new_tokens"])))
    drafts = config["memory_drafts"]
    run.fill("memory", drafts, lambda k: [{"num_drafts": k}],
             lambda k: [memory(pair, texts, config, k)], None)  # fmt: skip
    if config["device"] == "cuda":
        calls = forwards(pair, config)
        k, length = config["corner"]
        slots = config["prompt_length"] + config["new_tokens"] + k * length
        run.fill("forward", list(calls),
                 lambda name: [{"call": name, "repeat": n} for n in range(REPLAYS)],
                 lambda name: replay(name, *calls[name], slots), None)  # fmt: skip
    run.rounds(
        "records", turns, config["most_rounds"], seconds, warm_up=0,
        least=min(LEAST_ROUNDS, config["most_rounds"]),
    )  # fmt: skip


# --- summary --------------------------------------------------------------------------------------


def spread(values: np.ndarray) -> Record:
    middle = float(np.quantile(values, 0.5))
    return {"median": middle, "quartiles": clocks.quartiles(values), "n": len(values)}


class Measured:
    """The rounds of one job."""

    def __init__(self, job: Record, lines: list[Record]) -> None:
        self.job, self.lines = job, lines
        self.turns, self.seconds = (np.array([x[n] for x in lines]) for n in ("turns", "seconds"))
        self.per_turn = self.seconds / self.turns

    @property
    def block_efficiency(self) -> float:
        emitted = sum(line["emitted"] for line in self.lines)
        return emitted / int(self.turns.sum()) / self.job["rows"]

    @property
    def nodes(self) -> float | None:
        several = self.job["num_drafts"] > 1
        return statistics.fmean(line["nodes"] for line in self.lines) if several else None

    @property
    def efficiency_error(self) -> float | None:
        """Standard error of the block efficiency, from how its rounds differ; None for one."""
        emitted = np.array([line["emitted"] for line in self.lines]) / self.job["rows"]
        off, rounds = emitted - self.block_efficiency * self.turns, len(self.lines)
        if rounds == 1:
            return None
        return float((off @ off * rounds / (rounds - 1)) ** 0.5 / self.turns.sum())

    def times_as_fast_as(self, other: Measured) -> Record:
        """Tokens per second over the other's. Block efficiency is that of all rounds, for texts differ;
        the time of a turn is compared within each round."""
        factor = self.block_efficiency / other.block_efficiency
        return spread(factor * other.per_turn / self.per_turn)

    def stages(self, loop: Measured, step: Measured, calls: dict[str, float]) -> Record:
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


def summarise(run: Run, config: Record, sessions: list[Record]) -> Record:
    by_job = grouped(run.read("records"), ["job"])
    rounds = min(len(lines) for lines in by_job.values())  # whole ones
    places = [place({"job": job}, ["job"]) for job in jobs(config)]
    found = [Measured(by_job[p][0]["job"], by_job[p][:rounds]) for p in places if p in by_job]
    temperature, (most, longest) = config["temperature"], config["corner"]

    def get(
        k: int, length: int, rows: int = 1, verifier: str = "kseq", t: float = temperature
    ) -> Measured:
        shape = {"num_drafts": k, "draft_length": length, "verifier": verifier}
        wanted = {"part": "loop", "rows": rows, "temperature": t, **shape}
        return next(m for m in found if m.job == wanted)

    methods, library, assisted, stages = [], [], [], []
    call_seconds = {
        name: statistics.median(record["seconds"] for record in lines)
        for (name,), lines in grouped(run.read("forward"), ["call"]).items()
    }
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
        elif part == "assisted":
            same = get(1, m.job["draft_length"])
            assisted.append(
                {
                    "draft_length": m.job["draft_length"],
                    "block_efficiency": m.block_efficiency,
                    "tokens_per_second": spread(m.block_efficiency / m.per_turn),
                    "speedup": m.times_as_fast_as(get(0, 0)),  # over our autoregressive decoding
                    "ours_over_theirs": same.times_as_fast_as(m),
                }
            )
        elif part == "stages":
            shape = [m.job[n] for n in ("num_drafts", "draft_length")]
            same = get(*shape, verifier=m.job["verifier"])
            stages.append(m.stages(same, get(0, 0), call_seconds))
        elif m.job["temperature"] == temperature:
            alone, plain = get(0, 0, rows), not m.job["num_drafts"]
            methods.append(
                {
                    **{n: m.job[n] for n in ("num_drafts", "draft_length", "verifier", "rows")},
                    "block_efficiency": m.block_efficiency,
                    "block_efficiency_error": m.efficiency_error,
                    "tokens_per_second": spread(m.block_efficiency * rows / m.per_turn),
                    "cost": spread(m.per_turn / alone.per_turn),
                    "steps": Estimate.of_rounds(m.per_turn / alone.per_turn).record(),
                    "speedup": m.times_as_fast_as(alone),
                    "gain": m.times_as_fast_as(get(1, longest, rows)),
                    "nodes": m.nodes,
                    "gigabytes_per_second": bandwidth(config, m) if plain else None,
                }
            )
    one = [m for m in methods if m["rows"] == 1 and m["num_drafts"]]
    fit = costs.fit_costs(
        {(m["num_drafts"], m["draft_length"]): m["cost"]["median"]
         for m in one if m["verifier"] == "kseq"})  # fmt: skip
    wanted = [*config["corner"], "kseq"]
    corner = next(m for m in one if [m["num_drafts"], m["draft_length"], m["verifier"]] == wanted)
    best = max((m for m in one if m["num_drafts"] > 1), key=lambda m: m["speedup"]["median"])
    # Speculative decoding has a best length of its own, which need not be the longest.
    single = max(
        m["speedup"]["median"] for m in one if (m["num_drafts"], m["verifier"]) == (1, "kseq")
    )
    best = best | {"gain": {"median": best["speedup"]["median"] / single}}
    theirs = min((x["ours_over_theirs"]["median"] for x in library), default=None)
    return {
        "run": run.folder.name,
        "pair": config["pair"],
        "rounds": rounds,
        "config": config,
        "environment": sessions[-1],
        "methods": methods,
        "library": library,
        "assisted": assisted,
        "forward_seconds": call_seconds,
        "stages": stages,
        "costs": vars(fit),
        "needed": needed(fit, corner, most, longest),
        "memory": run.read("memory"),
        "verdicts": verdicts(
            next(s for s in stages if s["num_drafts"] == most and s["verifier"] == "kseq"),
            corner, best, theirs),
    }  # fmt: skip


def bandwidth(config: Record, step: Measured) -> float | None:
    """Of autoregressive steps: what each must read, the weights and the caches, over its time."""
    slots = config["prompt_length"] + config["new_tokens"]
    dtype, rows = getattr(torch, config["dtype"]), step.job["rows"]
    read = prediction.step_bytes(config["pair"], dtype, rows, slots)
    return read and read / statistics.median(step.per_turn) / 1e9


def needed(fit: costs.Costs, corner: Record, most: int, longest: int) -> dict[str, float | None]:
    """For the paper's speed-up: the block efficiency at this cost; or, at this block efficiency, the
    draft's cost, with scoring as it is and with scoring of any number of tokens for the price of one."""
    wanted, cost = TARGETS["speedup"][0], corner["cost"]["median"]
    efficiency = corner["block_efficiency"]
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


def verdicts(turn: Record, corner: Record, best: Record, theirs: float | None) -> list[Record]:
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
        where = {n: at[n] for n in names} if at else None
        table.append({"target": name, "says": says, "goal": goal, "below": below,
                      "found": found, "met": met, "at": where, "best": at is best})  # fmt: skip
    return table


def summary(found: list[Record]) -> Record:
    """All runs; and the cost of a turn that the paper's Table 1 implies, with the same fit."""
    table = [row for row in paper()["table1"] if row["num_drafts"]]
    shapes = [(row["num_drafts"], row["draft_length"]) for row in table]
    cost = [row["block_efficiency"]["value"] / row["speed"]["value"] for row in table]
    implied = dict(zip(shapes, cost, strict=True))
    points = [{"num_drafts": k, "draft_length": n, "cost": c} for (k, n), c in implied.items()]
    return {
        "command": "python -m spectr_lite reproduce decoding",
        "paper": {"points": points, "costs": vars(costs.fit_costs(implied))},
        "runs": found,
    }


def show(found: Record) -> None:
    for row in found["verdicts"]:
        at = row["at"]
        where = "{verifier}, K={num_drafts}, L={draft_length}".format(**at) if at else ""
        value = "not measured" if row["found"] is None else f"{row['found']:.3f}"
        met = {True: "met", False: "NOT met", None: "-"}[row["met"]]
        bound = "at most" if row["below"] else "at least"
        print(f"{met:8} {row['target']:13} {bound} {row['goal']}, found {value} {where}")
