"""The stages of DeepSeek-R1 (section 2.3), R1-Zero before them and students after, in order.

base --------- R1-Zero                                     reinforcement on the base itself
base -- cold -- policy -- chains                           few clean chains; reinforcement; rejection
base -- blend (chains and text) -- final                   fine-tuning anew; reinforcement with taste
blend -- lessons --> students                              beside reinforcement of the same small base

With the teacher of another road there are students only.
"""

from collections.abc import Iterator

from posttrain.r1 import works
from posttrain.r1.report import write_report
from posttrain.r1.road import Stage, travel
from posttrain.r1.seeds import over_seeds
from posttrain.r1.settings import Road
from posttrain.rewards import LANGUAGE
from train.progress import Display

LIST = ("list",)


def go(road: Road, display: Display) -> None:
    """The whole road, or what `road.stages` names of it, with a report behind each stage."""
    found = stages(road)
    if road.stages == LIST:
        for stage in found:
            behind = f" (from {', '.join(stage.needs)})" if stage.needs else ""
            display.say(f"{stage.name:<18}{stage.title}{behind}")
        return
    if road.seeds:
        for line in over_seeds(road, stages, display):
            display.say(line)
        return
    results = travel(road, found, display, after=write_report)
    display.say(f"look at {write_report(road.out, results)}")


def stages(road: Road) -> list[Stage]:
    """All stages of a road, each behind what it needs."""
    first = to_the_model(road) if road.teacher is None else ()
    return [*first, *(stage for size in road.students for stage in of_a_student(road, size))]


def to_the_model(road: Road) -> Iterator[Stage]:
    """From random weights to the model that will teach."""
    several = len(road.languages) > 1
    yield Stage(
        "base",
        "the base, on text and the task",
        "It can think, and seldom does.",
        (),
        works.base_of(road.hidden_size, road.base_steps),
        seconds=0.1 * road.base_steps,
    )
    yield Stage(
        "zero",
        "R1-Zero, reinforcement of the base itself",
        "Thinking spreads by itself, for it is rewarded by right answers alone.",
        ("base",),
        works.reinforced("base", road.zero_steps),
        seconds=0.3 * road.zero_steps,
    )
    if several:
        yield Stage(
            "zero-language",
            "R1-Zero with a reward for one notation",
            "Chains stop to mix notations; what that costs.",
            ("base",),
            works.reinforced("base", road.zero_steps, (LANGUAGE,)),
            seconds=0.3 * road.zero_steps,
        )
    yield Stage(
        "cold",
        "1. cold start",
        "A few clean chains show the base how to answer.",
        ("base",),
        works.cold,
        seconds=0.06 * road.cold_steps,
    )
    yield Stage(
        "policy",
        "2. reinforcement of the cold start",
        "The same rules, from a better beginning.",
        ("cold",),
        works.reinforced("cold", road.policy_steps, (LANGUAGE,) if several else ()),
        seconds=0.3 * road.policy_steps,
    )
    yield Stage(
        "chains",
        "3. rejection sampling",
        "Of many completions the right ones become lessons.",
        ("policy",),
        works.harvested("policy", road.harvest, 4),
        speaks=False,
        seconds=0.004 * road.harvest,
    )
    yield Stage(
        "blend",
        "4. the base on chains and general text",
        "Reasoning is learnt anew, and the language stays.",
        ("base", "chains"),
        works.tuned("base", text_rows=works.TEXT_ROWS),
        seconds=0.1 * road.blend_steps,
    )
    yield Stage(
        "no-text",
        "the same without general text",
        "What the text was good for.",
        ("base", "chains"),
        works.tuned("base", text_rows=0),
        seconds=0.06 * road.blend_steps,
    )
    yield Stage(
        "preference",
        "a preference for real text",
        "A copy of the base learns to tell real text from its own.",
        ("base",),
        works.preferred,
        speaks=False,
        seconds=0.15 * road.preference_steps + 0.002 * road.pairs,
    )
    yield Stage(
        "final",
        "5. reinforcement with rules and the preference",
        "Problems are judged by rules and text by taste, in one batch.",
        ("blend", "preference"),
        works.final,
        seconds=0.4 * road.final_steps,
    )
    if road.students:
        yield Stage(
            "lessons",
            "chains for the students",
            "The model writes what smaller ones will learn from.",
            ("blend",),
            works.harvested("blend", 4 * road.harvest, 1),
            speaks=False,
            seconds=0.004 * road.harvest,
        )


def of_a_student(road: Road, size: int) -> Iterator[Stage]:
    """A smaller base, and three ways to make it reason."""
    name = f"student-{size}"
    lessons = ("lessons", "blend") if road.teacher is None else ()
    yield Stage(
        name,
        f"student {size}: its base",
        "A smaller network, trained as the base was.",
        (),
        works.base_of(size, road.student_steps, number=size),
        seconds=0.08 * road.student_steps,
    )
    yield Stage(
        f"{name}-rl",
        f"student {size}: reinforcement",
        "What R1-Zero's way gives a small network.",
        (name,),
        works.reinforced(name, road.student_rl_steps),
        seconds=0.3 * road.student_rl_steps,
    )
    yield Stage(
        f"{name}-sft",
        f"student {size}: the teacher's chains",
        "Fine-tuned on what the large network wrote.",
        (name, *lessons[:1]),
        works.taught(name),
        seconds=0.08 * road.distil_steps,
    )
    yield Stage(
        f"{name}-logits",
        f"student {size}: the teacher's logits",
        "The same chains, with the teacher's doubts.",
        (name, *lessons),
        works.taught(name, logits=True),
        seconds=0.1 * road.distil_steps,
    )
