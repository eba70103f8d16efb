"""Rejection sampling and evaluation, on completions whose worth is known."""

from collections import Counter

import numpy as np
import pytest

from posttrain import evaluation, rejection
from posttrain.completion import Completion
from posttrain.evaluation import evaluate, is_mixed
from posttrain.ledger import Ledger
from posttrain.rejection import Chain, keep, load_chains, reject, save_chains
from posttrain.rollout import Sample
from posttrain.tasks import Question, is_held_out
from tests.posttrain.small import network, vocabulary
from train.errors import UserError

QUESTION = Question(" a 20 =", "20", 3, "latin")
RIGHT = " <think> b 20 </think> <answer> 20 </answer>"
OTHER = " <think> c 20 </think> <answer> 20 </answer>"
THIRD = " <think> d 20 </think> <answer> 20 </answer>"


def kept(*texts, cap=2):
    refused = Counter()
    said = [Completion(text) for text in texts]
    right = ["20 </answer>" in text for text in texts]
    return [chain.completion for chain in keep(QUESTION, said, right, cap, refused)], dict(refused)


def test_only_right_well_formed_clean_and_new_chains_are_kept():
    mixed = " <think> β XX </think> <answer> 20 </answer>"
    chains, refused = kept(
        RIGHT, " <answer> 20 </answer>", RIGHT, mixed, OTHER, THIRD, RIGHT.replace("20 </a", "21 </a")
    )
    assert chains == [RIGHT, OTHER]
    assert refused == {
        "without a thought in the one shape": 1,
        "said before": 1,
        "in mixed notation": 1,
        "above 2 of a prompt": 1,
        "wrong": 1,
    }
    assert kept(OTHER, RIGHT, RIGHT, cap=1)[0] == [OTHER]


def test_chains_are_written_and_read(tmp_path):
    chains = [Chain(" α XX =", RIGHT, 3), Chain(" b", "", 0)]
    save_chains(tmp_path / "chains.jsonl", chains)
    assert load_chains(tmp_path / "chains.jsonl") == chains
    (tmp_path / "own.jsonl").write_text('{"prompt": "x", "completion": "y"}\n\n')
    assert load_chains(tmp_path / "own.jsonl") == [Chain("x", "y", 0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no chain"),
        ("nonsense", "line 1 of .* is not like"),
        ('{"prompt": "x", "completion": "y"}\n{"prompt": "x"}', "line 2 of"),
        ('{"prompt": "", "completion": "y"}', "line 1 .* the prompt not empty"),
        ('{"prompt": 1, "completion": "y"}', "must be texts"),
        ("[1]", "line 1 of"),
    ],
)
def test_damaged_chains_are_told_by_their_line(tmp_path, text, words):
    (tmp_path / "chains.jsonl").write_text(text)
    with pytest.raises(UserError, match=words):
        load_chains(tmp_path / "chains.jsonl")


class Knows:
    """Stands in for rollout: says the right chain to the first `right` of the samples of a prompt."""

    def __init__(self, right: int, problems: dict[str, Question]) -> None:
        self.right, self.problems, self.calls = right, problems, []

    def __call__(self, model, prompts, *, end_id, samples, temperature, **options):
        tokenizer = vocabulary()
        found = []
        self.calls.append((temperature, options["first_sequence"], len(prompts)))
        for prompt in prompts:
            problem = self.problems[tokenizer.decode(prompt, special=True)]
            for i in range(samples):
                text = problem.chain if i < self.right else " <answer> a </answer>"
                ids = np.array([*tokenizer.encode(text, special=True), end_id])
                found.append(Sample(np.array(prompt), ids, np.zeros(len(ids)), np.zeros(len(ids)), True, {}))
        return found


@pytest.fixture
def knowing(monkeypatch):
    def know(right):
        seen: dict[str, Question] = {}
        sample = Ledger.sample

        def remembering(self, rng):
            problem = sample(self, rng)
            seen[problem.prompt] = problem
            return problem

        knows = Knows(right, seen)
        monkeypatch.setattr(Ledger, "sample", remembering)
        monkeypatch.setattr(evaluation, "rollout", knows)
        monkeypatch.setattr(rejection, "rollout", knows)
        return knows

    return know


def test_evaluation_gives_every_figure_with_its_error(knowing):
    knows = knowing(2)
    found = evaluate(network(), vocabulary(), Ledger(), prompts=20, samples=8)
    assert found.pass_1[:2] == (0.25, 0.0) and found.pass_1.n == 20
    assert found.greedy.value == 1.0 and found.pass_k.value == 1.0 and found.k == 8
    assert found.cons_k.value == 0.0  # six of eight say something else
    assert found.think_rate.value == 0.25 == found.format_rate.value
    assert set(found.by_level) <= {3, 4, 5, 6}
    assert sum(figure.n for figure in found.by_level.values()) == 20
    assert all(is_held_out(each.problem.prompt) for each in found.judged)
    lengths = [np.mean(each.lengths) for each in found.judged]
    assert found.length.value == pytest.approx(np.mean(lengths)) and found.length.error > 0
    assert {call[0] for call in knows.calls} == {0.0, 1.0}
    text = "\n".join(found.lines())
    assert "pass@8" in text and "±" in text and "(n=20)" in text
    assert found.to_dict()["pass_1"] == {"value": 0.25, "error": 0.0, "n": 20}


def test_models_are_judged_on_the_same_prompts_in_any_portions(knowing, monkeypatch):
    knowing(1)
    first = evaluate(network(), vocabulary(), Ledger(), prompts=6, samples=2)
    monkeypatch.setattr(evaluation, "ROWS", 4)
    again = evaluate(network(seed=1), vocabulary(), Ledger(), prompts=6, samples=2)
    assert [a.problem.prompt for a in first.judged] == [b.problem.prompt for b in again.judged]
    assert first.judged == again.judged


def test_rejection_reports_what_it_kept(knowing):
    knowing(3)
    harvest = reject(network(), vocabulary(), Ledger(), prompts=10, samples=4, cap=2)
    assert len(harvest.chains) == 10  # the three right ones of a prompt are the same
    assert harvest.refused == {"said before": 20, "wrong": 10} and harvest.sampled == 40
    assert sum(harvest.levels.values()) == 10 and not any(is_held_out(c.prompt) for c in harvest.chains)
    assert harvest.lines()[0].startswith("kept 10 of 40 completions (20 said before, 10 wrong")


def test_nothing_kept_is_told(knowing):
    knowing(0)
    with pytest.raises(UserError, match=r"none of 8 completions could be kept \(8 wrong\)"):
        reject(network(), vocabulary(), Ledger(), prompts=4, samples=2)


def test_mixed_notation_is_any_word_of_another():
    assert not is_mixed(QUESTION, RIGHT) and is_mixed(QUESTION, RIGHT.replace("b", "β"))
    assert not is_mixed(QUESTION, " and other words")
    of_a_file = Question(" what =", "1", 0, "")  # in no notation
    assert not is_mixed(of_a_file, " a 1") and is_mixed(of_a_file, " a β")


def test_an_error_needs_more_than_one_prompt():
    with pytest.raises(UserError, match="prompts is 1"):
        evaluate(network(), vocabulary(), Ledger(), prompts=1)
