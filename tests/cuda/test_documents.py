"""What docs/gpu.md says fits, is what is predicted."""

import json
import re

import pytest

from layers import DeepSeekConfig
from layers.plan import count
from layers.roofline import memory_to_train
from tests.cuda.test_copies import GPU

pytestmark = pytest.mark.cuda
ROWS = re.findall(
    r"^\| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \| (\d+) M \|(.*)\|$", GPU.read_text(), re.M
)
BASE = json.loads((GPU.parent.parent / "benchmarks" / "config.json").read_text())


def test_table_has_rows():
    assert len(ROWS) == 4


@pytest.mark.parametrize("row", ROWS)
def test_what_fits_is_what_is_predicted(row):
    *sizes, millions, fits = row
    hidden, layers, heads, experts, vocabulary = (int(size.replace(",", "")) for size in sizes)
    config = DeepSeekConfig.from_dict(
        {
            **BASE,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "n_routed_experts": experts,
            "vocab_size": vocabulary,
            "q_lora_rank": hidden // 2,
            "kv_lora_rank": hidden // 4,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
            "intermediate_size": 8 * hidden // 3,
            "moe_intermediate_size": hidden // 2,
        }
    )
    assert round(count(config) / 1e6) == int(millions)
    needs = memory_to_train(config, 1, 1024)
    kept = needs["kept for backward"]
    fixed = sum(needs.values()) - kept
    for card, cell in zip((8, 12, 24), fits.split("|"), strict=True):
        most = (0.9e9 * card - fixed) // kept
        assert cell.strip() == ("none" if most < 1 else f"{most:.0f}")
