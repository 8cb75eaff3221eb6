"""All that a machine with one GPU should run, in order, in half an hour: checks, then measurements.

    python scripts/gpu_session.py [--minutes 30] [--only NAME ...]     results/ and one line per step
    python scripts/gpu_session.py --dry-run        every step, tiny, on the CPU, into a scratch folder

A step that fails or runs past its limit ends alone; what it had recorded stays, and the same run id
(`--run-id`) goes on with it. Output: _build/gpu-session/<step>.log. Nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from spectr_experiments import records
from spectr_lite.models.smollm2 import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "_build" / "gpu-session"
PYTHON = sys.executable


@dataclass(frozen=True)
class Step:
    """A command, its tiny form for a dry run, and the minutes after which it is stopped.

    `open_ended`: made to be stopped; what it has by then counts.
    """

    name: str
    command: list[str]
    tiny: list[str]
    minutes: float
    open_ended: bool = False


def steps(run_id: str, scratch: str) -> list[Step]:
    large = "smollm2-distilled" if (SHIPPED / "draft.safetensors").is_file() else "smollm2"

    def decoding(pair: str, minutes: float) -> Step:
        tiny = ["--quick", "--run-id", f"dry-{pair}"]
        return reproduce("decoding", f"decoding-{pair}", ["--pair", pair], tiny, minutes, 1.5)

    def reproduce(
        experiment: str,
        name: str,
        full: list[str],
        tiny: list[str],
        minutes: float,
        spare: float = 1,
    ) -> Step:
        command = ["-m", "spectr_lite", "reproduce", experiment]
        full = [
            *full,
            "--device",
            "cuda",
            "--run-id",
            run_id,
            "--resume",
            "--minutes",
            f"{minutes}",
        ]
        tiny = [*tiny, "--device", "cpu", "--results", scratch, "--minutes", "0.05"]
        return Step(name, [*command, *full], [*command, *tiny], minutes + spare)

    def table1(pair: str) -> Step:
        tiny = ["--pair", "bundled", "--cell", "kseq:2:2", "--prompts", "2"]
        tiny += ["--run-id", f"dry-{pair}"]
        return reproduce("table1", f"table1-{pair}", ["--pair", pair], tiny, 2.5)

    return [
        Step(
            "environment",
            ["-c", "from spectr_lite.book import environment; environment.report()"],
            ["-c", "from spectr_lite.book import environment; environment.report()"],
            1,
        ),
        Step("fetch-smollm2", ["-m", "training.fetch_smollm2"], ["-m", "training.fetch_smollm2"], 1),
        Step(
            "checks",
            ["-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "tests/test_graphs.py"],
            ["-m", "pytest", "-q", "tests/test_gpu.py", "-k", "cpu and agrees"],
            4,
        ),
        decoding("bundled", 2),
        decoding(large, 3),
        table1("bundled"),
        table1(large),
        reproduce("appendix-e", "appendix-e", [], ["--rounds", "1"], 2),
        reproduce(
            "verifiers", "verifiers", [], ["--rounds", "2", "--vocabularies", "100"], minutes=1
        ),
        Step(
            "distil",
            ["-m", "training.smollm2_draft", "--device", "cuda", "--run-id", run_id,
             "--stage", "sample", "shapes", "train"],
            ["-m", "training.smollm2_draft", "--help"],
            9,
            open_ended=True,
        ),
    ]  # fmt: skip


def run(step: Step, command: list[str], minutes: float) -> dict:
    """Run one step to its end or limit, its output in a file. What happened, and its last line."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{step.name}.log"
    start = time.monotonic()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [PYTHON, *command], cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = "ok" if process.wait(60 * minutes) == 0 else f"exit {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            status = "stopped, as meant" if step.open_ended else f"stopped at {minutes:.1f} minutes"
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    return {
        "step": step.name,
        "command": " ".join(["python", *command]),
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "last_line": next((line for line in reversed(lines) if line), ""),
    }


def session(
    todo: Iterable[Step], minutes: float, dry: bool, record: Callable[[dict], None]
) -> bool:
    """Run the steps one after another; False if one failed. A minute is the least a step gets."""
    deadline, good = time.monotonic() + 60 * minutes, True
    for step in todo:
        left = (deadline - time.monotonic()) / 60
        command = step.tiny if dry else step.command
        if left < 1:
            done = {"step": step.name, "status": "left out: no time", "seconds": 0, "last_line": ""}
        else:
            done = run(step, command, min(step.minutes, left))
        record(done)
        good &= done["status"] in ("ok", "stopped, as meant")
        print(f"{done['step']:28}{done['status']:22}{done['seconds']:7.1f} s  {done['last_line'][:90]}",
              flush=True)  # fmt: skip
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-id", help="name of every run of this session (default: cuda-DATE)")
    parser.add_argument("--minutes", type=float, default=30, help="for all steps together")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--dry-run", action="store_true", help="every step, tiny, on the CPU")
    options = parser.parse_args()
    run_id = options.run_id or f"cuda-{records.now()[:10]}"
    with tempfile.TemporaryDirectory() as scratch:
        todo = steps(run_id, scratch)
        names = [step.name for step in todo]
        if unknown := set(options.only or ()) - set(names):
            parser.error(f"--only: no step {', '.join(sorted(unknown))}; steps: {', '.join(names)}")
        todo = [step for step in todo if not options.only or step.name in options.only]
        if options.dry_run:
            return 0 if session(todo, options.minutes, True, lambda done: None) else 1
        folder = ROOT / "results" / "gpu-session" / run_id
        folder.mkdir(parents=True, exist_ok=True)

        def record(done: dict) -> None:
            with (folder / "steps.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps({"end": records.now(), **done}) + "\n")

        return 0 if session(todo, options.minutes, False, record) else 1


if __name__ == "__main__":
    sys.exit(main())
