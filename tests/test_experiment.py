"""Provenance: a run knows its commit, and whether the code had changed since."""

import subprocess

import pytest

from spectr_lite import experiment


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_changed_source_makes_a_run_dirty(checkout):
    clean = experiment.environment(checkout, ["code"], ["numpy"])
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    assert set(clean["versions"]) == {"numpy"} and clean["device"].startswith("CPU")
    (checkout / "notes.txt").write_text("not a source\n")
    assert experiment.environment(checkout, ["code"], [])["dirty"] is False
    (checkout / "code" / "b.py").write_text("2\n")
    assert experiment.environment(checkout, ["code"], [])["dirty"] is True


def test_outside_a_checkout_there_is_no_commit_to_record(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        experiment.environment(tmp_path, ["."], [])
