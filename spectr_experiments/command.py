"""`python -m spectr_lite reproduce`: table1, appendix-e, verify and summarise."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import spectr_lite
from spectr_experiments import appendix_e, records, table1
from spectr_lite import models
from spectr_lite.book.environment import device_and_dtype
from spectr_lite.book.recorded import paper
from spectr_lite.models.prompts import TEXTS

CHECKOUT = Path(spectr_lite.__file__).resolve().parents[1]
SHIPPED = Path(spectr_lite.__file__).resolve().parent / "results"
EXPERIMENTS = {"table1": table1, "appendix-e": appendix_e}
PHASES = {"block-efficiency": "records", "timing": "timing", "draft-laws": "draft-laws"}
SHARES = {"block-efficiency": 0.65, "timing": 0.2, "draft-laws": 0.15}  # of the time, if limited
SUBSET_MINUTES = 20
PACKAGES = ("torch", "numpy", "scipy", "tokenizers", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="experiment", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    common.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    common.add_argument("--run-id", help="folder name (default: from the settings)")
    common.add_argument("--minutes", type=float, help="of each pair, shared by its phases")
    common.add_argument("--threads", type=int, default=1, help="on a CPU (default: 1)")
    common.add_argument("--results", type=Path, default=Path("results"), help="default: results")

    table = commands.add_parser("table1", parents=[common], help="block efficiency and speed")
    table.add_argument(
        "--pair", nargs="+", default=["bundled"], metavar="PAIR",
        help=f"a run for each: {', '.join(models.pair_names())}, or a directory (default: bundled)",
    )  # fmt: skip
    table.add_argument("--subset", action="store_true", help="fewer cells and prompts, for a CPU")
    table.add_argument(
        "--cell", action="append", default=[], metavar="RULE:K:L[:T]",
        help="this cell instead of the setting's; may be repeated, such as --cell kseq:8:4",
    )  # fmt: skip
    table.add_argument("--prompts", type=int, metavar="N", help="instead of the setting's number")
    table.add_argument("--text", choices=list(TEXTS), default="sotu", help="default: sotu")
    table.add_argument(
        "--phase", nargs="+", choices=list(PHASES), default=list(PHASES), help="default: all"
    )
    table.set_defaults(reproduce=run_table1)

    latency = commands.add_parser("appendix-e", parents=[common], help="latency along K and L")
    latency.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    latency.set_defaults(reproduce=run_appendix_e)

    verify = commands.add_parser("verify", help="check a finished run's hashes, schema and order")
    verify.add_argument("run_folder", type=Path, metavar="RUN", help="results/EXPERIMENT/RUN-ID")
    verify.set_defaults(reproduce=run_verify)

    again = commands.add_parser("summarise", help="write the package's summaries from results/")
    again.set_defaults(reproduce=lambda _: write_summaries(CHECKOUT))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    args.reproduce(args)
    return 0


def run_table1(args: argparse.Namespace) -> None:
    cells = [table1.Cell.parse(text) for text in args.cell]
    if args.prompts is not None and args.prompts < 1:
        raise ValueError(f"--prompts: found {args.prompts}. Give a whole number of at least 1")
    for pair_name in args.pair:
        _run_pair(args, pair_name, cells)


def _run_pair(args: argparse.Namespace, pair_name: str, cells: list[table1.Cell]) -> None:
    rank, world, local = table1.ranks()
    device, dtype = _device(args, local)
    pair = models.load_pair(pair_name, device, dtype)
    name = "subset" if args.subset else "full"
    config = table1.make_config(pair, device, name, args.text, cells, args.prompts)
    stem = args.run_id or f"{device.type}-{'cells' if cells else name}"
    record = _run("table1", args.results / "table1" / f"{Path(pair_name).name}-{stem}")
    minutes = SUBSET_MINUTES if args.subset and args.minutes is None else args.minutes
    total = sum(SHARES[phase] for phase in args.phase)
    if world > 1:  # Gloo on any device: ranks only wait for each other, and for long
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))
    wait = dist.barrier if world > 1 else lambda: None
    if rank == 0:
        record.open(config, args.resume, [PHASES[phase] for phase in args.phase])
    wait()
    for phase in args.phase:
        seconds = None if minutes is None else 60 * minutes * SHARES[phase] / total
        with _session(args, record, phase, device, rank):
            if phase == "block-efficiency":
                table1.block_efficiency(record, config, pair, rank, world, seconds)
            elif rank == 0 and phase == "timing":
                table1.wall_clock(record, config, pair, seconds)
            elif rank == 0:
                table1.draft_laws(record, config, pair, seconds)
            wait()
            if rank == 0:
                record.finish(PHASES[phase])
    if world > 1:
        dist.destroy_process_group()
    if rank == 0:
        record.verify()
        show_table1(record)


def run_appendix_e(args: argparse.Namespace) -> None:
    device, dtype = _device(args, 0)
    config = appendix_e.make_config(device, dtype, args.rounds)
    record = _run("appendix-e", args.results / "appendix-e" / (args.run_id or device.type))
    record.open(config, args.resume, ["records"])
    with _session(args, record, "latency", device, 0):
        seconds = None if args.minutes is None else 60 * args.minutes
        appendix_e.measure(record, config, *appendix_e.models(device, dtype), seconds)
        record.finish("records")
    record.verify()
    print("  K  L  positions  draft  score  verify  turn (ms)  turn / autoregressive turn")
    for row in summary_of(record)["cells"]:
        times = "  ".join(f"{row[n] * 1e3:6.1f}" for n in ("draft", "score", "verify", "turn"))
        place = f"{row['num_drafts']:3} {row['draft_length']:2}  {row['positions']:9}"
        print(f"{place}  {times}     {row['turn_ratio']:.2f}")


def run_verify(args: argparse.Namespace) -> None:
    folder = args.run_folder
    if folder.parent.name not in EXPERIMENTS:
        raise ValueError(
            f"RUN: found '{folder}'. Give results/EXPERIMENT/RUN-ID, with EXPERIMENT one of "
            f"{', '.join(EXPERIMENTS)}"
        )
    counts = _run(folder.parent.name, folder).verify()
    print(f"OK: {folder}, " + ", ".join(f"{n} records in {name}" for name, n in counts.items()))


def write_summaries(root: Path) -> None:
    """spectr_lite/results/{table1,appendix-e}.json from every run in results/ that has records."""
    for name in EXPERIMENTS:
        folders = sorted(path.parent for path in (root / "results" / name).glob("*/manifest.json"))
        content = {
            "command": f"python -m spectr_lite reproduce {name}",
            "runs": [summary_of(_run(name, folder)) for folder in folders],
        }
        if folders:
            records.write_json(root / "spectr_lite" / "results" / f"{name}.json", content)


def summary_of(record: records.Run) -> dict[str, Any]:
    config, env = (
        json.loads((record.folder / name).read_text(encoding="utf-8"))
        for name in ("config.json", "env.json")
    )
    return EXPERIMENTS[record.folder.parent.name].summarise(record, config, env["sessions"])


def show_table1(record: records.Run) -> None:
    """The run's rows, with the paper's number where it has one."""
    theirs = {(r["num_drafts"], r["draft_length"]): r for r in paper()["table1"]}
    found = summary_of(record)
    print(f"{found['run']}: {found['label']}, {found['prompts']} prompts, {found['device']}")
    print("  block efficiency [95%]      speed   cell                          paper's table 1")
    for row in found["cells"]:
        low, high = row["interval"] or (float("nan"),) * 2
        ours = f"{row['block_efficiency'] or float('nan'):8.3f} [{low:.3f}, {high:.3f}]"
        speed = f"{row['speed']['ratio']:5.2f}x" if row["speed"] else "     -"
        same = row["verifier"] in ("kseq", "autoregressive") and row["temperature"] == 1
        paper_row = theirs.get((row["num_drafts"], row["draft_length"])) if same else None
        cell = table1.Cell(*(row[n] for n in list(table1.CELL)[1:]))
        beside = (
            f"{paper_row['block_efficiency']['value']}, {paper_row['speed']['value']}x"
            if paper_row
            else ""
        )
        print(f"{ours:<28} {speed}   {cell.name:<28}  {beside}".rstrip())


def _run(name: str, folder: Path) -> records.Run:
    module = EXPERIMENTS[name]
    return records.Run(folder, module.SCHEMA, module.KEYS)


def _device(args: argparse.Namespace, local: int) -> tuple[torch.device, torch.dtype]:
    device, dtype = device_and_dtype()
    if args.device == "cuda" and device.type != "cuda":
        raise ValueError("--device: found 'cuda', but torch sees no GPU. Use --device cpu")
    if args.device == "cpu" or device.type == "cpu":
        torch.set_num_threads(args.threads)
        return torch.device("cpu"), torch.float32
    torch.cuda.set_device(local)
    return torch.device("cuda", local), dtype


@contextlib.contextmanager
def _session(
    args: argparse.Namespace, record: records.Run, phase: str, device: torch.device, rank: int
) -> Iterator[None]:
    """An entry of env.json, written at the start by the first process and completed at the end."""
    if rank:
        yield
        return
    hidden = {str(args.results): "results"}
    command = " ".join(hidden.get(a, shlex.quote(a)) for a in sys.argv[1:])
    root = CHECKOUT if (CHECKOUT / ".git").exists() else None
    entry = {
        "phase": phase,
        "command": f"python -m spectr_lite {command}",
        "start": records.now(),
        "processes": table1.ranks()[1],
        "package": spectr_lite.__version__,
        **records.environment(root, ("spectr_lite",), PACKAGES, device),
        "end": None,
    }
    record.note(entry)
    try:
        yield
    finally:
        load = round(os.getloadavg()[0], 2)
        record.note(entry | {"end": records.now(), "load_average_end": load})
