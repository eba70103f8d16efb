"""An observer sees every call once in each direction, and changes nothing."""

import numpy as np

import tinygrad_ds as tg


def run():
    x = tg.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    ((x * x).sum() + x.sum()).backward()
    return x.grad


def test_profile_counts_calls_and_saved_bytes():
    with tg.observe(tg.Profile()) as profile:
        grad = run()
    assert np.array_equal(grad, run())
    calls = {name: share.calls for name, share in profile.shares.items()}
    assert calls == {"multiply": 1, "sum": 2, "add": 1}
    assert profile.shares["multiply"].saved_bytes == 2 * 6 * 8
    assert all(share.forward > 0 and share.backward > 0 for share in profile.shares.values())
    assert str(profile).splitlines()[0].startswith("primitive") and "multiply" in str(profile)


def test_nothing_is_observed_outside_the_block():
    with tg.observe(tg.Profile()) as profile:
        pass
    run()
    assert profile.shares == {}
