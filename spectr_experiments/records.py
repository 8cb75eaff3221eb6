"""Recorded runs: what made a number stands beside it, a killed run goes on, a finished one is checked.

A run is a folder with config.json (what was asked), env.json (a list of sessions: when, on which
commit, machine and versions), one file of records per kind, and manifest.json with their SHA-256. While
a run is under way each process appends whole lines to its own KIND.part-RANK.jsonl; `Run.finish` merges
them into KIND.jsonl.gz, sorted and without repeats, so that several processes, or one that was killed
and resumed, leave the same bytes as one that ran through.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

Record = dict[str, Any]
Item = TypeVar("Item")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment(
    root: Path | None,
    sources: Sequence[str],
    packages: Sequence[str],
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """The state of this machine and of the checkout at `root`, ready for env.json.

    `sources`: the files and folders, relative to `root`, whose changes since the commit make a run
    "dirty". `packages`: the distributions whose versions are recorded. Nothing names the host.
    `root` None is an installed package: no commit, its version alone.
    """

    def git(*arguments: str) -> str:
        return _output("git", "-C", str(root), *arguments)

    device = torch.device(device)
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found = {
        "commit": git("rev-parse", "HEAD") if root else None,
        "dirty": bool(git("status", "--porcelain", "--", *sources)) if root else None,
        "device": f"CPU, {_processor()}, {cores}",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "device_memory": properties.total_memory,
            "capability": [properties.major, properties.minor],
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return found


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _driver() -> str | None:
    """Driver and clocks, as nvidia-smi tells them; None where it is not installed."""
    try:
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"
        return _output("nvidia-smi", query, "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# --- records ---


def write_json(path: Path, content: Any) -> None:
    """Replaces the file at once: a reader sees the old one or the new one."""
    _replace(path, (json.dumps(content, indent=1) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + f".{os.getpid()}.new")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def rounded(value: Any) -> Any:
    """Six digits: what a last bit of another processor may change is not in the file."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def content_of(path: Path) -> bytes:
    """The bytes of a file of records, unpacked. Raises ValueError for a damaged archive."""
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}; restore it, or record it again") from error


def read_records(path: Path) -> tuple[list[Record], int]:
    """The records of a file, and the bytes of an unfinished last line (0 when there is none).

    A last line without its end is what a kill leaves behind, and is left out. Any other line that is
    not a JSON object is damage: ValueError names file and line.
    """
    whole, _, rest = content_of(path).rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {number}: not a record: {line[:60]!r}. Nothing after an unfinished line "
                "is ever written, so the file was damaged later; restore it, or delete that line to "
                "record it again"
            )
        records.append(record)
    return records, len(rest)


def merge(parts: Iterable[list[Record]], key: Sequence[str]) -> list[Record]:
    """All records once, sorted by the fields of `key`. Two that differ under one key: ValueError."""
    found: dict[tuple, Record] = {}
    for record in (record for part in parts for record in part):
        place = tuple(record[field] for field in key)
        if found.setdefault(place, record) != record:
            raise ValueError(
                f"two records for {dict(zip(key, place, strict=True))}: {found[place]} and {record}. "
                "Their parts are of different runs; keep one"
            )
    return [found[place] for place in sorted(found)]


class Run:
    """One run on disk. `schema` has, for each kind of record, its fields with their types; `keys` the
    fields that tell its records apart."""

    def __init__(
        self, folder: Path, schema: dict[str, dict[str, type]], keys: dict[str, Sequence[str]]
    ) -> None:
        self.folder, self.schema, self.keys = folder, schema, keys

    def open(self, config: dict[str, Any], resume: bool, kinds: Sequence[str]) -> None:
        """Writes config.json, or checks that a run to go on with was asked for the same thing, and
        that its records of these `kinds`, if there are any, are meant to be gone on with."""
        path = self.folder / "config.json"
        config = json.loads(json.dumps(config))
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, config)
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        changed = [n for n in {**stored, **config} if stored.get(n) != config.get(n)]
        if changed:
            raise ValueError(
                f"--run-id: {self.folder} was recorded with other settings ({', '.join(changed)}). "
                "Give the same ones, or another --run-id"
            )
        if not resume and any(self.files(kind) for kind in kinds):
            raise ValueError(
                f"--run-id: {self.folder} holds records. Add --resume to go on, or give another "
                "--run-id"
            )

    def files(self, kind: str) -> list[Path]:
        return sorted([*self.folder.glob(f"{kind}.jsonl.gz"), *self.folder.glob(f"{kind}.part-*")])

    def read(self, kind: str) -> list[Record]:
        """What is recorded so far, sorted, without unfinished lines."""
        return merge((read_records(path)[0] for path in self.files(kind)), self.keys[kind])

    def done(self, kind: str) -> set[tuple]:
        return {tuple(record[field] for field in self.keys[kind]) for record in self.read(kind)}

    def append(self, kind: str, rank: int, records: Sequence[Record]) -> None:
        """Adds whole lines to this process's part, in one write that has reached the disk after it."""
        lines = "".join(json.dumps(record) + "\n" for record in records)
        with (self.folder / f"{kind}.part-{rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def mend(self, kind: str, rank: int) -> None:
        """Cuts an unfinished last line off this process's part, and says so."""
        path = self.folder / f"{kind}.part-{rank}.jsonl"
        rest = read_records(path)[1] if path.exists() else 0
        if rest:
            os.truncate(path, path.stat().st_size - rest)
            print(f"{path}: cut an unfinished record of {rest} bytes; it is made again", flush=True)

    def rounds(
        self,
        kind: str,
        cells: Sequence[Item],
        count: int,
        key: Callable[[Item, int], tuple],
        measure: Callable[[Item, int], Record],
        seconds: float | None,
    ) -> None:
        """Records measure(cell, n) for every cell and n < count, where no record has its `key` yet.

        In each round all cells take turns, in an order that rotates. One turn of each comes before.
        """
        self.mend(kind, 0)
        done = self.done(kind)
        left = [n for n in range(count) if any(key(cell, n) not in done for cell in cells)]
        progress = Progress((len(left) + 1) * len(cells), kind)
        for number in in_time([None, *left] if left else [], seconds):
            shift = (number or 0) % len(cells)
            for cell in (*cells[shift:], *cells[:shift]):
                if number is None:
                    measure(cell, 0)
                elif key(cell, number) not in done:
                    self.append(kind, 0, [measure(cell, number)])
                progress.add(1, str(cell))

    def note(self, session: dict[str, Any]) -> None:
        """Puts a session into env.json; what it said at its start it replaces at its end."""
        path = self.folder / "env.json"
        sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.exists() else []
        same = ("phase", "start", "command")
        sessions = [s for s in sessions if any(s[name] != session[name] for name in same)]
        write_json(path, {"sessions": sorted([*sessions, session], key=lambda s: s["start"])})

    def finish(self, kind: str) -> None:
        """Merges the parts of a kind, packs them (no time stamp inside), and renews the manifest."""
        records = self.read(kind)
        parts = [path for path in self.files(kind) if path.suffix != ".gz"]
        if parts:
            lines = "".join(json.dumps(record) + "\n" for record in records)
            _replace(self.folder / f"{kind}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
            for part in parts:
                part.unlink()
        write_json(self.folder / "manifest.json", self.hashes())

    def hashes(self) -> dict[str, Any]:
        """SHA-256 of config.json and, unpacked, of every finished kind; with the number of lines."""
        config = hashlib.sha256((self.folder / "config.json").read_bytes()).hexdigest()
        found: dict[str, Any] = {"config.json": config}
        for path in sorted(self.folder.glob("*.jsonl.gz")):
            content = content_of(path)
            digest = hashlib.sha256(content).hexdigest()
            found[path.name] = {"sha256": digest, "records": content.count(b"\n")}
        return found

    def verify(self) -> dict[str, int]:
        """Records per kind of a finished run whose hashes, schema and order are right.

        Raises FileNotFoundError for a run that is not finished, ValueError for one that is not right.
        """
        for name in ("config.json", "env.json", "manifest.json"):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{self.folder / name} is missing: not a finished run")
        parts = [path.name for kind in self.schema for path in self.files(kind)]
        if unfinished := [name for name in parts if ".part-" in name]:
            raise ValueError(f"{self.folder}: {unfinished[0]} is not merged; end it with --resume")
        manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        found = self.hashes()
        for name in sorted({*manifest, *found}):
            if manifest.get(name) != found.get(name):
                raise ValueError(
                    f"{self.folder / name}: manifest.json promises {manifest.get(name)}, found "
                    f"{found.get(name)}; restore the file, or record the run again"
                )
        for kind in (kind for kind in self.schema if self.files(kind)):
            (path,) = self.files(kind)
            records, _ = read_records(path)
            for line, record in enumerate(records, 1):
                self._check(f"{path}, line {line}", record, self.schema[kind])
            if records != self.read(kind):
                raise ValueError(f"{path}: records are not in order, or one stands there twice")
        return {name: found[name]["records"] for name in found if name != "config.json"}

    @staticmethod
    def _check(place: str, record: Record, fields: dict[str, type]) -> None:
        if list(record) != list(fields):
            raise ValueError(f"{place}: fields {list(record)}, expected {list(fields)}")
        for name, kind in fields.items():
            if type(record[name]) is not kind:
                raise ValueError(f"{place}: {name} is {record[name]!r}, expected {kind.__name__}")


def in_time(items: Iterable[Item], seconds: float | None) -> Iterator[Item]:
    """Item by item, as long as one more, if it takes as long as the longest so far, is in time."""
    began = turn = time.monotonic()
    longest = 0.0
    for item in items:
        if seconds is not None and turn - began + longest > seconds:
            return
        yield item
        now = time.monotonic()
        longest, turn = max(longest, now - turn), now


class Progress:
    """A line with the share done and the time left, on stderr: in place on a terminal, else rarely."""

    def __init__(self, total: float, label: str) -> None:
        self.total, self.label, self.done = total, label, 0.0
        self.start = self.shown = time.monotonic()

    def add(self, work: float, note: str = "") -> None:
        self.done += work
        clock, live = time.monotonic(), sys.stderr.isatty()
        if clock - self.shown < (0.2 if live else 30) and self.done < self.total:
            return
        self.shown, spent = clock, clock - self.start
        left = spent * (self.total - self.done) / self.done if self.done else 0.0
        share = self.done / self.total if self.total else 1.0
        text = f"{self.label}: {share:4.0%}, {_clock(spent)} spent, {_clock(left)} left  {note}"
        print(
            f"\r{text:<100}" if live else text,
            end="" if live else "\n",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
