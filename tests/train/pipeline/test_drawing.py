"""Charts and traces show every step where it is, and nothing else."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given

from tests.train.pipeline.test_checker import schedules
from train.pipeline import Times, schedule, simulate
from train.pipeline.drawing import COLOURS, LEFT, ROW, WIDTH, chart, directions
from train.pipeline.messages import homes
from train.pipeline.trace import chrome_trace

SVG = "{http://www.w3.org/2000/svg}"


def cells(text):
    """(tooltip, rectangles) of every step."""
    return [
        (group.find(f"{SVG}title").text, group.findall(f"{SVG}rect"))
        for group in ElementTree.fromstring(text).iter(f"{SVG}g")
    ]


@given(schedules(most_ranks=4, most_more=2))
def test_every_step_has_its_cell_at_its_place(steps):
    timeline = simulate(steps, Times(F=1, I=2, W=1.5))
    drawn = cells(chart({"a < b": timeline}))
    assert len(drawn) == len(timeline.spans)
    rows = {}
    for (title, boxes), (rank, step, start, end) in zip(drawn, timeline.spans):
        assert title == f"{step}, {start:g} to {end:g}"
        for part, box in zip(step.parts, boxes):
            assert float(box.get("x")) == pytest.approx(LEFT + start * WIDTH / timeline.length, abs=0.01)
            assert float(box.get("width")) == pytest.approx((end - start) * WIDTH / timeline.length, abs=0.01)
            assert box.get("class").startswith(f"p{part.kind}")
            assert 0 <= float(box.get("y")) - float(boxes[0].get("y")) < ROW
        rows.setdefault(rank, set()).add(boxes[0].get("y"))
    assert all(len(places) == 1 for places in rows.values()) and len(set.union(*rows.values())) == len(rows)


def test_the_two_directions_of_dualpipe_have_two_shades():
    made = schedule.dualpipe(4, 8)
    turned, where = directions(made), homes(made)
    assert turned == {(stage, m): int(where[0, m] == 3) for stage, m in where}
    text = chart({"": simulate(made)})
    for (title, boxes), (*_, step, _, _) in zip(cells(text), simulate(made).spans):
        shades = [f"p{part.kind}{turned[part.stage, part.microbatch]}" for part in step.parts]
        assert [box.get("class") for box in boxes[: len(shades)]] == shades, title
    assert all(
        f".p{kind}0{{fill:{light}" in text and light != deep for kind, (light, deep) in COLOURS.items()
    )


def test_the_v_goes_down_and_comes_back():
    turned = directions(schedule.dualpipe_v(3, 6))
    assert [turned[stage, 0] for stage in range(6)] == [0, 0, 0, 1, 1, 1]
    assert set(directions(schedule.zb1p(3, 6)).values()) == {0}


def test_the_chart_says_what_it_shows_and_marks_round_times():
    text = chart({"DualPipe": simulate(schedule.dualpipe(8, 20))})
    assert "length 66, bubble 6 (9.1%), at most 9 inputs alive on a rank" in text
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-label").startswith("DualPipe: length 66")
    marks = [node.text for node in root.iter(f"{SVG}text") if node.get("font-size") == "11"]
    assert marks[-7:] == ["0", "10", "20", "30", "40", "50", "60"]


def test_the_figure_of_the_page_is_what_the_code_draws():
    page = Path(__file__).parents[3] / "docs"
    assert "figures/dualpipe.svg" in (page / "schedules.md").read_text()
    drawn = {name: simulate(schedule.SCHEDULES[name](8, 20)) for name in ("one_f_one_b", "zb1p", "dualpipe")}
    assert (page / "figures" / "dualpipe.svg").read_text() == chart(drawn)


def test_panels_share_the_axis():
    long, short = simulate(schedule.gpipe(2, 4)), simulate(schedule.gpipe(2, 2))
    widths = [float(boxes[0].get("width")) for _, boxes in cells(chart({"long": long, "short": short}))]
    assert widths[0] == widths[16] == pytest.approx(WIDTH / long.length, abs=0.01)


@given(schedules(most_ranks=4, most_more=2))
def test_a_trace_has_every_step_and_both_ends_of_every_message(steps):
    timeline = simulate(steps, communication=0.5)
    events = json.loads(json.dumps(chrome_trace(timeline, unit=1e-3)))["traceEvents"]
    shown = [event for event in events if event["ph"] == "X"]
    assert [(event["tid"], event["name"]) for event in shown] == [
        (rank, str(step)) for rank, step, *_ in timeline.spans
    ]
    assert [event["ts"] + event["dur"] for event in shown] == pytest.approx(
        [1000 * span.end for span in timeline.spans]
    )
    sent = {event["id"]: event for event in events if event["ph"] == "s"}
    taken = {event["id"]: event for event in events if event["ph"] == "f"}
    assert sent.keys() == taken.keys()
    for number, event in sent.items():
        assert event["name"] == taken[number]["name"] and event["tid"] != taken[number]["tid"]
        assert event["ts"] + 500 <= taken[number]["ts"] + 1e-6
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == [f"rank {rank}" for rank in range(len(steps))]
