"""The session for a machine with a GPU: its runner, and that every step's script exists."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def gpu_session(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "gpu_session", ROOT / "scripts" / "gpu_session.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_session", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOGS", tmp_path)
    return module


def test_steps_fail_and_stop_alone(gpu_session, capsys):
    def step(name, program, minutes=1.0, **more):
        return gpu_session.Step(name, ["-c", program], ["-c", "print('tiny')"], minutes, **more)

    sleep = "import time; print('begun', flush=True); time.sleep(60)"
    todo = [
        step("good", "print('first'); print('last')"),
        step("bad", "raise SystemExit(3)"),
        step("slow", sleep, 0.02),
        step("open", sleep, 0.02, open_ended=True),
        step("after", "print('still here')"),
    ]
    done = []
    assert not gpu_session.session(todo, 30, False, done.append)
    assert [row["status"] for row in done] == [
        "ok", "exit 3", "stopped at 0.0 minutes", "stopped, as meant", "ok"
    ]  # fmt: skip
    assert done[0]["last_line"] == "last" and done[-1]["last_line"] == "still here"
    assert len(capsys.readouterr().out.splitlines()) == len(todo)
    done.clear()
    assert gpu_session.session(todo, 30, True, done.append)
    assert {row["last_line"] for row in done} == {"tiny"}
    done.clear()
    assert not gpu_session.session(todo[:1], 0.5, False, done.append)
    assert done[0]["status"] == "left out: no time"


def test_every_step_is_there(gpu_session):
    todo = gpu_session.steps("cuda-1", "scratch")
    assert sum(step.minutes for step in todo) <= 35  # limits, not what steps take
    for step in todo:
        for command in (step.command, step.tiny):
            if command[0] == "-m":
                assert importlib.util.find_spec(command[1])
    assert len({step.name for step in todo}) == len(todo)
