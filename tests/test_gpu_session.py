"""The session for a machine with a GPU: how it runs a step, and that every command it names exists."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training import carry

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
    assert len(set(names)) == len(names) == 15
    return {name: (tmp_path / "logs" / f"{name}.log").read_text().splitlines() for name in names}


def test_a_bare_machine_leaves_out_what_it_lacks_and_goes_on(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ "$*" != *pytest* && "$*" != *load_target* ]]\n')
    python.chmod(0o755)
    done = bash(SESSION, logs=tmp_path, python=str(python))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    lacking = {name: what for name, what in lines.items() if what.startswith("left out")}
    needing = ("short-smollm2", "decoding-smollm2", "table1-smollm2", "distil")
    large = dict.fromkeys(needing, "left out  without SmolLM2")
    assert lacking == {"checks": "left out  without pytest"} | large
    assert {"decoding-bundled", "table1-bundled", "appendix-e", "verifiers"} < lines.keys()


def test_what_is_right_comes_before_what_is_fast(commands: dict[str, list[str]]) -> None:
    order = [re.split("-", name)[0] for name in commands]
    assert order.index("checks") < order.index("short") < order.index("table1")
    assert order.index("table1") < order.index("decoding") < order.index("distil")
    assert order[-1] == "distil"


def test_only_the_steps_that_are_named(tmp_path: Path) -> None:
    statuses, words, good = steps_run(f"ONLY='good after'\n{STEPS}", tmp_path)
    assert (statuses, words, good) == (["ok", "ok"], ["last", "still here"], True)


# --- SmolLM2 in parts ---


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file that takes eleven parts, split; the file itself is gone."""
    whole = bytes(range(256)) * 41
    monkeypatch.setattr(carry, "FOLDER", tmp_path / "smollm2")
    monkeypatch.setattr(carry, "PARTS", tmp_path / "carry")
    monkeypatch.setattr(carry, "PART", 1000)
    monkeypatch.setattr(carry, "SHA256", hashlib.sha256(whole).hexdigest())
    carry.FOLDER.mkdir()
    (carry.FOLDER / carry.FILE).write_bytes(whole)
    carry.split()
    (carry.FOLDER / carry.FILE).unlink()
    assert sorted(part.stat().st_size for part in carry.PARTS.iterdir()) == [496, *[1000] * 10]
    return whole


def test_parts_are_joined_and_found(carried: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    carry.join()
    assert [path.name for path in carry.FOLDER.iterdir()] == [carry.FILE]
    assert (carry.FOLDER / carry.FILE).read_bytes() == carried
    carry.join()
    assert capsys.readouterr().out.endswith("nothing to join\n")


@pytest.mark.parametrize("harm", [lambda part: part.unlink(), lambda part: part.write_bytes(b"x")])
def test_a_part_that_is_missing_or_changed_is_noticed(
    harm: Callable[[Path], object], carried: bytes
) -> None:
    harm(carry.PARTS / f"{carry.FILE}.3")
    with pytest.raises(ValueError, match=r"Q4_1\.gguf\.10 together have the SHA-256 .* all parts"):
        carry.join()
    assert not (carry.FOLDER / carry.FILE).exists()


def test_a_part_travels_beside_the_files_of_the_checkout() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git, or no checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    tracked = sum(path.stat().st_size for path in files if path.is_file())
    assert tracked + carry.PART < 64 * 2**20  # of one transfer


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
    pairs = {'"short-$pair"': 4, '"table1-$pair"': 2, '"decoding-$pair"': 2}  # lines in loops
    assert pairs.keys() < dict(limits).keys()
    total = sum(float(m) * pairs.get(name, 1) for name, m in limits)
    assert 30 < total <= 35  # limits, not what steps take; distillation has what is left


def test_a_name_that_is_no_command_would_be_found_out() -> None:
    with pytest.raises(pytest.fail.Exception, match="no-such-table"):
        options_of("reproduce", "no-such-table")
