"""The session for a machine with a GPU: how it runs a step, and that every command it names exists."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SESSION = ROOT / "runs" / "gpu.sh"


def bash(*arguments: str | Path, logs: Path, python: str) -> subprocess.CompletedProcess[str]:
    settings = {"LOGS": str(logs), "PYTHON": python, "RUN_ID": "cuda-1"}
    return subprocess.run(
        ["bash", *arguments], capture_output=True, text=True, env=os.environ | settings
    )


def steps_run(lines: str, logs: Path, dry: bool = False) -> tuple[list[str], list[str], bool]:
    """The status and the last words of each step, and whether all went well; steps are bash's own."""
    script = f"source {SESSION} {'--dry-run' if dry else ''}\n{lines}\nexit $FAILED"
    done = bash("-c", script, logs=logs, python="bash")
    assert done.stdout == (logs / "steps.log").read_text()
    found = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]
    return [step[1] for step in found], [step[-1] for step in found], done.returncode == 0


STEPS = """
step good 10s -c 'echo first; echo last' -- -c 'echo tiny'
step bad 10s -c 'exit 3' -- -c 'echo tiny'
step slow 0.3s -c 'echo begun; exec sleep 60' -- -c 'echo tiny'
OPEN=1 step open 0.3s -c 'echo begun; exec sleep 60' -- -c 'echo tiny'
step after 10s -c 'echo still here' -- -c 'echo tiny'
"""


def test_steps_fail_and_stop_alone(tmp_path: Path) -> None:
    statuses, words, good = steps_run(STEPS, tmp_path)
    assert statuses == ["ok", "exit 3", "stopped at 0.3s", "stopped, as meant", "ok"]
    assert (words[0], words[2], words[-1]) == ("last", "begun", "still here") and not good
    assert (tmp_path / "good.log").read_text() == "first\nlast\n"


def test_an_open_ended_step_that_fails_has_failed(tmp_path: Path) -> None:
    statuses, _, good = steps_run("OPEN=1 step open 10s -c 'exit 2' -- -c true", tmp_path)
    assert statuses == ["exit 2"] and not good


def test_a_dry_run_takes_the_tiny_forms(tmp_path: Path) -> None:
    statuses, words, good = steps_run(STEPS, tmp_path, dry=True)
    assert set(statuses) == {"ok"} and set(words) == {"tiny"} and good


@pytest.fixture(params=[[], ["--dry-run"]], ids=["full", "dry"])
def commands(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, list[str]]:
    """Python's arguments in every step, as a stand-in for it writes them down."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = bash(SESSION, *request.param, logs=tmp_path / "logs", python=str(python))
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert len(set(names)) == len(names) == 10
    return {name: (tmp_path / "logs" / f"{name}.log").read_text().splitlines() for name in names}


def test_a_bare_machine_leaves_out_what_it_lacks_and_goes_on(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ "$*" != *pytest* && "$*" != *load_target* ]]\n')
    python.chmod(0o755)
    done = bash(SESSION, logs=tmp_path, python=str(python))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    lacking = {name: what for name, what in lines.items() if what.startswith("left out")}
    large = dict.fromkeys(
        ("decoding-smollm2", "table1-smollm2", "distil"), "left out  without SmolLM2"
    )
    assert lacking == {"checks": "left out  without pytest"} | large
    assert {"decoding-bundled", "table1-bundled", "appendix-e", "verifiers"} < lines.keys()


@cache
def options_of(verb: str, what: str) -> set[str]:
    """The options of `spectr_lite reproduce WHAT`."""
    listed = subprocess.run(
        [sys.executable, "-m", "spectr_lite", verb, what, "--help"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if listed.returncode:
        pytest.fail(f"there is no command {verb} {what}: {listed.stderr}")
    return set(re.findall(r"--[\w-]+", listed.stdout))


def test_every_step_is_there(commands: dict[str, list[str]]) -> None:
    for name, (option, what, *more) in commands.items():
        if option == "-c":
            subprocess.run([sys.executable, option, what, *more], check=True, cwd=ROOT)
            continue
        assert option == "-m" and importlib.util.find_spec(what), name
        for path in (argument for argument in more if argument.startswith("tests/")):
            assert (ROOT / path).is_file(), name
        if what == "spectr_lite":
            options = {argument for argument in more if argument.startswith("--")}
            assert options <= options_of(*more[:2]), name


def test_the_limits_of_all_steps_come_to_little_more_than_half_an_hour() -> None:
    limits = re.findall(r"\bstep (\S+) ([\d.]+)m ", SESSION.read_text(encoding="utf-8"))
    twice = 2  # the line in the loop over pairs
    total = sum(float(m) * (twice if "$pair" in name else 1) for name, m in limits)
    assert 30 < total <= 35  # limits, not what steps take


def test_a_name_that_is_no_command_would_be_found_out() -> None:
    with pytest.raises(pytest.fail.Exception, match="no-such-table"):
        options_of("reproduce", "no-such-table")
