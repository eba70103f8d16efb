import pytest

from train.errors import UserError
from train.learning_rate import V3_TOKENS, Schedule


def test_published_points_of_v3():
    """Section 4.2: 2K steps to 2.2e-4, to 10T tokens; cosine to 2.2e-5 over 4.3T; 333B; 167B at 7.3e-6."""
    s = Schedule()

    def rate(step, tokens):
        return 2.2e-4 * s.rate(step, tokens, V3_TOKENS)

    assert rate(999, 1e9) == pytest.approx(1.1e-4, rel=1e-3)
    assert rate(2000, 3e10) == pytest.approx(2.2e-4)
    assert rate(500_000, 9.99e12) == pytest.approx(2.2e-4)
    assert rate(500_000, 10e12 + 4.3e12 / 2) == pytest.approx((2.2e-4 + 2.2e-5) / 2)
    assert rate(500_000, 14.3e12) == pytest.approx(2.2e-5)
    assert rate(500_000, 14.6e12) == pytest.approx(2.2e-5)
    assert rate(500_000, 14.64e12) == pytest.approx(7.3e-6)
    assert 10e12 + 4.3e12 + 333e9 + 167e9 == V3_TOKENS


def test_batch_of_v3_grows_over_the_first_469_billion_tokens():
    s = Schedule()
    assert s.sequences(0, V3_TOKENS) == 3072
    assert s.sequences(469e9 / 2, V3_TOKENS) == (3072 + 15360) // 2
    assert s.sequences(469e9, V3_TOKENS) == s.sequences(14e12, V3_TOKENS) == 15360
    assert Schedule(batch=7, first_batch=0).sequences(0, 100) == 7


def test_rate_never_jumps_up_after_warming_up_and_stays_between_0_and_1():
    s = Schedule(warmup_steps=10, constant=0.2, cosine=0.8, floor=0.0, last=0.0)
    rates = [s.rate(step, step, 100) for step in range(100)]
    assert rates[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert rates[10:21] == [1.0] * 11
    assert all(0 < b < a for a, b in zip(rates[20:], rates[21:]))
    assert Schedule(warmup_steps=0).rate(0, 0, 1) == 1.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1 but must be at least 0"),
        ({"floor": 1.5}, "floor is 1.5 but must be between 0 and 1"),
        ({"constant": 0.9, "cosine": 0.2}, "together they must not be above 1"),
        ({"batch": 4, "first_batch": 5}, "first_batch is 5 and batch is 4"),
        ({"batch": 0, "first_batch": 0}, "batch is 0"),
    ],
)
def test_impossible_schedules_say_why(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Schedule(**settings)
