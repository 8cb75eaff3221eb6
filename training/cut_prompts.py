"""Cut the committed prompts out of the State of the Union speeches that no model was trained on.

    python -m training.cut_prompts     writes spectr_lite/models/data/sotu/prompts.json

1,000 texts from the starts of sentences, taken from the 23 test speeches in turn; no two begin at the
same place. The last 4,000 characters of a speech are left out, so that its text could follow. A
text is 280 characters, less a last word that was cut: 32 tokens and more for every tokenizer tried.
The hashes of the ids are recorded for both tokenizers of this book: needs `make smollm2`.
"""

from __future__ import annotations

import json
import random
import re
import sys

from spectr_lite.commands.ending import ended
from spectr_lite.models import load_pair, prompts
from training.corpus import PACKAGE, speeches, split

SEED = 1790
CHARACTERS = 280
SENTENCE_START = re.compile(r"(?<=[a-z]{3})[.?!] (?=[A-Z])")  # not after "Mr." or "U.S."
RULE = "starts of sentences of 23 State of the Union speeches held out for testing"


def passages() -> list[dict]:
    texts = speeches()
    ids = split(list(texts))["test"]
    starts = {
        id: {match.end() for match in SENTENCE_START.finditer(texts[id][:-4000])} for id in ids
    }
    chooser, found, turn = random.Random(SEED), [], 0
    while len(found) < prompts.MOST:
        id, turn = ids[turn % len(ids)], turn + 1
        if not starts[id]:
            continue
        start = chooser.choice(sorted(starts[id]))
        starts[id].remove(start)
        text = texts[id][start : start + CHARACTERS].rsplit(" ", 1)[0]
        found.append({"document": id, "character": start, "text": text})
    return found


def main() -> None:
    found = passages()
    content = {
        "source": PACKAGE,
        "rule": RULE,
        "sha256": prompts.passages_sha256(found),
        "ids_sha256": {},
        "prompts": found,
    }
    write(content)
    for pair in ("bundled", "smollm2"):
        tokenizer = load_pair(pair).tokenizer
        content["ids_sha256"][pair] = {
            str(count): prompts.load("sotu", tokenizer, count=count).sha256
            for count in (prompts.DEFAULT_COUNT, prompts.MOST)
        }
    write(content)
    print(f"{prompts.SOTU.name}: {len(found)} texts, {prompts.SOTU.stat().st_size:,} bytes")


def write(content: dict) -> None:
    """As JSON with one text per line."""
    lines = ",\n".join(json.dumps(p, ensure_ascii=False) for p in content["prompts"])
    head = json.dumps(content | {"prompts": []}, indent=1)
    text = head.replace('"prompts": []', f'"prompts": [\n{lines}\n ]') + "\n"
    prompts.SOTU.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(ended("training.cut_prompts", main))
