"""Models in Hugging Face's format through convert, training and generation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import write_byte_tokenizer, write_model
from tiny_model import tokenizer_bytes

from sqlora.convert.llama import llama_shapes
from sqlora.convert.model import convert_model
from sqlora.convert.tokenizer import ODD_STRINGS
from sqlora.errors import SqloraError
from sqlora.generate.run import generate
from sqlora.model import context_length, load_base
from sqlora.params.generate import GenerateParams
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import LogicalForm

TOKENS = [1, 3, 500, 17, 17, 259, 300, 301, 2, 77, 404, 5, 260, 261, 262, 499, 0, 30, 31, 32]
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 = SCALED | {"original_max_position_embeddings": 16, "rope_theta": 5000.0}
SPECIAL = "<|endoftext|> and <|im_start|>"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings and a byte-level tokenizer, as SmolLM2; not to be changed."""
    return write_model(tmp_path_factory.mktemp("source"), tie_word_embeddings=True)


def converted(source: Path, tmp_path: Path, **options: Any) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    convert_model(source, folder, **{"dtype": "float32"} | options)
    return folder


def copy_of(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "source"))


def refusal(source: Path, tmp_path: Path) -> str:
    with pytest.raises(SqloraError) as caught:
        converted(source, tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 24, "shard_size": "60KB", "attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LLAMA3, "old_style": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}, "sliding_window": None}),
        ("mistral", {"tokenizer": "sentencepiece", "old_style": True, "num_key_value_heads": 1}),
    ],
    ids=["tied", "shards, biases", "llama3", "llama3, old style", "linear", "dynamic", "mistral", "mistral, old style"],
)
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    import mlx_lm
    from transformers import AutoModelForCausalLM

    source = write_model(tmp_path / "source", kind, **options)
    original = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    folder = converted(source, tmp_path, shard_bytes=60_000)
    with torch.no_grad():
        expected = original(torch.tensor([TOKENS])).logits[0].numpy()
        again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        assert np.abs(again(torch.tensor([TOKENS])).logits[0].numpy() - expected).max() < 1e-4
    model, _ = mlx_lm.load(str(folder))
    assert np.abs(np.array(model(mx.array([TOKENS]))[0]) - expected).max() < 1e-4
    assert np.ptp(expected) > 5


def test_names_and_bits_are_kept(source: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "half", dtype=torch.bfloat16)
    folder = converted(tmp_path / "half", tmp_path, dtype="bfloat16")
    before, after = (load_file(next(f.glob("*.safetensors"))) for f in (tmp_path / "half", folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int16), after[name].view(torch.int16)) for name in before)
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert "dtype" not in config


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_consumers_agree_on_ids(tmp_path: Path, kind: str) -> None:
    from mlx_lm.utils import load_tokenizer
    from transformers import AutoTokenizer

    folder = converted(write_model(tmp_path / "source", tokenizer=kind), tmp_path)
    own = Tokenizer(folder)
    assert (own.bos, own.eos) == ((None, 0) if kind == "bytes" else (1, 2))
    for other in (AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)):
        assert other.eos_token_id == own.eos
        for text in [*ODD_STRINGS, "Nr. 12345 x 1-1000181-1"]:
            assert other.encode(text) == own.encode_prompt(text), text


def test_special_tokens_in_text_are_text(source: Path, tmp_path: Path) -> None:
    own = Tokenizer(converted(source, tmp_path))
    assert not {0, 1, 2} & set(own.encode_prompt(SPECIAL))
    assert own.decode(own.encode_prompt(SPECIAL)) == SPECIAL
    assert own.decode([1, *own.encode_prompt(" x")]) == "x"


def test_prompt_and_completion_meet_at_a_boundary(source: Path, tmp_path: Path) -> None:
    own = Tokenizer(converted(source, tmp_path))
    encoded = own.encode_example("Q: select\nA:", " SELECT x FROM 1-2")
    assert list(encoded.tokens[: encoded.prompt_tokens]) == own.encode_prompt("Q: select\nA:")
    assert encoded.tokens[-1] == own.eos == 0
    assert own.decode(list(encoded.tokens[encoded.prompt_tokens : -1])) == "SELECT x FROM 1-2"


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("puts_bos", [True, False])
def test_bos_is_put_where_transformers_puts_it(
    source: Path, tmp_path: Path, puts_bos: bool, settings: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    copy = copy_of(source, tmp_path)
    write_byte_tokenizer(copy, **settings)
    content = json.loads((copy / "tokenizer.json").read_text())
    if puts_bos:
        pieces = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        content["post_processor"] = {"type": "TemplateProcessing", "single": pieces, "pair": pieces}
        token = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
        content["post_processor"]["special_tokens"] = {"<|im_start|>": token}
        (copy / "tokenizer.json").write_text(json.dumps(content))
        write = json.loads((copy / "tokenizer_config.json").read_text()) | {"bos_token": "<|im_start|>"}
        (copy / "tokenizer_config.json").write_text(json.dumps(write))
    own = Tokenizer(converted(copy, tmp_path))
    assert own.bos == (1 if puts_bos else None)
    assert own.encode_prompt("abc") == AutoTokenizer.from_pretrained(tmp_path / "model").encode("abc")


def test_without_bos_no_ordinary_word_is_taken_for_one(source: Path, tmp_path: Path) -> None:
    copy = copy_of(source, tmp_path)
    write_byte_tokenizer(copy, bos_token=None)
    content = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["None"] = vocabulary.pop(last)  # GPT-2's vocabulary has the word
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "".join(pair) != last]
    (copy / "tokenizer.json").write_text(json.dumps(content))
    own = Tokenizer(converted(copy, tmp_path))
    assert own.bos is None
    assert own.decode([vocabulary["None"]]) == "None"


def test_sentencepiece_stays_the_truth_beside_a_tokenizer_json(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", tokenizer="sentencepiece")
    folder = converted(source, tmp_path)
    truth = (folder / "tokenizer.json").read_bytes()
    for name, same in (("same", True), ("other", False)):
        copy = Path(shutil.copytree(source, tmp_path / name))
        content = json.loads(truth)
        content["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
        content["padding"] |= {"pad_type_id": 0, "pad_token": "<unk>"}
        if not same:
            content["model"]["merges"].reverse()
        (copy / "tokenizer.json").write_text(json.dumps(content))
        (tmp_path / f"to-{name}").mkdir()
        notes = convert_model(copy, tmp_path / f"to-{name}", dtype="float32")
        written = (tmp_path / f"to-{name}/tokenizer.json").read_bytes()
        assert bool(notes) != same
        assert written == ((copy / "tokenizer.json").read_bytes() if same else truth)
    assert "is replaced by one with exactly sentencepiece's ids" in notes[0]


def test_both_backends_give_the_same_ids_and_texts(tmp_path: Path) -> None:
    folder = converted(write_model(tmp_path / "source", tokenizer="sentencepiece"), tmp_path)
    shutil.copytree(folder, tmp_path / "json only", ignore=shutil.ignore_patterns("tokenizer.model"))
    one, other = Tokenizer(folder), Tokenizer(tmp_path / "json only")
    assert (one.bos, one.eos) == (other.bos, other.eos) == (1, 2)
    start = len(one.encode_prompt("Q: table\nA:"))
    example = one.encode_prompt("Q: table\nA: SELECT COUNT Añ FROM 1-2 WHERE x = '  漢'")
    assert other.decode(example[start:]) == one.decode(example[start:]) == "SELECT COUNT Añ FROM 1-2 WHERE x = '  漢'"
    for text in ODD_STRINGS:
        ids = one.encode_prompt(text)
        assert other.encode_prompt(text) == ids, text
        assert other.decode(ids) == one.decode(ids), text


def test_an_embedding_may_have_more_rows_than_the_vocabulary(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", tokenizer="sentencepiece", vocab_size=576)
    own = Tokenizer(converted(source, tmp_path))
    assert own.decode([*own.encode_prompt("table"), 575]) == "table"


def test_generation_is_that_of_mlx_lm(source: Path, tmp_path: Path) -> None:
    import mlx_lm

    folder = converted(source, tmp_path)
    model, _ = load_base(folder)
    questions = [
        Example(f"1-{number}", question, ("notes", "table"), ("text", "text"), LogicalForm(0, 0, ()))
        for number, question in enumerate(("select?", "co"))
    ]
    params = GenerateParams(2, 8, "none", None, workers=1, hostfile=None, backend="auto")
    own = generate(model, Tokenizer(folder), questions, params)
    model, tokenizer = mlx_lm.load(str(folder))
    for question, completion in zip(questions, own, strict=True):
        text = mlx_lm.generate(model, tokenizer, question.prompt, max_tokens=8)
        assert text.removeprefix(" ") == completion.completion


def test_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    for options in ({}, {"attention_bias": True}, {"mlp_bias": True, "head_dim": 8}):
        folder = write_model(tmp_path / str(len(options)), **options)
        config = json.loads((folder / "config.json").read_text())
        found = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
        assert llama_shapes(config) == found


def test_config_says_what_transformers_would_assume(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", "mistral")
    path = source / "config.json"
    fields = json.loads(path.read_text())
    for name in ("tie_word_embeddings", "sliding_window", "max_position_embeddings"):
        fields.pop(name, None)
    path.write_text(json.dumps(fields))
    config = json.loads((converted(source, tmp_path) / "config.json").read_text())
    assert config["tie_word_embeddings"] is False  # mlx-lm would assume true
    assert (config["sliding_window"], config["rope_theta"]) == (4096, 10000.0)
    assert context_length(config) == 4096


# --- refusals -------------------------------------------------------------------------------------------------------


def test_every_bad_field_is_listed_at_once(source: Path, tmp_path: Path) -> None:
    copy = copy_of(source, tmp_path)
    fields = json.loads((copy / "config.json").read_text())
    fields |= {"num_hidden_layers": "3", "hidden_act": "gelu", "attn_logit_softcapping": 30.0, "mlp_bias": 1.5}
    fields |= {"rope_parameters": {"rope_type": "longrope"}, "partial_rotary_factor": 0.5, "num_local_experts": None}
    del fields["vocab_size"]
    (copy / "config.json").write_text(json.dumps(fields))
    message = refusal(copy, tmp_path)
    assert "found 7 problems" in message
    for part in (
        "num_hidden_layers is '3'",
        "hidden_act is 'gelu'",
        "attn_logit_softcapping is not a field that mlx-lm",
        "mlp_bias is 1.5",
        "rope_scaling of type 'longrope'",
        "partial_rotary_factor is 0.5",
        "vocab_size is missing",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2'; expected the config.json of a Llama-architecture model"),
        ({"model_type": None}, "found model_type 'None'"),
        ({"model_type": ["llama"]}, "found model_type \"['llama']\""),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not a field"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads"),
        ({"num_hidden_layers": 10**6}, "fewer than config.json has layers"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        (
            {"layer_types": ["full_attention", "full_attention", "sliding_attention"], "sliding_window": 8},
            "transformers ignores in a llama",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "rope_scaling.low_freq_factor is None"),
        ({"vocab_size": 100}, "token ids up to 511; expected ids below 100"),
        ({"hidden_size": 32}, "has shape (512, 64) where config.json implies (512, 32)"),
    ],
    ids=str,
)
def test_a_model_that_would_be_computed_wrongly(
    source: Path, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    copy = copy_of(source, tmp_path)
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | change))
    assert part in refusal(copy, tmp_path)


def test_every_bad_tensor_is_listed_at_once(source: Path, tmp_path: Path) -> None:
    copy = copy_of(source, tmp_path)
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors |= {"more": torch.zeros(1), "model.norm.weight": torch.zeros(3)}
    tensors["model.layers.0.input_layernorm.weight"] = torch.zeros(64, dtype=torch.int8)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # mlx-lm leaves it out as well
    save_file(tensors, copy / "model.safetensors")
    message = refusal(copy, tmp_path)
    assert "found 4 problems" in message
    for part in ("mlp.up_proj.weight is missing", "more is not a tensor", "model.norm.weight has shape (3,)", "is I8"):
        assert part in message, part


def test_damaged_weights(source: Path, tmp_path: Path) -> None:
    copy = copy_of(source, tmp_path)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "model.safetensors: found a damaged or foreign file" in refusal(copy, tmp_path)
    path.unlink()
    shutil.rmtree(tmp_path / "model")
    assert "model.safetensors: found no such file" in refusal(copy, tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda place: place | {"model.norm.weight": "../x.safetensors"}, "found the file '../x.safetensors'"),
        (lambda place: dict.fromkeys(place, "model-00009.safetensors"), "model-00009.safetensors: found no such"),
        (lambda place: {}, "found no weight_map"),
        (lambda place: place | {"model.norm.weight": place["model.embed_tokens.weight"]}, "where the index says"),
    ],
    ids=["climbs", "missing", "empty", "wrong"],
)
def test_an_index_that_does_not_fit(tmp_path: Path, change: Any, part: str) -> None:
    source = write_model(tmp_path / "source", shard_size="60KB")
    path = source / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))
    assert part in refusal(source, tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("tokenizer.json", None, "tokenizer.json: found no such file"),
        ("tokenizer.json", "{}", "no tokenizer that can be read"),
        ("tokenizer_config.json", "[", "no readable JSON"),
        ("tokenizer_config.json", '{"eos_token": "<nope>"}', "no end token (eos_token '<nope>' is unknown)"),
        ("tokenizer_config.json", '{"eos_token": "\\ud800"}', "no end token"),
        ("generation_config.json", "[]", "a JSON list"),
        ("tokenizer.model", "x", "no readable sentencepiece model"),
    ],
)
def test_bad_tokenizer_files(source: Path, tmp_path: Path, file: str, content: str | None, part: str) -> None:
    copy = copy_of(source, tmp_path)
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(content)
    assert part in refusal(copy, tmp_path)


def test_end_token_from_config_json_where_no_other_file_names_it(source: Path, tmp_path: Path) -> None:
    copy = copy_of(source, tmp_path)
    (copy / "tokenizer_config.json").unlink()
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | {"eos_token_id": [2, 0]}))
    folder = converted(copy, tmp_path)
    assert Tokenizer(folder).eos == 2
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("given", [None, 10**30, -1, True, "0", []])
def test_no_end_token_at_all(source: Path, tmp_path: Path, given: Any) -> None:
    copy = copy_of(source, tmp_path)
    (copy / "tokenizer_config.json").unlink()
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | {"eos_token_id": given}))
    assert "tokenizer.json: found no end token" in refusal(copy, tmp_path)


def test_tokenizer_of_another_size(source: Path, tmp_path: Path) -> None:
    copy = copy_of(source, tmp_path)
    (copy / "tokenizer.model").write_bytes(tokenizer_bytes(600))
    assert "a vocabulary of 600 pieces; expected 512, the vocab_size in config.json" in refusal(copy, tmp_path)
