"""`python -m spectr_lite reproduce`: every experiment, `verify`, `summarise` and `predict`.

An experiment is a module with FOLDER (its folder in results/), SCHEMA and KEYS of its records, and
    plans(args, device, dtype)          the runs that the arguments ask for (records.Plan)
    summarise(run, config, sessions)    what a finished run says
and, if it has them, add_arguments(parser), show(found), report(found) -> an HTML page beside the
records, and summary(found of every run) -> the content of its file in spectr_lite/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

import spectr_lite
from spectr_experiments import prediction, records
from spectr_experiments.table1 import ranks
from spectr_lite.book.environment import device_and_dtype
from spectr_lite.commands.arguments import folder_name, positive, whole
from spectr_lite.commands.ending import resumable

CHECKOUT = Path(spectr_lite.__file__).resolve().parents[1]
SOURCES = ("spectr_lite", "spectr_experiments", ":!spectr_lite/results")
PACKAGES = ("torch", "numpy", "scipy", "tokenizers", "safetensors",
            "cvxpy", "highspy", "gguf", "transformers")  # fmt: skip
EXPERIMENTS = {  # name: module, what it measures
    "table1": ("table1", "block efficiency and speed"),
    "appendix-e": ("appendix_e", "latency along K and L"),
    "decoding": ("decoding", "tokens per second, and where a turn's time goes"),
    "transport": ("transport", "cost of the exact optimum"),
    "verifiers": ("verifiers", "cost of one call of each rule"),
    "drafts": ("drafts", "SmolLM2's drafts: acceptance and cost"),
    "models": ("models", "every pair on the same text"),
    "advise": ("advise", "which rule and shape pay for a pair, on this device"),
    "next-token-laws": ("next_token", "a sample of SmolLM2's next-token distributions"),
}


def experiment(name: str) -> ModuleType:
    return importlib.import_module(f"spectr_experiments.{EXPERIMENTS[name][0]}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="experiment", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    common.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    common.add_argument("--run-id", type=folder_name, help="default: from the settings")
    common.add_argument("--minutes", type=positive, help="of each run, shared by its phases")
    cores = whole(1, os.cpu_count() or 1)
    common.add_argument("--threads", type=cores, default=1, help="on a CPU (default: 1)")
    common.add_argument("--results", type=Path, default=Path("results"), help="default: results")
    for name, (_, what) in EXPERIMENTS.items():
        command = commands.add_parser(name, parents=[common], help=what)
        getattr(experiment(name), "add_arguments", lambda _: None)(command)
        command.set_defaults(reproduce=run_experiment)
    verify = commands.add_parser("verify", help="check a finished run's hashes, schema and order")
    verify.add_argument("run_folder", type=Path, metavar="RUN", help="results/EXPERIMENT/RUN-ID")
    verify.set_defaults(reproduce=run_verify)
    again = commands.add_parser("summarise", help="write the package's summaries from results/")
    again.set_defaults(reproduce=lambda _: write_summaries(CHECKOUT))
    predict = commands.add_parser("predict", help="kernels, bytes and time of a turn on a GPU")
    predict.set_defaults(reproduce=lambda _: prediction.write(CHECKOUT, SOURCES))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    args.reproduce(args)
    return 0


def run_experiment(args: argparse.Namespace) -> None:
    """Every run that is asked for. With torchrun, ranks only wait for each other, and for long."""
    module = experiment(args.experiment)
    rank, world, local = ranks()
    device, dtype = _device(args, local, getattr(module, "CPU_ONLY", False))
    if world > 1:
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))
    again = [*args.words, *([] if args.resume else ["--resume"])]
    with resumable("spectr_lite", *again):
        for plan in module.plans(args, device, dtype):
            _record(args, module, plan, device, rank, world)
    if world > 1:
        dist.destroy_process_group()


def _record(
    args: argparse.Namespace, module: ModuleType, plan: records.Plan, device: torch.device,
    rank: int, world: int,
) -> None:  # fmt: skip
    found = records.Run(args.results / module.FOLDER / plan.run_id, module.SCHEMA, module.KEYS)
    wait = dist.barrier if world > 1 else lambda: None
    minutes = plan.minutes if args.minutes is None else args.minutes
    total = sum(phase.share for phase in plan.phases)
    with contextlib.nullcontext() if rank else found.lock():
        if rank == 0:
            kinds = [kind for phase in plan.phases for kind in phase.kinds]
            found.open(plan.config, args.resume, kinds)
        wait()
        for kind in module.SCHEMA:
            found.mend(kind, rank)
        for phase in plan.phases:
            seconds = None if minutes is None else 60 * minutes * phase.share / total
            if rank == 0 and seconds is not None:
                print(
                    f"{plan.run_id}, {phase.name}: {seconds / 60:.2g} of {minutes:g} minutes; whole "
                    "rounds, as many as fit",
                    flush=True,
                )
            with _session(args, found, phase.name, device, rank):
                if rank == 0 or phase.shared:
                    phase.measure(found, seconds)
                wait()
                if rank == 0:
                    for kind in phase.kinds:
                        found.finish(kind)
        if rank == 0:
            found.verify()
            summarised = summary_of(found)
            getattr(module, "show", lambda _: None)(summarised)
            if hasattr(module, "report"):
                records.replace(found.folder / "report.html", module.report(summarised).encode())
            print(f"recorded: {module.FOLDER}/{plan.run_id}")


def run_verify(args: argparse.Namespace) -> None:
    run = run_at(args.run_folder)
    counts = run.verify()
    if run.is_old:
        summary_of(run)  # which reads what it has beside its records
    listed = ", ".join(f"{count} records in {name}" for name, count in counts.items())
    print(f"OK: {args.run_folder}, {listed or 'laws.npz as in config.json'}")


def write_summaries(root: Path) -> None:
    """Every file of spectr_lite/results from the finished runs in results/ of a checkout."""
    if not (root / "results").is_dir():
        raise ValueError(
            "summarise: found no folder results/ beside the package, whose own files it writes from "
            "there. Run it in a checkout of the book"
        )
    for module in map(experiment, EXPERIMENTS):
        folders = sorted((root / "results" / module.FOLDER).glob("*/"))
        if runs := [run for run in map(run_at, folders) if run.is_finished]:
            name, content = summary(module, runs)
            records.replace(root / "spectr_lite" / "results" / name, content)
            print(f"wrote: spectr_lite/results/{name}")


def summary(module: ModuleType, runs: list[records.Run]) -> tuple[str, bytes]:
    """Name and bytes of an experiment's summary: of all its runs, or of the newest."""
    if hasattr(module, "summary"):
        found = module.summary([summary_of(run) for run in runs])
    else:
        found = summary_of(max(runs, key=lambda r: (r.sessions[-1]["start"], r.folder.name)))
    if isinstance(found, bytes):
        return f"{module.FOLDER}.npz", found
    return f"{module.FOLDER}.json", (json.dumps(found, indent=1) + "\n").encode()


def summary_of(run: records.Run) -> Any:
    return module_of(run.folder).summarise(run, run.config, run.sessions)


def run_at(folder: Path) -> records.Run:
    module = module_of(folder)
    return records.Run(folder, module.SCHEMA, module.KEYS)


def module_of(folder: Path) -> ModuleType:
    """The experiment whose run is in results/EXPERIMENT/RUN-ID."""
    modules = {module.FOLDER: module for module in map(experiment, EXPERIMENTS)}
    name = folder.resolve().parent.name
    if name not in modules:
        raise ValueError(
            f"RUN: found '{folder}'. Give results/EXPERIMENT/RUN-ID, with EXPERIMENT one of "
            f"{', '.join(modules)}"
        )
    return modules[name]


def _device(
    args: argparse.Namespace, local: int, cpu_only: bool
) -> tuple[torch.device, torch.dtype]:
    device, dtype = device_and_dtype()
    if args.device == "cuda" and cpu_only:
        raise ValueError(
            f"--device: found 'cuda', but {args.experiment} is of the CPU. Leave it out"
        )
    if args.device == "cuda" and device.type != "cuda":
        raise ValueError("--device: found 'cuda', but torch sees no GPU. Use --device cpu")
    if cpu_only or args.device == "cpu" or device.type == "cpu":
        torch.set_num_threads(args.threads)
        return torch.device("cpu"), torch.float32
    torch.cuda.set_device(local)
    return torch.device("cuda", local), dtype


@contextlib.contextmanager
def _session(
    args: argparse.Namespace, run: records.Run, phase: str, device: torch.device, rank: int
) -> Iterator[None]:
    """An entry of env.json, written at the start by the first process and completed at the end."""
    if rank:
        yield
        return
    hidden = {str(args.results): "results"}
    command = " ".join(hidden.get(a, shlex.quote(a)) for a in args.words)
    root = CHECKOUT if (CHECKOUT / ".git").exists() else None
    entry = {
        "phase": phase,
        "command": f"python -m spectr_lite {command}",
        "start": records.now(),
        "processes": ranks()[1],
        "package": spectr_lite.__version__,
        **records.environment(root, SOURCES, PACKAGES, device),
        "end": None,
    }
    run.note(entry)
    try:
        yield
    finally:
        load = round(os.getloadavg()[0], 2)
        run.note(entry | {"end": records.now(), "load_average_end": load})
