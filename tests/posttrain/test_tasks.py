from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.expressions import Expressions
from posttrain.ledger import Ledger, short
from posttrain.notation import HIGHEST, LANGUAGE_OF, NUMBERS, VALUES, roman, with_words, words_of
from posttrain.numbers import exact_number
from posttrain.tasks import Question, draw, draw_many, is_held_out
from tests.posttrain.small import vocabulary
from train.errors import UserError
from train.tokenizer import Tokenizer

SEEDS = st.integers(0, 2**32 - 1)


def follow(prompt: str) -> tuple[int, list[int]]:
    """A ledger done by hand: its last value, and all on the way."""
    first, *rest = prompt.split()[1:-1]
    value, seen = VALUES[first], []
    for i in range(0, len(rest), 3):
        _, sign, number = rest[i : i + 3]
        value = {"+": value + VALUES[number], "-": value - VALUES[number], "rev": VALUES[number] - value}[
            sign
        ]
        seen.append(value)
    return value, seen


@settings(max_examples=100)
@given(SEEDS, st.sampled_from([("latin",), ("greek",), ("latin", "greek")]))
def test_ledgers_are_what_they_say(seed, languages):
    problem = Ledger(languages=languages).sample(np.random.default_rng(seed))
    value, seen = follow(problem.prompt)
    assert all(0 <= each <= HIGHEST for each in seen) and len(seen) == problem.level
    assert problem.answer == NUMBERS[problem.language][value]
    thought = problem.chain.split("</think>")[0].split()[1:]
    assert [VALUES[word] for word in thought[1::2]] == seen
    words = {LANGUAGE_OF.get(word) for word in (problem.prompt + problem.chain).split()} - {None}
    assert words == {problem.language} and problem.language in languages
    labels = problem.prompt.split()[2:-1:3]
    assert len(set(labels)) == len(labels)


def test_a_ledger_takes_the_right_value_in_either_notation():
    problem = Ledger().sample(np.random.default_rng(1))
    value = VALUES[problem.answer]
    assert problem.check(problem.answer) and problem.check(roman(value))
    wrong = (
        str((value + 1) % 40),
        "",
        f"0{value}",
        f"{value}.0",
        f"+{value}",
        "x",
        "1e1",
        f"{value} {value}",
    )
    assert not any(problem.check(answer) for answer in wrong)
    assert short(problem) == f" <answer> {problem.answer} </answer>"


def test_mirror_steps_are_as_frequent_as_asked():
    rng = np.random.default_rng(0)
    steps = [Ledger(mirror=0.35).sample(rng) for _ in range(400)]
    share = sum(p.prompt.split().count("rev") for p in steps) / sum(p.level for p in steps)
    assert 0.3 < share < 0.4
    assert "rev" not in Ledger(mirror=0.0).sample(rng).prompt


def test_both_notations_have_a_word_for_every_number_and_share_none():
    for names in NUMBERS.values():
        assert len(set(names)) == HIGHEST + 1
    assert [roman(n) for n in (0, 4, 9, 14, 39)] == ["N", "IV", "IX", "XIV", "XXXIX"]
    assert len(words_of()) == len(set(words_of())) and len(VALUES) == 2 * (HIGHEST + 1)


@settings(max_examples=100)
@given(SEEDS)
def test_expressions_are_exact(seed):
    """Judged by Python's own reading of the same text, with fractions for its numbers."""
    problem = Expressions().sample(np.random.default_rng(seed))
    words = [f"Fraction({w})" if w.isdigit() else w for w in problem.prompt.split()[:-1]]
    value = eval(" ".join(words), {"Fraction": Fraction})
    assert exact_number(problem.answer) == value and problem.check(str(value))
    assert sum(words.count(sign) for sign in "+-*/") == problem.level
    assert not problem.check(str(value + Fraction(1, 1000)))
    if value.denominator == 3:
        assert not problem.check(f"{float(value):.12f}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-0.75", Fraction(-3, 4)),
        (" 7/2 ", Fraction(7, 2)),
        ("- 7 / 2", Fraction(-7, 2)),
        ("+3", 3),
        ("14/4", Fraction(7, 2)),
        ("007", 7),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert exact_number(text) == value


@pytest.mark.parametrize(
    "text",
    "| 1e999| 1e3| 0x16| 1/0| 1/2/3| 3 + 4| --1| nan| inf| ٣| ²| 1_000| 1.2.3| .| 1.| .5| 1/-2| ½| 1 2".split(
        "|"
    )
    + ["__import__('os')", "9" * 65],
)
def test_what_is_no_number_is_none(text):
    assert exact_number(text) is None


@given(st.text(max_size=80))
def test_reading_a_number_never_breaks(text):
    exact_number(text)


def test_training_and_evaluation_share_no_prompt():
    drawn = [draw(Ledger(), (1, i)) for i in range(100)]
    train = {p.prompt for p in [*draw_many(Ledger(), 500, 0), *drawn]}
    held_out = {p.prompt for p in draw_many(Ledger(), 60, 0, held_out=True)}
    assert len(held_out) == 60 and not train & held_out
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, train))


def test_draws_depend_on_their_seed_alone():
    assert draw(Ledger(), (3, 4)) == draw(Ledger(), (3, 4)) != draw(Ledger(), (3, 5))
    assert draw_many(Ledger(), 20, 7)[:10] == draw_many(Ledger(), 10, 7)


def test_a_task_with_too_few_prompts_is_told(monkeypatch):
    class One:
        def sample(self, rng):
            return Question("a", "1")

    monkeypatch.setattr("posttrain.tasks.TRIES", 50)
    side = is_held_out("a")
    assert draw(One(), 0, held_out=side).prompt == "a"
    with pytest.raises(UserError, match="50 draws gave no problem that is"):
        draw(One(), 0, held_out=not side)
    with pytest.raises(UserError, match="2 different .* prompts were asked for but the task gave only 1"):
        draw_many(One(), 2, 0, held_out=side)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ledger(levels=()), "levels are"),
        (lambda: Ledger(levels=(0,)), "levels are"),
        (lambda: Ledger(mirror=2.0), "mirror is 2.0"),
        (lambda: Ledger(languages=("norse",)), "languages are .* but can be latin and greek"),
        (lambda: Expressions(levels=(0,)), "levels are"),
        (lambda: Expressions(largest=40), "largest is 40"),
    ],
)
def test_tasks_that_cannot_be_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_words_are_single_tokens_and_texts_come_back():
    tokenizer = vocabulary()
    problem = Ledger(languages=("greek",)).sample(np.random.default_rng(0))
    text = problem.prompt + problem.chain
    ids = tokenizer.encode(text, special=True)
    assert len(ids) == len(text.split()) and tokenizer.decode(ids, special=True) == text


def test_added_words_leave_general_text_alone(tmp_path):
    plain = Tokenizer.train(["a 20 b + 4 is said"] * 3, 300)
    tokenizer = with_words(plain)
    text = " a 20 b <think> 3 </think>"
    assert tokenizer.encode(text) == plain.encode(text)
    assert min(tokenizer.encode(" a 20", special=True)) >= plain.vocab_size
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert again.encode(text, special=True) == tokenizer.encode(text, special=True)
    assert again.end_id == plain.end_id and again.sha256 == tokenizer.sha256
