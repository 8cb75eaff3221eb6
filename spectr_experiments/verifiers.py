"""What one call of each selection rule costs, next to K-SEQ in the same run.

    python -m spectr_experiments.verifiers [--device cuda] [--run-id NAME] [--rounds 15]
    python -m spectr_experiments.verifiers --summarise

Two jobs are timed. `token`: `_select` for one row with k = 8 drafts (or the number a rule is made for).
`block`: `_verify` for one row with K = 8 paths of L = 4 tokens (one path for the rules made for one).
All rules take turns within a round, so that a slow moment touches all of them. Records are
appended to results/benchmark-verifiers/<run-id>/records.jsonl; a run that was stopped goes on where it
ended. The summary ships in spectr_lite/results/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from spectr_experiments import records
from spectr_lite import distributions, verifiers
from spectr_lite.distributions import IID, sample

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "benchmark-verifiers"
SUMMARY = ROOT / "spectr_lite" / "results" / "benchmark-verifiers.json"
WARM_UP = 3


def drafts_taken(name: str, wanted: int) -> int:
    """`wanted`, or the number of drafts the rule is made for."""
    for k in (wanted, 2, 1):
        try:
            return verifiers.get(name).check_drafts(k)
        except ValueError:
            continue
    raise ValueError(f"{name}: takes neither {wanted} drafts, nor 2, nor 1.")


def token_job(name: str, draft: torch.Tensor, target: torch.Tensor, k: int) -> Callable[[], object]:
    rule = verifiers.get(name)
    generator = torch.Generator(draft.device).manual_seed(0)
    tokens = rule.default_drafting.sample(draft, k, generator)
    return lambda: rule._select(draft, target, tokens, generator)


def block_job(
    name: str, draft: torch.Tensor, target: torch.Tensor, k: int, length: int
) -> Callable[[], object]:
    """Distributions that depend on the depth alone, so that many paths share a prefix as real ones
    do.
    """
    rule = verifiers.get(name)
    generator = torch.Generator(draft.device).manual_seed(0)
    vocabulary = draft.shape[-1]
    shift = [torch.roll(draft, 17 * i, -1) for i in range(length + 1)]
    draft_probs = torch.stack(shift[:-1], 1).unsqueeze(1).expand(1, k, length, vocabulary)
    aims = [torch.roll(target, 17 * i, -1) for i in range(length + 1)]
    target_probs = torch.stack(aims, 1).unsqueeze(1).expand(1, k, length + 1, vocabulary)
    paths = sample(draft_probs.contiguous(), generator)
    return lambda: rule._verify(draft_probs, target_probs, paths, generator)


def jobs(config: dict, device: torch.device) -> Iterator[tuple[dict, Callable[[], object]]]:
    for vocabulary in config["vocabularies"]:
        pair = distributions.zipf(vocabulary, seed=config["seed"])
        draft, target = (torch.as_tensor(p, dtype=torch.float32)[None].to(device) for p in pair)
        for name in verifiers.names():
            rule = verifiers.get(name)
            if rule._given_paths.__func__ is verifiers.Verifier._given_paths:
                k = drafts_taken(name, config["k"])
                key = {"job": "token", "verifier": name, "vocabulary": vocabulary, "drafts": k}
                yield key, token_job(name, draft, target, k)
            if IID in rule.valid_for and name in config["block_rules"]:
                k = drafts_taken(name, config["k"])
                key = {"job": "block", "verifier": name, "vocabulary": vocabulary, "drafts": k}
                yield key, block_job(name, draft, target, k, config["length"])


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(config: dict, folder: Path) -> None:
    device = torch.device(config["device"])
    records = folder / "records.jsonl"
    done = {
        (r["job"], r["verifier"], r["vocabulary"], r["round"])
        for r in (json.loads(line) for line in records.read_text().splitlines())
    } if records.exists() else set()  # fmt: skip
    work = list(jobs(config, device))
    for _key, call in work:
        for _ in range(WARM_UP):
            call()
    with records.open("a", encoding="utf-8") as out:
        for turn in range(config["rounds"]):
            for key, call in work:
                if (key["job"], key["verifier"], key["vocabulary"], turn) in done:
                    continue
                line = {**key, "round": turn, "seconds": seconds(call, device)}
                out.write(json.dumps(line) + "\n")
                out.flush()
            print(f"round {turn + 1} of {config['rounds']}", flush=True)


def summarise() -> dict:
    """Medians and quartiles of every run, and their ratios to K-SEQ of the same run and job."""
    runs = []
    for folder in sorted(path.parent for path in RESULTS.glob("*/records.jsonl")):
        env = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        times: dict[tuple, list[float]] = {}
        for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            key = tuple(record[name] for name in ("job", "vocabulary", "verifier", "drafts"))
            times.setdefault(key, []).append(record["seconds"])
        median = {key: statistics.median(values) for key, values in times.items()}
        rows = []
        for key in sorted(times):
            job, vocabulary, verifier, drafts = key
            kseq = next(m for other, m in median.items() if other[:3] == (job, vocabulary, "kseq"))
            low, _, high = statistics.quantiles(times[key], n=4)
            rows.append(
                {
                    "job": job,
                    "vocabulary": vocabulary,
                    "verifier": verifier,
                    "drafts": drafts,
                    "median_seconds": median[key],
                    "quartiles": [low, high],
                    "ratio_to_kseq": median[key] / kseq,
                    "rounds": len(times[key]),
                }
            )
        runs.append({"run": folder.name, "config": config, "environment": env, "rows": rows})
    return {"command": "python -m spectr_experiments.verifiers", "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run-id", default=None, help="folder name; the same one resumes a run")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[50_000, 128_000])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the record goes")
    parser.add_argument("--summarise", action="store_true", help="only rewrite the summary")
    options = parser.parse_args()
    if not options.summarise:
        torch.set_num_threads(options.threads)
        config = {
            "device": options.device,
            "vocabularies": options.vocabularies,
            "k": 8,
            "length": 4,
            "rounds": options.rounds,
            "warm_up": WARM_UP,
            "seed": 0,
            "pair": "distributions.zipf(vocabulary, exponent=1.0, mismatch=1.0, seed)",
            "block_rules": ["kseq", "recursive", "optimal", "block", "traversal",
                            "multipath-block", "optimal-block"],
        }  # fmt: skip
        start = datetime.datetime.now(datetime.UTC)
        folder = options.results / (options.run_id or f"{options.device}-{start:%Y%m%d-%H%M%S}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        env = {
            "command": f"python -m spectr_experiments.verifiers --device {options.device} "
            f"--run-id {folder.name} --rounds {options.rounds} --threads {options.threads}",
            "start": start.isoformat(timespec="seconds"),
            "dtype": "float32",
            **records.environment(
                ROOT, ("spectr_lite", "scripts"), ("torch", "numpy", "scipy"), options.device
            ),
        }
        measure(config, folder)
        env["end"] = records.now()
        (folder / "env.json").write_text(json.dumps(env, indent=2) + "\n", encoding="utf-8")
    if options.results != RESULTS:
        return
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_text(json.dumps(summarise(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
