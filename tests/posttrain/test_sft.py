"""Fine-tuning: only completions are learnt, examples do not see each other, and the end is a token too."""

import numpy as np
import pytest

import tinygrad_ds as tg
from posttrain.distill import Distillation, by_example, likeliest
from posttrain.learning import Learning
from posttrain.models import require_one_vocabulary
from posttrain.notation import with_words
from posttrain.packing import Example, pack
from posttrain.scoring import predictions
from posttrain.sft import CHAINS, TEXT, FineTuning, completion_loss, example
from tests.posttrain.small import network, sequences, vocabulary
from train.batches import IGNORED, TrainingBatches, tokenize
from train.errors import UserError
from train.tokenizer import Tokenizer
from train.trainer import State, accumulate, train

EXAMPLES = sequences([(3, 4), (1, 2), (6, 5), (2, 1), (4, 7)])


def mean_over_completions(model, examples):
    """One example at a time, each alone."""
    total = sum(
        -tg.log_softmax(model(np.concatenate(e[:2])[None]).data[0, len(e.prompt) - 1 : -1])
        .data[np.arange(len(e.completion)), e.completion]
        .sum()
        for e in examples
    )
    return total / sum(len(e.completion) for e in examples)


def numbers_of(subject, model, step=0):
    state = State(total=10.0, step=step)
    return accumulate(model, subject.next_work(state), subject.loss, state)


def test_loss_is_the_mean_over_completion_tokens_alone():
    model = network()
    found = numbers_of(FineTuning(EXAMPLES, 16, batch=5), model)
    assert found["loss"] == pytest.approx(mean_over_completions(model, EXAMPLES), rel=1e-9)
    packed = pack(EXAMPLES, 16)
    assert packed.total == 19 and (packed.targets != IGNORED).sum() == 19


def test_prompts_are_not_learnt_and_the_end_is():
    """Other words for a prompt's last token change the input; its own place is no target."""
    tokenizer = vocabulary()
    made = example(tokenizer, " a 20 =", " <answer> 20 </answer>")
    assert made.completion[-1] == tokenizer.end_id and len(made.prompt) == 3
    packed = pack([made], 16)
    assert packed.targets[0, packed.targets[0] != IGNORED].tolist() == made.completion.tolist()
    assert packed.targets[0, :2].tolist() == [IGNORED, IGNORED]


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_micro_batches_add_up(micro_batch):
    whole, parts = network(), network()
    one = numbers_of(FineTuning(EXAMPLES, 16, batch=5), whole)
    other = numbers_of(FineTuning(EXAMPLES, 16, batch=5, micro_batch=micro_batch), parts)
    assert other == pytest.approx(one, rel=1e-10)
    for (path, a), (_, b) in zip(whole.named_leaves(), parts.named_leaves()):
        np.testing.assert_allclose(b.grad, a.grad, rtol=1e-8, atol=1e-12, err_msg=path)


def test_weights_count_tokens_more_or_less():
    model = network()
    weighted = [e._replace(weights=np.arange(len(e.completion)) % 2 + 0.5) for e in EXAMPLES]
    packed = pack(weighted, 16)
    total = 0.0
    for each in weighted:
        one = [each._replace(weights=np.eye(len(each.completion))[t]) for t in range(len(each.completion))]
        losses = [float(completion_loss(model, pack([e], 16), 1.0)) for e in one]
        total += np.dot(losses, each.weights)
    assert packed.total == sum(each.weights.sum() for each in weighted)
    assert float(completion_loss(model, packed, packed.total)) == pytest.approx(total / packed.total)
    plain = float(completion_loss(model, pack(EXAMPLES, 16), 19))
    ones = [e._replace(weights=np.ones(len(e.completion))) for e in EXAMPLES]
    assert float(completion_loss(model, pack(ones, 16), 19)) == pytest.approx(plain)


def test_every_example_once_an_epoch_by_the_number_of_the_step_alone():
    subject = FineTuning(EXAMPLES, 16, batch=2, seed=1)
    drawn = [subject.number(i) for i in range(15)]
    for epoch in range(3):
        assert sorted(drawn[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert drawn[:5] != drawn[5:10]
    again = FineTuning(EXAMPLES, 16, batch=2, seed=1)
    assert [again.number(i) for i in (12, 3)] == [drawn[12], drawn[3]]


def test_text_beside_chains_is_a_loss_of_its_own():
    documents = tuple(
        f"{word} stands here, and so does {word[::-1]}." * 3 for word in ("one", "two", "three")
    )
    tokens = tokenize(documents, vocabulary())
    model = network()
    text = TrainingBatches(tokens, time=12, seed=0)
    subject = FineTuning(EXAMPLES, 16, batch=5, text=text, text_rows=3, text_weight=0.3)
    found = numbers_of(subject, model, step=2)
    rows = text.rows(6, 3)
    assert found[TEXT] == pytest.approx(float(model.loss(rows.ids, rows.targets)), rel=1e-9)
    assert found["loss"] == pytest.approx(found[CHAINS] + 0.3 * found[TEXT], rel=1e-9)


def test_a_chain_is_learnt_by_heart():
    model = network(dtype="float32")
    subject = FineTuning(EXAMPLES[:2], 16, batch=2)
    learning, seen = Learning(lr=0.02), []
    train(
        model,
        learning.make(model),
        subject.next_work,
        subject.loss,
        State(total=60.0),
        learning_rate=learning.rate,
        after=[lambda state, record: seen.append(record["loss"])],
    )
    assert seen[0] > 3 and seen[-1] < 0.05


def test_rates_warm_up_and_fall():
    learning = Learning(lr=1.0, warmup_steps=3, decay="linear")
    rates = [learning.rate(State(total=10.0, step=s, done=float(s))) for s in range(10)]
    assert rates[:3] == pytest.approx([0.25, 0.45, 0.6]) and rates[5] == pytest.approx(0.5)
    assert Learning(lr=1.0, warmup_steps=0).rate(State(total=10.0, done=9.0)) == 1.0
    assert Learning(optimizer="muon", matrix_lr=3.0, warmup_steps=0).rate(State(total=1.0)) == 3.0


def test_nothing_to_learn_from_is_told():
    with pytest.raises(UserError, match="no example to learn from"):
        FineTuning([], 16)
    with pytest.raises(UserError, match="lr is 0"):
        Learning(lr=0.0)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYGRAD_DS_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_with_all_tokens_kept_the_student_meets_the_teacher_itself(own_cache, beta):
    teacher, student = network(seed=1), network(seed=2)
    vocab = teacher.config.vocab_size
    found = likeliest(teacher, EXAMPLES, vocab, batch=2)
    subject = Distillation(EXAMPLES, 16, batch=5, micro_batch=2, beta=beta, temperature=2.0).taught_by(found)
    packed = pack(EXAMPLES, 16)
    logits = [predictions(model, packed)[0].data for model in (student, teacher)]
    wanted = tg.jensen_shannon(*logits, np.zeros(19, int), beta=beta, temperature=2.0)
    assert numbers_of(subject, student)["loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_likeliest_tokens_are_kept_and_the_rest_is_spread(own_cache):
    teacher, examples = network(seed=1), EXAMPLES[:2]
    found = likeliest(teacher, examples, 7)
    logp = found.logits([1, 0])
    assert logp.shape == (6, teacher.config.vocab_size)
    np.testing.assert_allclose(np.exp(logp.astype(float)).sum(axis=1), 1, rtol=1e-6)
    packed = pack(examples, 16)
    true = tg.log_softmax(predictions(teacher, packed)[0]).data[by_example(packed, examples)]
    true = np.concatenate([true[4:], true[:4]])  # example 1 first
    best = np.argsort(-true, axis=1)[:, :7]
    np.testing.assert_allclose(
        np.take_along_axis(logp, best, 1), np.take_along_axis(true, best, 1), rtol=1e-6
    )
    rest = np.sort(logp, axis=1)[:, :-7]
    assert (rest == rest[:, :1]).all()


def test_the_teacher_reads_once_and_is_known_by_its_weights(own_cache, monkeypatch):
    teacher = network(seed=1)
    first = likeliest(teacher, EXAMPLES, 5)
    with monkeypatch.context() as patched:
        patched.setattr("posttrain.distill.distributions", None)
        assert np.array_equal(likeliest(teacher, EXAMPLES, 5).logp, first.logp)
    teacher.lm_head.weight.data[...] *= 1.1
    assert not np.array_equal(likeliest(teacher, EXAMPLES, 5).logp, first.logp)
    other = [e._replace(completion=e.completion[::-1]) for e in EXAMPLES]
    assert not np.array_equal(likeliest(teacher, other, 5).ids, first.ids)


def test_teachers_of_another_vocabulary_or_text_are_refused(own_cache):
    other = with_words(Tokenizer.train(["one two three"] * 2, 257), ["x"])
    require_one_vocabulary(vocabulary(), vocabulary())
    with pytest.raises(UserError, match="teacher and student have different vocabularies"):
        require_one_vocabulary(vocabulary(), other)
    found = likeliest(network(), EXAMPLES[:2], 5)
    with pytest.raises(ValueError, match="the teacher read 2 examples, not 5"):
        Distillation(EXAMPLES, 16).taught_by(found)
    with pytest.raises(UserError, match="k is 0"):
        likeliest(network(), EXAMPLES, 0)


def test_an_empty_completion_is_its_end():
    made = example(vocabulary(), " a", "")
    assert made.completion.tolist() == [vocabulary().end_id]
    assert np.isfinite(float(completion_loss(network(), pack([made, Example(*made[:2])], 16), 2)))
