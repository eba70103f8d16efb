"""A rank has memory for its own part of the network, and at no moment for more."""

import pickle

import pytest

from layers import DeepSeekModel
from tests.train.parallel.launching import finish, start
from train.checkpoint import Checkpoints
from train.config import Config, Parallel, Sizes
from train.optimizer import AdamW
from train.trainer import State

pytestmark = pytest.mark.mpi
SIZES = Sizes(vocab_size=64, num_hidden_layers=6, hidden_size=64, intermediate_size=192, n_routed_experts=16)
DRAWN = 8 / 4 + 2  # times its own size: what is drawn in float64, and what is made of it


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("shared", [Parallel(pipeline="one_f_one_b"), Parallel(expert_ranks=2)])
def test_a_rank_never_has_more_than_its_own_part(tmp_path, shared, goes_on):
    """Neither at the beginning of a run nor when it goes on from a checkpoint, which is read in part."""
    path, settings = tmp_path / "memory.pickle", tmp_path / "config.toml"
    Config(sizes=SIZES, micro_batch=8, parallel=shared).save(settings)
    model = DeepSeekModel(SIZES.deepseek(SIZES.vocab_size, Config().time, 0))
    saved = [Checkpoints(tmp_path).save(model, AdamW(model, lr=0.1), State(total=1))] if goes_on else []
    code, _, errors = finish(start(2, "-m", "tests.train.parallel.memory", path, settings, *saved))
    assert code == 0, errors
    whole = sum(leaf.data.nbytes for leaf in model.parameters())
    for rank in pickle.loads(path.read_bytes()):
        held = rank["weights"] + rank["moments"]
        assert rank["weights"] < 0.7 * whole  # one rank has the MTP module
        assert rank["moments"] == pytest.approx(2 * rank["weights"], rel=0.01)
        assert held < rank["most"] < held + DRAWN * rank["largest"] + 0.2 * whole
