"""Write every summary that is generated from results/, each by its own writer: make tables.

Every page reads these files, and none is edited by hand. tests/test_tables.py deletes them, runs this
and compares the bytes. A writer whose experiment has no recorded run is left out.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRITERS = {  # experiment in results/, or what the tables are of: command
    "benchmark-transport": ("spectr_experiments.transport", "--summarise"),
    "benchmark-verifiers": ("spectr_experiments.verifiers", "--summarise"),
    "benchmark-decoding": ("spectr_experiments.decoding", "--summarise"),
    "next-token-laws": ("spectr_experiments.next_token", "--summary"),
    "smollm2-drafts": ("spectr_experiments.drafts", "--summary"),
    "models": ("spectr_experiments.models", "--summary"),
    "table1": ("spectr_lite", "reproduce", "summarise"),
    "appendix-e": ("spectr_lite", "reproduce", "summarise"),
}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    recorded = [command for name, command in WRITERS.items() if any(ROOT.glob(f"results/{name}/*"))]
    for module, *arguments in dict.fromkeys(recorded):
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            if end.code:
                sys.exit(f"{' '.join(sys.argv)} ended with status {end.code}")
        print("wrote:", *sys.argv, flush=True)


if __name__ == "__main__":
    main()
