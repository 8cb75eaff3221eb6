"""A small sample of real next-token distributions: SmolLM2-135M and two drafts cut out of it.

    make smollm2
    python -m spectr_experiments.next_token [--run-id NAME] [--places 12]
    python -m spectr_experiments.next_token --summary

Each distribution is the model's, at temperature 1, after one held-out prompt of the bundled pair's
text (State of the Union addresses, public domain). Log-probabilities are kept in float16 and read
back with a softmax: that is then the distribution, to the last digit. Writes
results/next-token-laws/<run-id>/ with laws.npz, config.json and env.json, and copies the
distributions to where the pages read them: spectr_lite/results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from spectr_experiments import records
from spectr_lite.models import load_pair, prompts, smollm2

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "results" / "next-token-laws"


@torch.no_grad()
def record(held_out: prompts.Prompts) -> dict[str, np.ndarray]:
    """float16 log-probabilities (places, V) of the target and of both drafts."""
    laws: dict[str, list[np.ndarray]] = {"target": [], "drop6": [], "drop3": []}
    six, three = load_pair("smollm2"), load_pair("smollm2-drop3")
    models = {"target": six.target, "drop6": six.draft, "drop3": three.draft}
    for tokens in held_out.tokens:
        for name, model in models.items():
            law = model(torch.tensor([tokens]))[0, -1].double().log_softmax(-1)
            laws[name].append(law.numpy().astype(np.float16))
    return {name: np.stack(rows) for name, rows in laws.items()}


def publish(run: Path) -> None:
    """The recorded distributions, once their hash is that of the record, to spectr_lite/results."""
    laws = run / "laws.npz"
    wanted = json.loads((run / "config.json").read_text(encoding="utf-8"))["file_sha256"]
    found = hashlib.sha256(laws.read_bytes()).hexdigest()
    if found != wanted:
        raise SystemExit(f"{laws}: SHA-256 {found[:16]} and not {wanted[:16]}. Record it again.")
    shutil.copyfile(laws, ROOT / "spectr_lite" / "results" / "next-token-laws.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-id", default="smollm2-1", help="folder name")
    parser.add_argument("--places", type=int, default=12)
    parser.add_argument(
        "--summary", action="store_true", help="only copy the recorded distributions"
    )
    options = parser.parse_args()
    folder = RUNS / options.run_id
    if options.summary:
        publish(folder)
        return
    tokenizer = load_pair("smollm2").tokenizer
    held_out = prompts.load("sotu", tokenizer, count=options.places)
    packages = ("torch", "numpy", "tokenizers", "gguf")
    env = {
        "command": f"python -m spectr_experiments.next_token --run-id {options.run_id} "
        f"--places {options.places}",
        "start": records.now(),
        "dtype": "float32",
        **records.environment(ROOT, ("spectr_lite", "scripts"), packages),
    }
    laws = record(held_out)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "laws.npz", **laws)
    config = {
        "target": "SmolLM2-135M-Instruct",
        "target_sha256": smollm2.SHA256,
        "drafts": {"drop6": smollm2.DROPPED["smollm2"], "drop3": smollm2.DROPPED["smollm2-drop3"]},
        "prompts": held_out.documents,
        "prompts_sha256": held_out.sha256,
        "temperature": 1.0,
        "stored": "float16 log-probabilities",
        "shape": list(laws["target"].shape),
        "file_sha256": hashlib.sha256((folder / "laws.npz").read_bytes()).hexdigest(),
    }
    env["end"] = records.now()
    for name, content in (("config.json", config), ("env.json", env)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    publish(folder)


if __name__ == "__main__":
    main()
