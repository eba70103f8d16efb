"""Checkpoints written here are read by transformers, and those that transformers writes are read here."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config

from layers import load_pretrained, save_pretrained
from layers.pretrained_text import R1_TEMPLATE, PretrainedText
from tests.layers.cases import SOFTMAX, TINY, YARN, distance, model_of, some_ids, tiny
from tests.layers.test_pretrained_text import BEGIN, END, MESSAGES, byte_tokenizer
from tests.oracle.peers import their_logits, their_model

pytestmark = pytest.mark.oracle

KINDS = [
    {"rope_scaling": YARN, "attention_bias": True},
    {"rope_interleave": False, "tie_word_embeddings": True},
    SOFTMAX | {"qk_nope_head_dim": 6},  # transformers' V2 needs heads of even size
]
THEIR_DEFAULTS = {"model_type": "deepseek_v3", "num_key_value_heads": TINY["num_attention_heads"]}
# FP8 with whole blocks, or one that is smaller: transformers takes the rows of a block to be all rows over
# the rows of scales.
BLOCKS = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "initializer_range": 0.1,
}


def assert_equal_logits(folder, tolerance=1e-9, **options):
    """Both load the files and compute in float64."""
    ids = some_ids(2, 9)
    ours = load_pretrained(folder, dtype="float64")(ids).data
    assert distance(ours, their_logits(their_model(folder, **options), ids)) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard", [10**9, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_saved_here(tmp_path, kind, dtype, shard):
    save_pretrained(model_of(dtype="float32", **kind), tmp_path, dtype=dtype, max_shard_size=shard)
    assert (shard == 3000) == (tmp_path / "model.safetensors.index.json").exists()
    assert_equal_logits(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == getattr(torch, dtype)


def test_transformers_reads_fp8_blocks(tmp_path):
    save_pretrained(model_of(dtype="float32", **BLOCKS), tmp_path, dtype="fp8")
    assert "quantization_config" in json.loads((tmp_path / "config.json").read_text())
    # An entry times its scale is rounded to float32 here and stays float64 there.
    assert_equal_logits(tmp_path, 1e-6, quantization_config=FineGrainedFP8Config(dequantize=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard", ["1GB", "3KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_saves_is_read_here(tmp_path, kind, dtype, shard):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(THEIR_DEFAULTS | TINY | kind))
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (shard == "3KB") == (tmp_path / "model.safetensors.index.json").exists()
    assert load_pretrained(tmp_path).config.torch_dtype == dtype
    assert_equal_logits(tmp_path)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:], MESSAGES[1:3], MESSAGES[:1]])
def test_chat_is_written_as_by_transformers(tmp_path, messages, add_generation_prompt):
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tiny(vocab_size=260, bos_token_id=256, eos_token_id=257).save(tmp_path)
    told = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(
        messages,
        chat_template=R1_TEMPLATE,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
    )
    text = PretrainedText(tmp_path)
    np.testing.assert_array_equal(text.chat(messages, add_generation_prompt), ids)
    assert text.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
