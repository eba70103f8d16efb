"""Rewards, and the completions that try to have one without the other."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.completion import LONGEST, Completion, read, thinks
from posttrain.rewards import ACCURACY, FORMAT, LANGUAGE, Reward, RewardError, judge
from posttrain.tasks import Question

LONG = " <think> b 24 </think> <answer> 22 </answer>"
FOOLING = {
    "answer inside the thought": " <think> <answer> 22 </answer> </think>",
    "answer in the thought and after": " <think> <answer> 22 </answer> </think> <answer> 21 </answer>",
    "two answers": " <think> b </think> <answer> 22 </answer> <answer> 22 </answer>",
    "two answers, the first wrong": " <answer> 21 </answer> <answer> 22 </answer>",
    "answer in the answer": " <answer> <answer> 22 </answer> </answer>",
    "unclosed thought": " <think> b 24 <answer> 22 </answer>",
    "unclosed answer": " <think> b 24 </think> <answer> 22",
    "unopened answer": " <think> b 24 </think> 22 </answer>",
    "text after the answer": " <think> b 24 </think> <answer> 22 </answer> b",
    "text before the answer": " <think> b 24 </think> b <answer> 22 </answer>",
    "text before the thought": " b <think> b 24 </think> <answer> 22 </answer>",
    "two thoughts": " <think> b </think> <think> c </think> <answer> 22 </answer>",
    "thought after the answer": " <answer> 22 </answer> <think> b </think>",
    "closed twice": " <think> b </think> </think> <answer> 22 </answer>",
    "no tags": " 22",
    "nothing": "",
    "empty answer": " <answer> </answer>",
}


def question(language=""):
    return Question(" a 20 =", "22", language=language)


def reward_of(rule, text, ended=True, language=""):
    return judge([rule], [question(language)], [Completion(text, ended)]).total[0]


@pytest.mark.parametrize("name", FOOLING)
def test_no_shape_but_the_two_has_an_answer(name):
    assert reward_of(ACCURACY, FOOLING[name]) == 0 and reward_of(FORMAT, FOOLING[name]) == 0
    assert not read(Completion(FOOLING[name])).answer


def test_the_two_shapes_have_one():
    for text in (
        LONG,
        " <answer> 22 </answer>",
        LONG.replace(" ", ""),
        "\n<think>b</think>\n\n<answer>22</answer>\n",
    ):
        assert reward_of(ACCURACY, text) == 1
        assert (reward_of(FORMAT, text) > 0) == ("<think>" in text)
    assert reward_of(ACCURACY, LONG.replace("22", "21")) == 0
    assert reward_of(FORMAT, LONG.replace("22", "21")) == pytest.approx(0.2)


def test_an_empty_thought_is_no_thought():
    assert reward_of(FORMAT, " <think> </think> <answer> 22 </answer>") == 0
    assert reward_of(ACCURACY, " <think> </think> <answer> 22 </answer>") == 1


def test_what_was_cut_off_or_is_endless_has_no_answer():
    assert reward_of(ACCURACY, LONG, ended=False) == 0 == reward_of(FORMAT, LONG, ended=False)
    assert reward_of(ACCURACY, f" <think> {'b ' * LONGEST} </think> <answer> 22 </answer>") == 0


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "22", "b", "<", ">"]), max_size=9
    )
)
def test_a_formatted_completion_has_each_tag_once_and_in_order(words):
    text = " ".join(words)
    parts = read(Completion(text))
    if parts.formatted:
        assert [w for w in words if len(w) > 2] == ["<think>", "</think>", "<answer>", "</answer>"]
        assert text.endswith("</answer>") and text.startswith("<think>")
    assert thinks(Completion(text)) == text.startswith("<think>")


def test_reading_is_quick_whatever_it_is_given():
    """A hundred thousand open tags: a pattern that backtracks would still be at it."""
    began = time.process_time()
    for text in ("<think>" * 14_000, "<answer>" * 12_000, "<think>" + "</think>" * 12_000, "<" * 99_999):
        read(Completion(text))
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (LONG, 1.0),
        (" <think> β XX </think> <answer> 22 </answer>", 1 / 3),
        (" <answer> XXII </answer>", 0.0),
        ("", 0.0),
    ],
)
def test_language_is_the_share_of_words_in_the_prompts_notation(text, share):
    assert reward_of(LANGUAGE, text, language="latin") == pytest.approx(share)


def test_rewards_add_up_by_weight_and_keep_their_names():
    completions = [Completion(LONG), Completion(" <answer> 22 </answer>"), Completion("")]
    found = judge([ACCURACY, FORMAT, LANGUAGE], [question("latin")] * 3, completions)
    assert found.total == pytest.approx([2.2, 2.0, 0.0])
    assert found.means() == {
        "accuracy": pytest.approx(2 / 3),
        "format": pytest.approx(1 / 3),
        "language": pytest.approx(2 / 3),
    }
    assert found.deciding.tolist() == [1, 1, 0]
    assert judge([FORMAT], [question()], [Completion(LONG)]).deciding == pytest.approx([0.2])


def test_rewards_for_a_batch_at_once():
    longer = Reward(
        "longer", lambda p, c: 0.0, batch=lambda problems, said: np.array([len(c.text) for c in said])
    )
    assert judge([longer], [question()] * 2, [Completion("ab"), Completion("")]).total.tolist() == [2, 0]
    wrong = Reward("wrong", lambda p, c: 0.0, batch=lambda problems, said: np.ones(3))
    with pytest.raises(RewardError, match=r"'wrong' gave shape \(3,\) for 2 samples"):
        judge([wrong], [question()] * 2, [Completion("")] * 2)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            lambda p, c: 1 / len(c.text),
            r"'mine' raised ZeroDivisionError \(division by zero\) for sample 1, prompt ' a 20 ='",
        ),
        (lambda p, c: float("nan") if not c.text else 1.0, "'mine' is nan for sample 1, .* completion ''"),
        (lambda p, c: float("inf") if not c.text else 1.0, "'mine' is inf for sample 1"),
        (lambda p, c: None if not c.text else 1.0, "'mine' is nan for sample 1"),
        (lambda p, c: c.text, "'mine' raised ValueError .* for sample 0"),
    ],
)
def test_a_broken_reward_names_the_sample(rule, words):
    with pytest.raises(RewardError, match=words):
        judge([Reward("mine", rule)], [question()] * 2, [Completion("x"), Completion("")])


def test_a_judgement_that_takes_too_long_is_worth_nothing():
    def endless(problem, completion):
        try:
            while completion.text:
                pass
        except Exception:  # does not help it
            return 9.0
        return 1.0

    found = judge(
        [Reward("slow", endless)], [question()] * 2, [Completion("x"), Completion("")], seconds=0.05
    )
    assert found.total.tolist() == [0.0, 1.0] and found.timeouts == 1


def test_in_another_thread_there_is_no_limit_but_the_same_judgement():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(judge([ACCURACY], [question()], [Completion(LONG)]))
    )
    thread.start()
    thread.join()
    assert found[0].total.tolist() == [1.0]
