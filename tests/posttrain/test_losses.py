"""Reference numbers of TRL 1.16 in float64, and what must hold of the losses whatever the numbers are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain
import tinygrad_ds as tg
from posttrain import grpo_loss, kd_loss
from posttrain.advantages import group_advantages, has_signal

LOGP = np.array([[-0.5, -1.2, -0.3, -2.0], [-0.9, -0.1, -1.5, -0.7], [-1.1, -0.4, -0.8, -0.2]])
OLD = np.array([[-0.7, -1.0, -0.3, -2.5], [-0.6, -0.2, -1.1, -0.7], [-1.1, -0.9, -0.5, -0.4]])
REF = np.array([[-0.4, -1.5, -0.6, -1.8], [-1.0, -0.3, -1.2, -0.9], [-0.8, -0.5, -1.0, -0.1]])
ADVANTAGES = np.array([1.2, -0.8, 0.5])
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
TRL = {
    ("grpo", "token"): (-0.34581380, -0.34370339, -0.34364694),
    ("grpo", "sequence"): (-0.39012592, -0.38801551, -0.38787658),
    ("bnpo", "token"): (-0.57449251, -0.57221245, -0.57213879),
    ("bnpo", "sequence"): (-0.62164237, -0.61936232, -0.61917090),
    ("dr_grpo", "token"): (-0.21543469, -0.21457967, -0.21455205),
    ("dr_grpo", "sequence"): (-0.23311589, -0.23226087, -0.23218909),
}
JSD = {
    1: {0: 0.50360581, 0.3: 0.09467546, 0.5: 0.10843306, 0.9: 0.03796599, 1: 0.42286776},
    2: {0: 0.12408942, 0.3: 0.02509277, 0.5: 0.02934258, 0.9: 0.01033467, 1: 0.11450352},
}
STUDENT = np.array([[[1, 0, -1], [0.5, 0.2, 0], [2, 1, 0]]])
TEACHER = np.array([[[0, 1, -1], [1, 1, 0], [0.5, 0, 1]]])
LABELS = np.array([[5, -100, 7]])
KINDS = [(aggregate, ratio) for aggregate in ("grpo", "bnpo", "dr_grpo") for ratio in ("token", "sequence")]


def gradient(logp=LOGP, old=OLD, advantages=ADVANTAGES, mask=MASK, ref=None, **options):
    x = tg.Tensor(logp, requires_grad=True)
    grpo_loss(x, old, advantages, mask, ref, max_length=8, **options).backward()
    return x.grad


@pytest.mark.parametrize(("aggregate", "ratio"), TRL)
def test_grpo_gives_the_reference_numbers(aggregate, ratio):
    options = {"aggregate": aggregate, "ratio": ratio, "eps_low": 0.2, "eps_high": 0.28, "max_length": 8}
    plain, pulled, weighted = TRL[aggregate, ratio]
    assert float(grpo_loss(LOGP, OLD, ADVANTAGES, MASK, **options)) == pytest.approx(plain, abs=1e-8)
    for weigh, wanted in ((False, pulled), (True, weighted)):
        loss = grpo_loss(LOGP, OLD, ADVANTAGES, MASK, REF, beta=0.1, weighted_k3=weigh, **options)
        assert float(loss) == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("temperature", JSD)
@pytest.mark.parametrize("beta", JSD[1])
def test_distillation_gives_the_reference_numbers(temperature, beta):
    loss = kd_loss(STUDENT, TEACHER, LABELS, beta=beta, temperature=float(temperature))
    assert float(loss) == pytest.approx(JSD[temperature][beta], abs=1e-8)


def test_the_face_has_the_names_that_are_relied_on():
    assert {"grpo_loss", "kd_loss", "pass_at_k"} <= set(posttrain.__all__)


@pytest.mark.parametrize(("aggregate", "ratio"), KINDS)
def test_before_the_first_update_it_is_reinforce(aggregate, ratio):
    """With old = logp and beta 0 the gradient is -w A, whatever the clip, and the clip never acts."""
    counts = MASK.sum(axis=1, keepdims=True)
    w = {"grpo": MASK / (3 * counts), "bnpo": MASK / MASK.sum(), "dr_grpo": MASK / 24}[aggregate]
    for eps in (0.0, 0.2):
        grad = gradient(old=LOGP, aggregate=aggregate, ratio=ratio, eps_low=eps, eps_high=eps)
        sums = grad.sum(axis=1), (-w * ADVANTAGES[:, None]).sum(axis=1)
        np.testing.assert_allclose(*sums, rtol=1e-12)
        np.testing.assert_allclose(grad, -w * ADVANTAGES[:, None], rtol=1e-12)


@pytest.mark.parametrize(("aggregate", "ratio"), KINDS)
def test_batch_in_any_pieces_is_the_batch(aggregate, ratio):
    """With one denominator for the whole batch, losses and gradients add up, though rows differ in length."""
    options = {"aggregate": aggregate, "ratio": ratio, "beta": 0.1, "max_length": 8}
    x = tg.Tensor(LOGP, requires_grad=True)
    tg.grpo_objective(x, OLD, ADVANTAGES, MASK, REF, **options).backward()
    y = tg.Tensor(LOGP, requires_grad=True)
    count = MASK.sum() if aggregate == "bnpo" else 3
    total = 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        part = tg.grpo_objective(
            y[rows], OLD[rows], ADVANTAGES[rows], MASK[rows], REF[rows], **options, count=count
        )
        part.backward()
        total += float(part)
    np.testing.assert_allclose(y.grad, x.grad, rtol=1e-12, atol=1e-15)
    assert total == pytest.approx(float(tg.grpo_objective(LOGP, OLD, ADVANTAGES, MASK, REF, **options)))


@pytest.mark.parametrize(("aggregate", "ratio"), KINDS)
def test_samples_in_another_order_have_their_gradients_in_that_order(aggregate, ratio):
    order = np.array([2, 0, 1])
    straight = gradient(ref=REF, beta=0.1, aggregate=aggregate, ratio=ratio)
    turned = gradient(
        *(a[order] for a in (LOGP, OLD, ADVANTAGES, MASK, REF)), beta=0.1, aggregate=aggregate, ratio=ratio
    )
    np.testing.assert_allclose(turned, straight[order], rtol=1e-12)


def test_the_clip_holds_back_what_has_moved_far_enough_and_nothing_else():
    """Asymmetric: a good token stops above 1.28, a bad one below 0.8; both go on on the other side."""
    rho = np.array([[0.5, 0.9, 1.25, 1.5]])
    for advantage, moves in ((1.0, [True, True, True, False]), (-1.0, [False, True, True, True])):
        grad = gradient(np.log(rho), np.zeros((1, 4)), np.array([advantage]), np.ones((1, 4), bool))
        assert ((grad != 0) == [moves]).all()
        np.testing.assert_allclose(grad[grad != 0], (-advantage * rho / 4)[grad != 0], rtol=1e-12)


def test_at_a_bound_the_ratio_still_pulls():
    grad = gradient(np.log([[1.5, 0.5]]), np.zeros((1, 2)), np.ones(1), np.ones((1, 2)), eps_high=0.5)
    np.testing.assert_allclose(grad, [[-0.75, -0.25]], rtol=1e-12)
    grad = gradient(np.log([[0.5, 1.5]]), np.zeros((1, 2)), -np.ones(1), np.ones((1, 2)), eps_low=0.5)
    np.testing.assert_allclose(grad, [[0.25, 0.75]], rtol=1e-12)


@settings(max_examples=30)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5))
def test_k3_is_never_negative_and_flat_where_policies_agree(differences):
    """Its gradient there is 0, and it points to the reference: raising a token below it lowers k3."""
    d = np.array([differences])
    nothing = np.zeros(d.shape)
    options = {"beta": 1.0, "aggregate": "bnpo"}
    value = float(grpo_loss(nothing, nothing, np.zeros(1), np.ones(d.shape), d, **options))
    assert value >= 0 and value == pytest.approx((np.exp(d) - d - 1).mean(), abs=1e-12)
    grad = gradient(nothing, nothing, np.zeros(1), np.ones(d.shape), d, **options)
    assert (np.sign(grad) == -np.sign(np.where(np.abs(d) < 1e-15, 0, d))).all()
    assert not gradient(nothing, nothing, np.zeros(1), np.ones(d.shape), nothing, **options).any()


def test_k3_is_an_unbiased_estimate_of_kl_from_policy_to_reference():
    """The mean over the policy's own tokens is KL(policy || reference), not the other one."""
    p, r = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    value = [
        float(grpo_loss(np.log([[a]]), np.log([[a]]), np.zeros(1), np.ones((1, 1)), np.log([[b]]), beta=1.0))
        for a, b in zip(p, r)
    ]
    assert p @ value == pytest.approx((p * np.log(p / r)).sum())


def test_no_gradient_reaches_old_reference_or_advantage():
    leaves = [tg.Tensor(a, requires_grad=True) for a in (LOGP, OLD, ADVANTAGES, REF)]
    logp, old, advantages, ref = leaves
    grpo_loss(logp, old, advantages, MASK, ref, beta=0.1).backward()
    assert logp.grad.any() and old.grad is None and advantages.grad is None and ref.grad is None
    teacher, student = (tg.Tensor(a, requires_grad=True) for a in (TEACHER, STUDENT))
    kd_loss(student, teacher, LABELS).backward()
    assert student.grad.any() and teacher.grad is None


def test_what_stands_outside_the_mask_is_not_read():
    """NaN there too: it may be anything that padding left behind. A row of nothing adds nothing."""
    broken = [np.where(MASK, a, np.nan) for a in (LOGP, OLD)]
    for aggregate, ratio in KINDS:
        options = {"aggregate": aggregate, "ratio": ratio, "beta": 0.1}
        grad = gradient(*broken, ref=np.where(MASK, REF, np.nan), **options)
        np.testing.assert_allclose(grad, gradient(ref=REF, **options), rtol=1e-12)
        assert not grad[MASK == 0].any()
        empty = MASK.copy()
        empty[1] = 0
        assert not gradient(mask=empty, ref=REF, **options)[1].any()


def test_length_is_that_of_the_completion():
    """Padding changes nothing; dr_grpo divides by the length that is allowed, not by that of the batch."""
    wide = [np.pad(a, ((0, 0), (0, 3))) for a in (LOGP, OLD, MASK, REF)]
    for aggregate, ratio in KINDS:
        options = {"aggregate": aggregate, "ratio": ratio, "beta": 0.1, "max_length": 8}
        padded = grpo_loss(wide[0], wide[1], ADVANTAGES, wide[2], wide[3], **options)
        assert float(padded) == pytest.approx(float(grpo_loss(LOGP, OLD, ADVANTAGES, MASK, REF, **options)))
    with pytest.raises(ValueError, match="max_length is None but dr_grpo divides by the most tokens"):
        grpo_loss(LOGP, OLD, ADVANTAGES, MASK, aggregate="dr_grpo")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": np.zeros((3, 4))}, "mask is 0 everywhere"),
        ({"mask": np.ones((3, 3))}, r"mask has shape \(3, 3\) and logp \(3, 4\)"),
        ({"old_logp": np.ones((2, 4))}, r"old_logp has shape \(2, 4\)"),
        ({"ref_logp": np.ones(3)}, r"ref_logp has shape \(3,\)"),
        ({"advantages": np.ones(2)}, r"advantages have shape \(2,\) but logp \(3, 4\)"),
        ({"aggregate": "mean"}, "aggregate is 'mean' but must be grpo, bnpo or dr_grpo"),
        ({"ratio": "word"}, "ratio is 'word' but must be token or sequence"),
    ],
)
def test_what_is_no_batch_is_refused(changes, words):
    given = {"logp": LOGP, "old_logp": OLD, "advantages": ADVANTAGES, "mask": MASK} | changes
    with pytest.raises(ValueError, match=words):
        grpo_loss(**given)


def test_a_count_of_nothing_is_refused():
    with pytest.raises(ValueError, match="count is 0 but the whole batch must hold something"):
        tg.grpo_objective(LOGP, OLD, ADVANTAGES, MASK, count=0)
    assert float(tg.grpo_objective(LOGP, OLD, ADVANTAGES, 0 * MASK, count=5)) == 0


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_distillation_is_nothing_where_both_agree_and_moves_no_row_as_a_whole(beta):
    assert float(kd_loss(STUDENT, STUDENT + 3.0, LABELS, beta=beta)) == pytest.approx(0, abs=1e-15)
    x = tg.Tensor(STUDENT, requires_grad=True)
    kd_loss(x, TEACHER, LABELS, beta=beta).backward()
    np.testing.assert_allclose(x.grad.sum(axis=-1), 0, atol=1e-15)
    assert x.grad[0, 0].any() and not x.grad[0, 1].any()


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_a_teacher_in_few_bits_leaves_the_student_all_of_its_own(beta):
    """Rows of the gradient still sum to 0 as closely as float64 can, which rounded ones would not."""
    x = tg.Tensor(STUDENT, requires_grad=True)
    kd_loss(x, TEACHER.astype(np.float16), LABELS, beta=beta).backward()
    assert x.grad.dtype == np.float64 and x.grad.any()
    np.testing.assert_allclose(x.grad.sum(axis=-1), 0, atol=1e-15)


def test_forward_distillation_is_cross_entropy_with_the_teachers_word_for_it():
    """A teacher that is certain: KL is -ln q of its token, a sum over the vocabulary and no mean."""
    certain = np.full((1, 3, 3), -1e4)
    certain[0, :, 1] = 0
    loss = float(kd_loss(STUDENT, certain, LABELS, beta=0.0))
    assert loss == pytest.approx(float(tg.cross_entropy(STUDENT, np.array([[1, -100, 1]]))), rel=1e-12)


def test_impossible_tokens_of_the_teacher_are_no_trouble():
    teacher = TEACHER.astype(float).copy()
    teacher[0, 0, 2] = -np.inf
    with np.errstate(invalid="raise"):
        for beta in (0.0, 0.5):
            assert np.isfinite(float(kd_loss(STUDENT, teacher, LABELS, beta=beta)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_logits": TEACHER[..., :2]}, "both must have the same rows and one vocabulary"),
        ({"labels": LABELS[0]}, r"labels are int64\(3,\)"),
        ({"labels": LABELS * 1.0}, "need integers"),
        ({"labels": np.full((1, 3), -100)}, "all 3 labels are -100"),
        ({"beta": 1.5}, "beta is 1.5 but must be from 0"),
        ({"temperature": 0.0}, "temperature is 0.0 but must be above 0"),
    ],
)
def test_what_cannot_be_distilled_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        kd_loss(**{"student_logits": STUDENT, "teacher_logits": TEACHER, "labels": LABELS} | changes)


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from([0.0, 0.2, 1.0, 1.2]), min_size=4, max_size=4),
    st.floats(-5, 5),
    st.booleans(),
)
def test_advantages_of_a_group_sum_to_nothing_and_ignore_what_all_get(rewards, constant, scale):
    rewards = np.array(rewards * 2)
    a = group_advantages(rewards, 4, scale=scale)
    np.testing.assert_allclose(a.reshape(2, 4).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(group_advantages(rewards + round(constant), 4, scale=scale), a, atol=1e-9)


def test_advantages_are_those_of_the_formula():
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 0.2, 0.2, 0.2, 1.2])
    first, second = rewards[:4], rewards[4:]
    wanted = [(g - g.mean()) / (g.std(ddof=1) + 1e-4) for g in (first, second)]
    np.testing.assert_allclose(group_advantages(rewards, 4), np.concatenate(wanted), rtol=1e-12)
    np.testing.assert_allclose(group_advantages(rewards, 4, scale=False)[:4], first - 0.5, rtol=1e-12)


def test_equal_rewards_are_exactly_nothing():
    """A standard deviation of 1e-17 is rounding, which must not become an advantage."""
    rewards = np.array([0.1 + 0.2, 0.3, 0.3, 0.3])
    assert rewards.std(ddof=1) > 0 and not group_advantages(rewards, 4).any()
    same = np.full(7, 0.7)
    assert (same - same.mean()).any() and not group_advantages(same, 7).any()
    assert has_signal(np.array([1.0, 1.0, 0.0, 1.0]), 2).tolist() == [False, True]
    with pytest.raises(ValueError, match="no groups of 3"):
        group_advantages(np.ones(4), 3)
