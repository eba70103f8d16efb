"""What docs/gpu.md says fits, is what is predicted."""

import json
import re
from bisect import bisect_right

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
    for card, cell in zip((8, 12, 24), fits.split("|"), strict=True):
        most = [rows_that_fit(config, 0.9e9 * card, recompute=again) for again in (False, True)]
        assert cell.strip() == " / ".join(f"{rows:,}" if rows else "none" for rows in most)


def rows_that_fit(config, available, recompute):
    """The most rows of 1,024 tokens."""

    def needed(rows):
        return sum(memory_to_train(config, rows, 1024, recompute=recompute).values())

    return bisect_right(range(10_000), available, key=needed) - 1 if needed(1) <= available else 0
