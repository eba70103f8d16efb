"""Timelines as charts: a row for each rank, a cell for each step, SVG text that any browser shows.

The colours say what a step does, the shade in which direction its micro-batch travels: light towards the last
rank, deep towards the first. Where two passes run interleaved the cell is cut along its middle, the pass
forward above. What is left grey is the bubble.
"""

import math
from collections.abc import Iterator, Mapping
from html import escape

from train.pipeline.messages import homes
from train.pipeline.steps import B, F, I, Schedule, Step, W
from train.pipeline.timeline import Timeline

COLOURS = {  # light and deep
    F: ("#fbd38d", "#c2700f"),
    B: ("#9ae6b4", "#2f855a"),
    I: ("#8fe3dc", "#1f7f7a"),
    W: ("#b9cdfb", "#4c5fc4"),
}
WORDS = {F: "forward", B: "backward", I: "backward, inputs", W: "backward, weights"}
INK = ("#1a202c", "#ffffff")  # of the numbers on light and on deep cells
LEFT, WIDTH, ROW, GAP = 64, 1136, 24, 3  # pixels
FONT = "font-family='Helvetica,Arial,sans-serif'"
STYLE = "".join(
    f".p{kind}{direction}{{fill:{shade};stroke:#fff;stroke-width:.6}}"
    for kind, shades in COLOURS.items()
    for direction, shade in enumerate(shades)
) + (
    f".pFB{{fill:none;stroke:{INK[0]};stroke-width:.9}}"
    f".pn0{{fill:{INK[0]};text-anchor:middle}}.pn1{{fill:{INK[1]};text-anchor:middle}}"
)


def chart(timelines: Mapping[str, Timeline]) -> str:
    """One panel for each timeline, named by its key, all on the same axis of time."""
    longest = max(timeline.length for timeline in timelines.values())
    scale = WIDTH / longest if longest else 1.0
    pieces: list[str] = []
    top = 46
    for name, timeline in timelines.items():
        pieces += panel(name, timeline, top, scale)
        top += 26 + len(timeline.schedule) * ROW + 12
    pieces += axis(longest, top, scale)
    size = f"viewBox='0 0 {LEFT + WIDTH + 16} {top + 30}'"
    label = escape(
        "; ".join(f"{name}: {summary(timeline)}" for name, timeline in timelines.items()), quote=True
    )
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img' aria-label='{label}' {FONT}>"
    return "\n".join(
        [
            head,
            f"<style>{STYLE}</style>",
            "<rect width='100%' height='100%' fill='#fff'/>",
            *legend(),
            *pieces,
            "</svg>\n",
        ]
    )


def summary(timeline: Timeline) -> str:
    """Length, bubble and memory in a line."""
    share = timeline.bubble / timeline.length if timeline.length else 0.0
    return (
        f"length {timeline.length:.6g}, bubble {timeline.bubble:.6g} ({share:.1%}), "
        f"at most {max(timeline.peak_memory)} inputs alive on a rank"
    )


def panel(name: str, timeline: Timeline, top: float, scale: float) -> Iterator[str]:
    """The rows of one timeline, with its name and what it comes to."""
    yield f"<text x='{LEFT}' y='{top + 14}' font-size='13' fill='{INK[0]}'><tspan font-weight='bold'>"
    yield f"{escape(name)}</tspan>  {summary(timeline)}</text>"
    begin = min(map(min, timeline.starts))
    turned = directions(timeline.schedule)
    for rank in range(len(timeline.schedule)):
        y = top + 22 + rank * ROW
        yield f"<text x='{LEFT - 8}' y='{y + 15}' font-size='11' text-anchor='end'>rank {rank}</text>"
        width = timeline.length * scale
        yield f"<rect x='{LEFT}' y='{y}' width='{width:.2f}' height='{ROW - GAP}' fill='#e8ebf0'/>"
    for rank, step, start, end in timeline.spans:
        x, y = LEFT + (start - begin) * scale, top + 22 + rank * ROW
        height = (ROW - GAP) / len(step.parts)
        group = f"<g><title>{step}, {start:.6g} to {end:.6g}</title>"
        for number, part in enumerate(step.parts):
            direction = turned[part.stage, part.microbatch]
            group += cell(part, direction, x, y + number * height, (end - start) * scale, height)
        if len(step.parts) > 1:
            size = f"width='{(end - start) * scale:.2f}' height='{ROW - GAP}'"
            group += f"<rect class='pFB' x='{x:.2f}' y='{y:g}' {size}/>"
        yield group + "</g>"


def cell(part: Step, direction: int, x: float, y: float, width: float, height: float) -> str:
    """One pass, with the number of its micro-batch where there is room for it."""
    box = f"x='{x:.2f}' y='{y:g}' width='{width:.2f}' height='{height:g}'"
    drawn = f"<rect class='p{part.kind}{direction}' {box}/>"
    size = min(10.5, height - 1, (width - 1) / (0.58 * len(str(part.microbatch))))
    if size < 6:
        return drawn
    place = f"x='{x + width / 2:.1f}' y='{y + height / 2 + 0.36 * size:.1f}' font-size='{size:.3g}'"
    return drawn + f"<text class='pn{direction}' {place}>{part.microbatch}</text>"


def directions(schedule: Schedule) -> dict[tuple[int, int], int]:
    """(stage, micro-batch) -> 0 if it is on its way towards the last rank, 1 if towards the first."""
    where = homes(schedule)
    turned: dict[tuple[int, int], int] = {}
    for stage, microbatch in sorted(where):
        here = where[stage, microbatch]
        after = where.get((stage + 1, microbatch), here)
        before = where.get((stage - 1, microbatch), here)
        turned[stage, microbatch] = int(after < here or (after == here and before > here))
    return turned


def legend() -> Iterator[str]:
    """What the colours mean, at the top."""
    x = float(LEFT)
    for kind, word in WORDS.items():
        for colour in COLOURS[kind]:
            yield f"<rect x='{x}' y='12' width='14' height='14' fill='{colour}'/>"
            x += 15
        yield f"<text x='{x + 4}' y='23' font-size='12'>{kind}: {word}</text>"
        x += 30 + 6.4 * len(f"{kind}: {word}")
    for y, kind, direction in ((12, F, 0), (19, B, 1)):
        yield f"<rect x='{x}' y='{y}' width='28' height='7' fill='{COLOURS[kind][direction]}'/>"
    yield f"<rect x='{x}' y='12' width='28' height='14' fill='none' stroke='{INK[0]}'/>"
    yield f"<text x='{x + 34}' y='23' font-size='12'>F&amp;B interleaved</text>"
    yield f"<text x='{x + 152}' y='23' font-size='12'>light: towards the last rank, deep: the first</text>"


def axis(longest: float, top: float, scale: float) -> Iterator[str]:
    """Time, at most ten marks at round numbers."""
    power = 10.0 ** math.floor(math.log10(longest or 1.0)) / 10
    step = next(power * times for times in (1, 2, 5, 10) if longest <= 10 * power * times)
    yield f"<line x1='{LEFT}' y1='{top}' x2='{LEFT + WIDTH}' y2='{top}' stroke='#4a5568'/>"
    for mark in range(int(longest / step + 1e-9) + 1):
        x = LEFT + mark * step * scale
        yield f"<line x1='{x:.1f}' y1='{top}' x2='{x:.1f}' y2='{top + 4}' stroke='#4a5568'/>"
        yield f"<text x='{x:.1f}' y='{top + 17}' font-size='11' text-anchor='middle'>{mark * step:.4g}</text>"
