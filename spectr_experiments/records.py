"""Recorded runs: what made a number stands beside it, a killed run goes on, a finished one is checked.

A run is a folder with config.json (what was asked), env.json (a list of sessions: when, on which
commit, machine and versions), one file of records per kind, and manifest.json with their SHA-256. While
a run is under way each process appends whole lines to its own KIND.part-RANK.jsonl; `Run.finish` merges
them into KIND.jsonl.gz, sorted and without repeats, so that several processes, or one that was killed
and resumed, leave the same bytes as one that ran through.

An older run has one records.jsonl for all kinds, without a manifest, and its single session in env.json
itself. It is read as it is, in its own order, and never written to.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from tqdm import tqdm

Record = dict[str, Any]
Item = TypeVar("Item")
Turn = Callable[[int], Record]  # the number of a round -> what was measured in it
DRIVER = "driver_version,clocks.sm,clocks.mem,power.limit"
OLD = "records.jsonl"
OLD_FILES = (OLD, "laws.npz")


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
    "dirty". `packages`: the distributions whose versions are recorded, if they are installed. Nothing
    names the host. Without `root`, a checkout there or git, commit and "dirty" are None.
    """
    git = "git", "-C", str(root)
    commit = _output(*git, "rev-parse", "HEAD") if root else None
    device = torch.device(device)
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    found = {
        "commit": commit,
        "dirty": bool(_output(*git, "status", "--porcelain", "--", *sources)) if commit else None,
        "device": f"CPU, {_processor()}, {cores}",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": _versions(packages),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "device_memory": properties.total_memory,
            "capability": [properties.major, properties.minor],
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", f"--query-gpu={DRIVER}", "--format=csv,noheader"),
        }
    return found


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _output(*command: str) -> str | None:
    """What a program says; None where it is not installed, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# --- files ---


def write_json(path: Path, content: Any) -> None:
    """Replaces the file at once: a reader sees the old one or the new one."""
    replace(path, (json.dumps(content, indent=1) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """As `write_json`, for bytes."""
    fresh = path.with_name(path.name + f".{os.getpid()}.new")
    with writing(path):
        try:
            fresh.write_bytes(content)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file of an OSError, such as that of a full disk, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"--results: {path} cannot be written ({error.strerror}). Make room, or choose a folder "
            "that can be written; what is recorded is kept, and --resume goes on with it"
        ) from error


class Fields(dict):
    """An object of a JSON file, which names the file where a field is missing."""

    path: Path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} is damaged: no {name!r} in {list(self)}; restore it")


def read_json(path: Path) -> Any:
    """The object in a JSON file. Raises ValueError, with its name, for one that is cut or changed."""

    def fields(found: dict[str, Any]) -> Fields:
        made = Fields(found)
        made.path = path
        return made

    try:
        found = json.loads(path.read_bytes(), object_hook=fields)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; restore it, or record it again") from error
    if not isinstance(found, Fields):
        raise ValueError(f"{path} is damaged: {found!r:.40} is no object; restore it")
    return found


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
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged at record {whole_records(content) + 1} or behind it: {error}; restore "
            "it, or delete it and record it again with --resume"
        ) from error


def whole_records(archive: bytes) -> int:
    """How many records at the beginning of a damaged archive can still be read."""
    stream, parts = zlib.decompressobj(31), []  # 31: with gzip's header
    with contextlib.suppress(zlib.error):
        for byte in archive:
            parts.append(stream.decompress(bytes([byte])))
    lines = b"".join(parts).split(b"\n")[:-1]
    return next((n for n, line in enumerate(lines) if record_in(line) is None), len(lines))


def record_in(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def read_records(path: Path) -> tuple[list[Record], int]:
    """The records of a file, and the bytes of an unfinished last line (0 when there is none).

    A last line without its end is what a kill leaves behind, and is left out. Any other line that is
    not a JSON object is damage: ValueError names file and line.
    """
    whole, _, rest = content_of(path).rpartition(b"\n")
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        record = record_in(line)
        if record is None:
            raise ValueError(
                f"{path}, line {number}: not a record: {line[:60]!r}. Nothing after an unfinished line "
                "is ever written, so the file was damaged later; restore it, or delete that line to "
                "record it again"
            )
        records.append(record)
    return records, len(rest)


def place(record: Record, key: Sequence[str]) -> tuple:
    """The values of the fields of `key`, in a form that can be sorted and looked up."""
    values = (record[field] for field in key)
    return tuple(json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for v in values)


def grouped(records: Iterable[Record], fields: Sequence[str]) -> dict[tuple, list[Record]]:
    """Records by the values of some fields, in the order they come."""
    found: dict[tuple, list[Record]] = {}
    for record in records:
        found.setdefault(place(record, fields), []).append(record)
    return found


def merge(parts: Iterable[list[Record]], key: Sequence[str]) -> list[Record]:
    """All records once, in the order they came. Two that differ under one key: ValueError."""
    found: dict[tuple, Record] = {}
    for record in (record for part in parts for record in part):
        where = place(record, key)
        if found.setdefault(where, record) != record:
            raise ValueError(
                f"two records for {dict(zip(key, where, strict=True))}: {found[where]} and {record}. "
                "Their parts are of different runs; keep one"
            )
    return list(found.values())


def misfit(record: Record, fields: dict[str, Any]) -> str | None:
    """How a record departs from a schema; a field that may be None may be left out."""
    needed = [name for name, kind in fields.items() if type(None) not in get_args(kind)]
    if not set(needed) <= set(record) <= set(fields):
        return f"fields {list(record)}, expected {list(fields)}"
    for name, value in record.items():
        if type(value) not in (get_args(fields[name]) or (fields[name],)):
            kind = getattr(fields[name], "__name__", fields[name])
            return f"{name} is {value!r}, expected {kind}"
    return None


# --- runs ---


class Run:
    """One run on disk. `schema` has, for each kind of record, its fields with their types; `keys` the
    fields that tell its records apart."""

    def __init__(
        self, folder: Path, schema: dict[str, dict[str, Any]], keys: dict[str, Sequence[str]]
    ) -> None:
        self.folder, self.schema, self.keys = folder, schema, keys

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second run out of the folder; a killed process loses its lock with its life."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"--run-id: another process records in {self.folder}. Wait for its end, or give "
                    "another --run-id"
                ) from None
            yield
        finally:
            os.close(handle)

    def open(self, config: dict[str, Any], resume: bool, kinds: Sequence[str]) -> None:
        """Writes config.json, or checks that a run to go on with was asked for the same thing, and
        that its records of these `kinds`, if there are any, are meant to be gone on with."""
        path = self.folder / "config.json"
        config = json.loads(json.dumps(config))
        if self.is_old:
            raise ValueError(f"--run-id: {self.folder} holds a finished run. Give another --run-id")
        if not any(self.files(kind) for kind in self.schema):
            # Nothing depends yet on what an earlier command asked for: it was refused, or killed.
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, config)
            return
        if not path.exists():
            raise ValueError(f"{path} is missing; restore it, or give another --run-id")
        stored = read_json(path)
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

    @property
    def is_old(self) -> bool:
        return any((self.folder / name).exists() for name in OLD_FILES)

    @property
    def is_finished(self) -> bool:
        merged = not any(self.folder.glob("*.part-*"))
        return self.is_old or (merged and (self.folder / "manifest.json").exists())

    @property
    def config(self) -> Record:
        return read_json(self.folder / "config.json")

    @property
    def sessions(self) -> list[Record]:
        path = self.folder / "env.json"
        env = read_json(path)
        found = env.get("sessions", [env])
        if not isinstance(found, list) or not all("start" in session for session in found or [()]):
            raise ValueError(f"{path} is damaged: no session with its start; restore it")
        return found

    def files(self, kind: str) -> list[Path]:
        return sorted([*self.folder.glob(f"{kind}.jsonl.gz"), *self.folder.glob(f"{kind}.part-*")])

    def read(self, kind: str) -> list[Record]:
        """What is recorded so far, sorted by the kind's key, without unfinished lines.

        Raises ValueError, with file and line, for a record that does not have the kind's fields.
        """
        if self.is_old:
            return merge([self._read_old()[kind]], self.keys[kind])
        parts = []
        for path in self.files(kind):
            parts.append(read_records(path)[0])
            for line, record in enumerate(parts[-1], 1):
                if wrong := misfit(record, self.schema[kind]):
                    raise ValueError(f"{path}, line {line}: {wrong}")
        return sorted(merge(parts, self.keys[kind]), key=lambda r: place(r, self.keys[kind]))

    def _read_old(self) -> dict[str, list[Record]]:
        """The records of an older run by kind: that whose fields they have."""
        path = self.folder / OLD
        records, rest = read_records(path) if path.exists() else ([], 0)
        if rest:
            raise ValueError(f"{path} ends in an unfinished record of {rest} bytes; restore it")
        found: dict[str, list[Record]] = {kind: [] for kind in self.schema}
        for line, record in enumerate(records, 1):
            kinds = [kind for kind, fields in self.schema.items() if not misfit(record, fields)]
            if len(kinds) != 1:
                wrong = "; ".join(f"{k}: {misfit(record, f)}" for k, f in self.schema.items())
                raise ValueError(f"{path}, line {line}: a record of no kind ({wrong}); restore it")
            found[kinds[0]].append(record)
        return found

    def done(self, kind: str) -> set[tuple]:
        return {place(record, self.keys[kind]) for record in self.read(kind)}

    def append(self, kind: str, rank: int, records: Sequence[Record]) -> None:
        """Adds whole lines to this process's part, in one write that has reached the disk after it."""
        if not records:
            return
        lines = "".join(json.dumps(record) + "\n" for record in records)
        path = self.folder / f"{kind}.part-{rank}.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
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

    def fill(
        self,
        kind: str,
        units: Sequence[Item],
        records_of: Callable[[Item], Sequence[Record]],
        make: Callable[[Item], Sequence[Record]],
        seconds: float | None,
        least: int = 0,
    ) -> None:
        """Appends make(unit) for every unit that lacks one of the records named by records_of(unit),
        each at least with the fields of the kind's key. The first `least` units are made however few
        `seconds` there are."""
        done, key = self.done(kind), self.keys[kind]
        left = [u for u in units if any(place(r, key) not in done for r in records_of(u))]
        with progress(len(left), kind, seconds) as bar:
            for unit in in_time(left, seconds, least - len(units) + len(left), bar):
                fresh = [r for r in make(unit) if place(r, key) not in done]
                self.append(kind, 0, fresh)
                bar.update()

    def rounds(
        self,
        kind: str,
        cells: Sequence[tuple[Record, Turn]],
        count: int,
        seconds: float | None,
        warm_up: int = 1,
        least: int = 0,
    ) -> None:
        """Records {**cell, "round": n, **turn(n)} for every (cell, turn) and n < count, where there is
        no such record yet. In each round all cells take turns, in an order that rotates, after
        `warm_up` turns of each. One round is made, and at least `least`, however few `seconds` there
        are.
        """
        done, began = self.done(kind), time.monotonic()

        def missing(cell: Record, number: int) -> bool:
            return place({**cell, "round": number}, self.keys[kind]) not in done

        left = [n for n in range(count) if any(missing(cell, n) for cell, _ in cells)]
        for _, turn in cells * (warm_up if left else 0):
            turn(0)
        if seconds is not None:
            seconds -= time.monotonic() - began
        least -= count - len(left)
        with progress(len(left) * len(cells), kind, seconds) as bar:
            for number in in_time(left, seconds, max(least, 1), bar):
                shift = number % len(cells)
                for cell, turn in (*cells[shift:], *cells[:shift]):
                    if missing(cell, number):
                        self.append(kind, 0, [{**cell, "round": number, **turn(number)}])
                    bar.update()

    def note(self, session: dict[str, Any]) -> None:
        """Puts a session into env.json; what it said at its start it replaces at its end."""
        path = self.folder / "env.json"
        sessions = read_json(path)["sessions"] if path.exists() else []
        same = ("phase", "start", "command")
        sessions = [s for s in sessions if any(s[name] != session[name] for name in same)]
        write_json(path, {"sessions": sorted([*sessions, session], key=lambda s: s["start"])})

    def finish(self, kind: str) -> None:
        """Merges the parts of a kind, packs them (no time stamp inside), and renews the manifest."""
        records = self.read(kind)
        parts = [path for path in self.files(kind) if path.suffix != ".gz"]
        if parts:
            lines = "".join(json.dumps(record) + "\n" for record in records)
            replace(self.folder / f"{kind}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
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
        """Records per file of a finished run whose hashes, schema and order are right.

        An older run has no hashes: its records are read. Raises FileNotFoundError for a run that is
        not finished, ValueError for one that is not right.
        """
        for name in ("config.json", "env.json", *([] if self.is_old else ["manifest.json"])):
            if not (self.folder / name).is_file():
                raise FileNotFoundError(f"{self.folder / name} is missing: not a finished run")
            read_json(self.folder / name)
        _ = self.sessions
        if self.is_old:
            count = sum(len(self.read(kind)) for kind in self.schema)
            return {OLD: count} if (self.folder / OLD).exists() else {}
        parts = [path.name for kind in self.schema for path in self.files(kind)]
        if unfinished := [name for name in parts if ".part-" in name]:
            raise ValueError(f"{self.folder}: {unfinished[0]} is not merged; end it with --resume")
        manifest = read_json(self.folder / "manifest.json")
        found = self.hashes()
        for name in sorted({*manifest, *found}):
            if manifest.get(name) != found.get(name):
                raise ValueError(
                    f"{self.folder / name}: manifest.json promises {manifest.get(name)}, found "
                    f"{found.get(name)}; restore the file, or record the run again"
                )
        for kind in (kind for kind in self.schema if self.files(kind)):
            (path,) = self.files(kind)
            if read_records(path)[0] != self.read(kind):
                raise ValueError(f"{path}: records are not in order, or one stands there twice")
        return {name: found[name]["records"] for name in found if name != "config.json"}


def in_time(
    items: Sequence[Item], seconds: float | None, least: int = 0, bar: tqdm | None = None
) -> Iterator[Item]:
    """Item by item, as long as one more, if it takes as long as the longest so far, is in time; the
    first `least` in any case. What is likely to be reached is said after the first, and is the total
    of `bar`, to which the caller adds the parts of an item."""
    began = turn = time.monotonic()
    longest = 0.0
    for number, item in enumerate(items):
        if seconds is not None and number >= least and turn - began + longest > seconds:
            return
        yield item
        now = time.monotonic()
        longest, turn = max(longest, now - turn), now
        if seconds is None or bar is None:
            continue
        more = int(max(seconds - (now - began), 0) / max(longest, 1e-9))
        fit = min(len(items), max(number + 1 + more, least))
        bar.total = round(bar.n / (number + 1) * fit)
        if number == 0:
            bar.write(f"{bar.desc}: about {fit} of {len(items)} fit the time", sys.stderr)


def progress(total: float, label: str, seconds: float | None = None) -> tqdm:
    """A bar on stderr: live on a terminal or in a notebook, in a log rarely. What is limited to
    `seconds` has no total before a first part has shown what can be reached."""
    pace = 0.2 if sys.stderr.isatty() or "ipykernel" in sys.modules else 30
    return tqdm(total=None if seconds else total, desc=label, mininterval=pace)


@dataclass(frozen=True)
class Phase:
    """A part of an experiment: the kinds of records it makes, and its share of the time given.

    `measure` takes the run and the seconds it has, or None. Of several processes the first measures
    alone, unless the phase is `shared`.
    """

    name: str
    kinds: Sequence[str]
    measure: Callable[[Run, float | None], None]
    share: float = 1.0
    shared: bool = False


@dataclass(frozen=True)
class Plan:
    """A run to be made: its folder's name, its config.json, and its phases in order."""

    run_id: str
    config: Record
    phases: Sequence[Phase]
    minutes: float | None = None
