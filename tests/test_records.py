"""A run knows its commit; its records survive a kill; what was changed later is found."""

import gzip
import json
import os
import subprocess

import pytest

from spectr_experiments import records


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_changed_source_makes_a_run_dirty(checkout):
    clean = records.environment(checkout, ["code"], ["numpy"])
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    assert set(clean["versions"]) == {"numpy"} and clean["device"].startswith("CPU")
    (checkout / "notes.txt").write_text("not a source\n")
    assert records.environment(checkout, ["code"], [])["dirty"] is False
    (checkout / "code" / "b.py").write_text("2\n")
    assert records.environment(checkout, ["code"], [])["dirty"] is True


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_without_git_or_a_checkout_there_is_no_commit_to_record(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", path or os.environ["PATH"])
    found = records.environment(tmp_path, ["."], [])
    assert found["commit"] is None and found["dirty"] is None


@pytest.fixture
def run(tmp_path):
    fields = {"cell": str, "prompt": int, "value": float}
    found = records.Run(tmp_path / "run", {"records": fields}, {"records": ("cell", "prompt")})
    found.open({"cells": ["a"]}, resume=False, kinds=["records"])
    found.note({"phase": "all", "command": "python", "start": "now", "end": None})
    return found


def record(prompt, cell="a"):
    return {"cell": cell, "prompt": prompt, "value": prompt / 2}


def test_parts_merge_to_the_same_bytes_in_any_order(run):
    run.append("records", 0, [record(1), record(0)])
    run.append("records", 1, [record(2), record(0, "b"), record(1)])
    run.finish("records")
    first = (run.folder / "records.jsonl.gz").read_bytes()
    assert run.read("records") == [record(0), record(1), record(2), record(0, "b")]
    assert run.verify() == {"records.jsonl.gz": 4}
    assert [path.name for path in run.files("records")] == ["records.jsonl.gz"]
    run.append("records", 3, [record(0)])  # a resumed run that had nothing to add
    run.finish("records")
    assert (run.folder / "records.jsonl.gz").read_bytes() == first
    run.append("records", 0, [{**record(1), "value": 9.0}])
    with pytest.raises(ValueError, match=r"two records for .*'prompt': 1"):
        run.read("records")


@pytest.mark.parametrize("cut", [1, 5, 39])
def test_an_unfinished_last_line_is_cut_and_made_again(run, cut, capsys):
    run.append("records", 0, [record(0), record(1)])
    path = run.folder / "records.part-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert run.done("records") == {("a", 0)}
    run.mend("records", 0)
    assert "cut an unfinished record" in capsys.readouterr().out
    run.append("records", 0, [record(1)])
    assert run.read("records") == [record(0), record(1)]


def test_a_byte_that_was_changed_is_found_or_changes_nothing(run):
    run.append("records", 0, [record(0), record(1)])
    run.finish("records")
    path = run.folder / "records.jsonl.gz"
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            run.verify()
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
        else:
            assert run.read("records") == [record(0), record(1)]
    assert refused > len(content) - 12  # the header has bytes that say nothing


def test_a_record_without_a_field_is_named(run):
    run.append("records", 0, [record(0), {"cell": "a", "value": 1.0}])
    with pytest.raises(
        ValueError, match=r"records\.part-0\.jsonl, line 2: fields \['cell', 'value'\]"
    ):
        run.done("records")


def test_a_config_that_was_cut_is_named(run):
    run.append("records", 0, [record(0)])
    config = run.folder / "config.json"
    config.write_bytes(config.read_bytes()[:9])
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        run.open({"cells": ["a"]}, resume=True, kinds=["records"])


def test_settings_under_which_nothing_was_recorded_block_nothing(run):
    run.open({"cells": ["b"]}, resume=False, kinds=["records"])
    assert run.config == {"cells": ["b"]}


def test_one_process_at_a_time_records_in_a_folder(run):
    other = records.Run(run.folder, run.schema, run.keys)
    with (
        run.lock(),
        pytest.raises(ValueError, match=r"--run-id: another process .*run"),
        other.lock(),
    ):
        pass
    with other.lock():
        assert {path.name for path in run.folder.iterdir()} == {"config.json", "env.json"}


def test_damage_in_the_middle_names_file_and_line(run):
    run.append("records", 0, [record(0), record(1), record(2)])
    path = run.folder / "records.part-0.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], lines[2], ""]))
    with pytest.raises(ValueError, match=r"records\.part-0\.jsonl, line 2: not a record"):
        run.read("records")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda content: content.replace(b"a", b"b"), "manifest.json promises"),
        ("records.jsonl.gz", lambda content: content[:-9], "damaged"),
        ("records.jsonl.gz", lambda content: gzip.compress(b"{}\n"), "manifest.json promises"),
    ],
)
def test_verification_finds_what_was_changed(run, name, change, message):
    run.append("records", 0, [record(0)])
    run.finish("records")
    path = run.folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        run.verify()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": "a", "prompt": 0}, "line 1: fields"),
        ({**record(0), "value": 1}, "line 1: value is 1, expected float"),
    ],
)
def test_verification_reads_the_schema(run, wrong, message):
    lines = json.dumps(wrong) + "\n"
    (run.folder / "records.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    records.write_json(run.folder / "manifest.json", run.hashes())
    with pytest.raises(ValueError, match=message):
        run.verify()


def test_a_run_is_only_gone_on_with_when_asked_and_with_the_same_settings(run):
    run.append("records", 0, [record(0)])
    with pytest.raises(ValueError, match="Add --resume"):
        run.open({"cells": ["a"]}, resume=False, kinds=["records"])
    run.open({"cells": ["a"]}, resume=True, kinds=["records"])
    run.open({"cells": ["a"]}, resume=False, kinds=[])
    with pytest.raises(ValueError, match=r"other settings \(cells\)"):
        run.open({"cells": ["b"]}, resume=True, kinds=["records"])
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        run.verify()
    run.finish("records")
    run.append("records", 0, [record(1)])
    with pytest.raises(ValueError, match="is not merged"):
        run.verify()


def test_rounds_take_turns_after_one_that_is_not_recorded(tmp_path):
    fields = {"cell": str, "round": int, "value": float}
    run = records.Run(tmp_path, {"speeds": fields}, {"speeds": ("cell", "round")})
    asked = []

    def measured(name):
        def turn(number):
            asked.append(name)
            return {"value": float(len(asked))}

        return {"cell": name}, turn

    run.append("speeds", 0, [{"cell": "b", "round": 2, "value": 1.0}])
    run.rounds("speeds", [measured(name) for name in "abc"], 4, None)
    assert "".join(asked) == "abcabcbcacaabc"
    values = {(r["cell"], r["round"]): r["value"] for r in run.read("speeds")}
    assert len(values) == 12
    assert [values[cell, 0] for cell in "abc"] == [4, 5, 6]
    assert values["b", 2] == 1
    assert len(records.read_records(run.folder / "speeds.part-0.jsonl")[0]) == 12


def test_fill_adds_only_what_is_missing(run):
    run.append("records", 0, [record(0), record(2)])
    asked = []

    def make(cell):
        asked.append(cell)
        return [record(n, cell) for n in range(4)]

    wanted = [record(n) for n in range(4)]
    run.fill("records", ["a"], lambda _: wanted, make, None)
    run.fill("records", ["a"], lambda _: wanted, make, None)
    assert asked == ["a"]
    part = records.read_records(run.folder / "records.part-0.jsonl")[0]
    assert [r["prompt"] for r in part] == [0, 2, 1, 3]


def test_a_damaged_archive_says_which_records_are_whole(run):
    run.append("records", 0, [{**record(n), "cell": f"{n * n}" * 9} for n in range(200)])
    run.finish("records")
    path = run.folder / "records.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for call in (run.verify, lambda: run.read("records")):
        with pytest.raises(
            ValueError, match=r"records\.jsonl\.gz is damaged at record \d+ or"
        ) as told:
            call()
        assert 20 < int(str(told.value).split("at record ")[1].split()[0]) < 180
    path.write_bytes(bytes(path.read_bytes()[:-1]))  # of the sum at the end
    with pytest.raises(ValueError, match="delete it and record it again with --resume"):
        run.verify()


def test_a_full_disk_names_the_file_and_what_to_do(run, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    run.append("records", 0, [record(0)])
    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"records\.part-0\.jsonl cannot be written \(No space left on"
    ):
        run.append("records", 0, [record(1)])
    monkeypatch.setattr(records.os, "replace", lambda *_: full(0))
    before = sorted(run.folder.iterdir())
    with pytest.raises(OSError, match=r"config\.json cannot be written.*--resume goes on"):
        records.write_json(run.folder / "config.json", {})
    assert sorted(run.folder.iterdir()) == before


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"--results: .*file/run cannot be written"),
        records.Run(tmp_path / "file" / "run", {}, {}).lock(),
    ):
        pass


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "made"), [(30, 1), (16, 1), (1, 1), (27, 1), (47, 3), (999, 9)]
)
def test_a_long_warm_up_leaves_a_round_and_is_not_taken_for_one(seconds, made, run, clock):
    """16 s of warm-up, then rounds of 10 s."""
    spent = iter([16.0, *[10.0] * 20])

    def turn(_):
        clock[0] += next(spent)
        return {"value": 1.0}

    run.schema["records"]["round"] = int
    run.keys["records"] = ("round",)
    run.rounds("records", [({"cell": "a", "prompt": 0}, turn)], 9, seconds)
    assert [r["round"] for r in run.read("records")] == [*range(made)]


def test_what_the_time_allows_is_said_after_the_first_round(clock, capsys):
    with records.progress(24, "laws", 35) as bar:
        for _ in records.in_time(range(8), 35, bar=bar):
            clock[0] += 10
            bar.update(3)
    assert "laws: about 3 of 8 fit the time" in capsys.readouterr().err
    assert bar.n == bar.total == 9
    with records.progress(8, "laws") as bar:
        assert bar.total == 8


def test_in_time_ends_where_one_more_as_long_as_the_longest_would_be_late(clock):
    taken = []
    for seconds in records.in_time([10, 30, 10, 10, 10], 75):
        clock[0] += seconds
        taken.append(seconds)
    assert taken == [10, 30, 10]
    assert [*records.in_time(range(9), None)] == [*range(9)]
