"""The tape of a step as a graph: a drawing for each module, one inside the other."""

import html
import math
import re
from collections import defaultdict
from typing import NamedTuple

from lab.pieces import bytes_text, milliseconds, shape_text
from lab.recording import Call

BOX, TALL, GAP, STEP = 168, 38, 14, 62  # pixels: width and height of a box, between columns, between rows


class Item(NamedTuple):
    """A box: one call, or a module with all calls below it."""

    key: str
    label: str
    calls: list[Call]
    module: bool


def module_graph(calls: list[Call]) -> str:
    """The whole step as HTML: a drawing, and a `<details>` for every module, with its inside drawn."""
    return level("", calls, total_seconds(calls))


def total_seconds(calls: list[Call]) -> float:
    """Forward and backward together."""
    return sum(call.forward + (call.backward or 0.0) for call in calls)


def level(path: str, calls: list[Call], whole: float) -> str:
    """A drawing of the module at `path`, and its parts below it."""
    items = inside(path, calls)
    parts = [drawing(items, whole)]
    for item in items:
        if item.module:
            name = f"{path}.{item.label}" if path else item.label
            summary = (
                f"{html.escape(item.label)} <span class=quiet>{len(item.calls)} calls, "
                f"{milliseconds(total_seconds(item.calls))} ms, "
                f"{bytes_text(sum(call.saved_bytes for call in item.calls))} saved</span>"
            )
            inner = level(name, item.calls, whole)
            parts.append(f'<details id="{identifier(name)}"><summary>{summary}</summary>{inner}</details>')
    return "\n".join(parts)


def identifier(path: str) -> str:
    """The id of a module's details in the page."""
    return "module-" + path.replace(".", "-")


def step_into(path: str, module: str) -> str:
    """The first part of `module` below `path`: "layers.0" of layers.0.self_attn below ""; "" if none."""
    rest = module[len(path) :].lstrip(".") if module.startswith(path) else ""
    match = re.match(r"[A-Za-z_]\w*(?:\.\d+)?", rest)
    return match.group() if match else ""


def inside(path: str, calls: list[Call]) -> list[Item]:
    """The boxes of one drawing, in the order of their first call."""
    below: dict[str, list[Call]] = defaultdict(list)
    order: list[str] = []
    for call in calls:
        key = step_into(path, call.module) or str(call.number)
        if key not in below:
            order.append(key)
        below[key].append(call)
    return [
        Item(key, below[key][0].name if key.isdigit() else key, below[key], not key.isdigit())
        for key in order
    ]


def rows_of(items: list[Item]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The row of each box, below all that it uses, and the lines between boxes.

    A module that runs twice may use what uses it; such a line back is drawn but moves nothing.
    """
    owner = {call.number: item.key for item in items for call in item.calls}
    place = {item.key: number for number, item in enumerate(items)}
    rows: dict[str, int] = {}
    lines: list[tuple[str, str]] = []
    for item in items:
        sources = {owner[s] for call in item.calls for s in call.sources if s in owner} - {item.key}
        lines += [(source, item.key) for source in sorted(sources)]
        earlier = [rows[source] for source in sources if place[source] < place[item.key]]
        rows[item.key] = max(earlier, default=-1) + 1
    return rows, lines


def drawing(items: list[Item], whole: float) -> str:
    """One drawing as SVG."""
    rows, lines = rows_of(items)
    columns: dict[int, int] = defaultdict(int)
    corner: dict[str, tuple[int, int]] = {}
    for item in items:
        row = rows[item.key]
        corner[item.key] = (columns[row] * (BOX + GAP) + GAP // 2, row * STEP + 8)
        columns[row] += 1
    width = max(columns.values(), default=1) * (BOX + GAP)
    height = (max(rows.values(), default=0) + 1) * STEP
    drawn = [edge(corner[a], corner[b]) for a, b in lines]
    drawn += [box(item, corner[item.key], whole) for item in items]
    return (
        f'<div class="scroll"><svg class="graph" role="img" aria-label="calls and how they are connected" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" style="max-width:none" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(drawn)}</svg></div>'
    )


def edge(source: tuple[int, int], target: tuple[int, int]) -> str:
    """A line from the bottom of one box to the top of another."""
    x, y = source[0] + BOX // 2, source[1] + TALL
    u, v = target[0] + BOX // 2, target[1]
    bend = max(12, abs(v - y) // 2)
    return f'<path d="M{x} {y}C{x} {y + bend} {u} {v - bend} {u} {v}" fill="none" stroke="#a0aec0"/>'


def box(item: Item, corner: tuple[int, int], whole: float) -> str:
    """A call or a module. Its blue is deeper the more time it takes."""
    x, y = corner
    share = total_seconds(item.calls) / whole if whole else 0.0
    depth = min(1.0, math.sqrt(share))
    fill = f"rgb({255 - round(90 * depth)},{255 - round(60 * depth)},255)"
    saved = sum(call.saved_bytes for call in item.calls)
    under = f"{milliseconds(total_seconds(item.calls))} ms, {bytes_text(saved)}"
    edge_width = 2 if item.module else 1
    text = (
        f'<g><title>{html.escape(details(item))}</title><rect x="{x}" y="{y}" width="{BOX}" height="{TALL}" '
        f'rx="5" fill="{fill}" stroke="#4a5568" stroke-width="{edge_width}"/>'
        f'<text x="{x + BOX / 2}" y="{y + 16}" text-anchor="middle" font-weight="600">'
        f"{html.escape(item.label)}</text>"
        f'<text x="{x + BOX / 2}" y="{y + 30}" text-anchor="middle" fill="#4a5568">{under}</text></g>'
    )
    return text


def details(item: Item) -> str:
    """What the box says when it is touched."""
    if item.module:
        return f"{item.label}: {len(item.calls)} calls"
    call = item.calls[0]
    lines = [
        f"{call.name}{' (fused)' if call.fused else ''} at {call.site or 'the loss'}",
        f"{shape_text(call.inputs)} → {shape_text(call.outputs)}",
        f"saves {bytes_text(call.saved_bytes)}; forward {milliseconds(call.forward)} ms",
    ]
    if call.backward is not None and call.arriving is not None:
        leaving = ", ".join("-" if each is None else f"{each:.2e}" for each in call.leaving)
        lines.append(f"backward {milliseconds(call.backward)} ms; gradient arriving {call.arriving:.2e}")
        lines.append(f"leaving {leaving}")
    if call.parameters:
        lines.append(f"parameters: {', '.join(call.parameters)}")
    return "\n".join(lines)
