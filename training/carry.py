"""SmolLM2's file in parts, for a machine without a network that takes little at a time.

    python -m training.carry split     data/smollm2/*.gguf -> data/carry/, in parts of 24 MiB
    python -m training.carry join      there, once all parts have come: the file, if its SHA-256 is right

Then `python -m training.fetch_smollm2` finds the file and converts it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys

from spectr_lite.commands.ending import ended
from spectr_lite.models.smollm2 import FILE, FOLDER, SHA256

PARTS = FOLDER.parent / "carry"
PART = 24 * 2**20


def split() -> None:
    PARTS.mkdir(parents=True, exist_ok=True)
    with (FOLDER / FILE).open("rb") as whole:
        for number, part in enumerate(iter(lambda: whole.read(PART), b"")):
            path = PARTS / f"{FILE}.{number}"
            path.write_bytes(part)
            print(path)


def join() -> None:
    """Raises ValueError where a part is missing, cut or changed."""
    parts = sorted(PARTS.glob(f"{FILE}.*"), key=lambda path: int(path.suffix[1:]))
    if (FOLDER / FILE).is_file() or not parts:
        print("nothing to join")
        return
    whole = b"".join(path.read_bytes() for path in parts)
    if (found := hashlib.sha256(whole).hexdigest()) != SHA256:
        names = ", ".join(path.name for path in parts)
        raise ValueError(
            f"{PARTS}: {names} together have the SHA-256 {found}, not {SHA256}. Carry all parts again"
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{FILE}.joined").write_bytes(whole)
    (FOLDER / f"{FILE}.joined").replace(FOLDER / FILE)  # under its own name only when it is whole
    print(f"{FOLDER / FILE} is joined")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("split", "join"))
    {"split": split, "join": join}[parser.parse_args().what]()


if __name__ == "__main__":
    sys.exit(ended("training.carry", main))
