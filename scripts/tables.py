"""Write every summary and table that is generated from results/, each by its own writer: make tables.

Every page reads these files, and none is edited by hand. tests/test_tables.py deletes them, runs this
and compares the bytes.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRITERS = (
    ("scripts/benchmark_transport.py", "--summarise"),
    ("scripts/benchmark_verifiers.py", "--summarise"),
    ("scripts/benchmark_decoding.py", "--summarise"),
    ("spectr_lite", "reproduce", "summarise"),
)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    for script, *arguments in WRITERS:
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            if end.code:
                sys.exit(f"{' '.join(sys.argv)} ended with status {end.code}")
        print("wrote:", *sys.argv, flush=True)


if __name__ == "__main__":
    main()
