"""Formulas as docstrings have them, in plain letters: made readable in a terminal and drawn for a page.

    dL/dx_j = r (h_j - x_hat_j * mean_i(h_i x_hat_i))        ->   ∂L/∂xⱼ = r (hⱼ - x̂ⱼ · meanᵢ(hᵢ x̂ᵢ))

`pieces` tells formulas from prose, `readable` writes one with Unicode letters, `svg` draws it through
matplotlib's mathtext as a path, so that a page needs no font and no other file.
"""

import html
import re
from functools import lru_cache
from typing import NamedTuple

GREEK = {"sigma": "σ", "pi": "π", "lambda": "λ", "theta": "θ", "alpha": "α", "beta": "β", "gamma": "γ"}
SUBSCRIPTS = dict(zip("aehijklmnoprstuvx0123456789+-", "ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ₀₁₂₃₄₅₆₇₈₉₊₋"))
SUPERSCRIPTS = dict(
    zip("abcdefghijklmnoprstuvwxyzT0123456789+-/()", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᵀ⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᐟ⁽⁾")
)
SIGNS = {
    "->": (r"\to", "→"),
    "<=": (r"\leq", "≤"),
    ">=": (r"\geq", "≥"),
    "..": (r"\ldots", "…"),
    "*": (r"\cdot", "·"),
}
# Words that belong to a formula when they stand beside one.
WORDS = {
    *GREEK,
    *("sum", "exp", "log", "ln", "mean", "max", "min", "softmax", "tanh", "sign", "silu", "cos", "sin"),
    *("scale", "up", "gate", "weight", "rows", "eps", "ddof", "inf", "lse", "rowsum"),
}
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<slope>(?<![A-Za-z0-9_^])d[A-Za-z]\w*/d[A-Za-z]\w*)"
    r"|(?P<name>[A-Za-z][A-Za-z]*(?:_[A-Za-z0-9]+)*'*)"
    r"|(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"|(?P<power>\^)"
    r"|(?P<sign>->|<=|>=|\.\.+|.)"
)


class Piece(NamedTuple):
    """A stretch of a line: prose, or a formula."""

    text: str
    formula: bool


def pieces(line: str) -> list[Piece]:
    """The formulas of a line and the prose between them. Put together they are the line again."""
    words = re.findall(r"\s+|[^\s]+", line)
    kinds = [formula_part(word) for word in words]
    found: list[Piece] = []
    run: list[str] = []

    def close() -> None:
        text = "".join(run)
        run.clear()
        body = text.rstrip()
        tail = text[len(body) :]
        if not body:
            found.append(Piece(text, False))
            return
        stop = re.search(r"[,.;:]*$", body)
        cut = stop.start() if stop else len(body)
        core = body[:cut]
        if core.count("(") != core.count(")") or core.count("[") != core.count("]") or not telling(core):
            found.append(Piece(text, False))
        else:
            found.append(Piece(core, True))
            found.append(Piece(body[cut:] + tail, False))

    for word, kind in zip(words, kinds):
        blank = word.isspace()
        if kind or (blank and run and len(word) <= 2):
            run.append(word)
            if (
                not blank
                and re.search(r"[,;:]$", word)
                and balanced(run)
                or word.endswith(".")
                and len(word) > 1
            ):
                close()
        else:
            if run:
                close()
            found.append(Piece(word, False))
    if run:
        close()
    return merged(found)


def merged(found: list[Piece]) -> list[Piece]:
    """Neighbouring stretches of prose as one."""
    kept: list[Piece] = []
    for piece in found:
        if kept and not piece.formula and not kept[-1].formula:
            kept[-1] = Piece(kept[-1].text + piece.text, False)
        elif piece.text:
            kept.append(piece)
    return kept


def balanced(run: list[str]) -> bool:
    """Whether all brackets are closed."""
    text = "".join(run)
    return text.count("(") == text.count(")") and text.count("[") == text.count("]")


def formula_part(word: str) -> bool:
    """Whether a word may be part of a formula."""
    bare = word.strip("(),.;:[]|'")
    if "`" in word or "://" in word or '"' in word:
        return False
    if re.fullmatch(r"[=+\-*/<>.]+|->|<=|>=", word.strip(",;")) or re.fullmatch(r"[-+]?\d[\d.]*", bare):
        return True
    if re.search(r"\.py$|^[A-Za-z]{4,}[_./]|[A-Za-z]{4,}_[a-z]{3,}", bare) and "=" not in word:
        return bare.split("_")[0].split("[")[0] in WORDS
    if re.fullmatch(r"[A-Za-z]{2,}'?", bare):
        return bare.rstrip("'") in WORDS or bool(re.fullmatch(r"d[A-Z]", bare))
    if re.fullmatch(r"[A-Za-z]", bare):
        return True
    return bool(re.search(r"[_^/\[\]()=|]|\d", word)) and not re.search(r"[A-Za-z]{9,}-", word)


def telling(text: str) -> bool:
    """Whether a stretch says enough to be a formula: not `a`, `n, k`, `(d,)` or a year."""
    shaped = re.search(r"[=^]|d\w/d\w|\w_hat|[A-Za-z]_\w{1,2}(?!\w)", text)
    return bool(shaped) and bool(re.search(r"[A-Za-z]", text))


def readable(text: str) -> str:
    """A formula in Unicode letters."""
    out, position = [], 0
    while position < len(text):
        token = TOKEN.match(text, position)
        assert token is not None  # the last alternative takes any character
        kind, word = token.lastgroup, token.group()
        position = token.end()
        if kind == "slope":
            over, under = word.split("/")
            out.append(f"∂{readable(over[1:])}/∂{readable(under[1:])}")
        elif kind == "name":
            out.append(readable_name(word))
        elif kind == "power":
            raised, position = exponent(text, position)
            if all(letter in SUPERSCRIPTS for letter in raised):
                out.append("".join(SUPERSCRIPTS[letter] for letter in raised))
            else:
                inner = readable(raised)
                out.append(f"^{inner}" if re.fullmatch(r"\w+", raised) else f"^({inner})")
        else:
            out.append(SIGNS[word][1] if word in SIGNS else word)
    return "".join(out)


def readable_name(word: str) -> str:
    """A name with its subscript."""
    base, subscript = split_name(word)
    letter = "Σ" if base == "sum" else GREEK.get(base, base)
    if base.endswith("_hat"):
        letter = f"{base[0]}\u0302"
    if subscript and all(part in SUBSCRIPTS for part in subscript):
        return letter + "".join(SUBSCRIPTS[part] for part in subscript)
    return f"{letter}_{subscript}" if subscript else letter


def split_name(word: str) -> tuple[str, str]:
    """(base, subscript): x_hat_i is x_hat with i."""
    prime = word[len(word.rstrip("'")) :]
    word = word.rstrip("'")
    if (hat := re.match(r"([A-Za-z])_hat(?:_(\w+))?$", word)) is not None:
        return f"{hat[1]}_hat", hat[2] or ""
    base, _, subscript = word.partition("_")
    return base + prime, subscript


def exponent(text: str, position: int) -> tuple[str, int]:
    """What is raised after a `^`, without its brackets, and where the text goes on."""
    if text[position : position + 1] == "(":
        depth = 0
        for end in range(position, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if not depth:
                return text[position + 1 : end], end + 1
    match = re.compile(r"-?[A-Za-z0-9]+(?:_[A-Za-z0-9]+)?").match(text, position)
    return (match.group(), match.end()) if match else ("", position)


def mathtext(text: str) -> str:
    """A formula in the language of matplotlib's mathtext, without the dollars."""
    out, position = [], 0
    while position < len(text):
        token = TOKEN.match(text, position)
        assert token is not None
        kind, word = token.lastgroup, token.group()
        position = token.end()
        if kind == "space":
            out.append(r"\ " if len(word) == 1 else r"\quad ")
        elif kind == "slope":
            over, under = word.split("/")
            out.append(rf"\dfrac{{\partial {mathtext(over[1:])}}}{{\partial {mathtext(under[1:])}}}")
        elif kind == "name":
            out.append(mathtext_name(word))
        elif kind == "power":
            raised, position = exponent(text, position)
            out.append(f"^{{{mathtext(raised)}}}")
        elif word in SIGNS:
            out.append(f"{SIGNS[word][0]} ")
        elif word in "%#$&{}":
            out.append(f"\\{word}")
        elif word == "." and text[position : position + 1] in (" ", ""):
            out.append(r"\cdot ")
        else:
            out.append("|" if word == "|" else word)
    return "".join(out)


def mathtext_name(word: str) -> str:
    """A name with its subscript: one letter is italic, a word upright."""
    base, subscript = split_name(word)
    prime = base[len(base.rstrip("'")) :]
    base = base.rstrip("'")
    if base.endswith("_hat"):
        letter = rf"\hat{{{base[0]}}}"
    elif base == "sum":
        letter = r"\Sigma"
    elif base in GREEK:
        letter = rf"\{base} "
    elif len(base) == 1 or re.fullmatch(r"d[A-Za-z]", base):
        letter = base
    else:
        letter = rf"\mathrm{{{base}}}"
    return letter + prime + (f"_{{{subscript.replace('_', ',')}}}" if subscript else "")


@lru_cache(maxsize=4096)
def svg(text: str, size: float = 15.0) -> str:
    """A formula as an <svg> that stands on the line of the text around it. It needs no font.

    Raises ValueError for what mathtext cannot read.
    """
    from matplotlib.textpath import TextPath  # late: the grader's process does without matplotlib

    path = TextPath((0, 0), f"${mathtext(text)}$", size=size)
    if not len(path.vertices):
        raise ValueError(f"{text!r} has nothing to draw")
    (left, low), (right, high) = path.vertices.min(axis=0) - 1, path.vertices.max(axis=0) + 1
    commands, codes = [], {1: "M", 2: "L", 3: "Q", 4: "C"}
    for points, code in path.iter_segments(simplify=False):
        if code == 79:
            commands.append("Z")
        else:
            numbers = (f"{number:.1f}" for pair in points.reshape(-1, 2) for number in (pair[0], -pair[1]))
            commands.append(codes[int(code)] + " ".join(numbers))
    width, height = right - left, high - low
    return (
        f'<svg class="formula" role="img" aria-label="{html.escape(readable(text), quote=True)}" '
        f'width="{width:.1f}" height="{height:.1f}" style="vertical-align:{low:.1f}px" '
        f'viewBox="{left:.1f} {-high:.1f} {width:.1f} {height:.1f}">'
        f'<path fill="currentColor" d="{"".join(commands)}"/></svg>'
    )


def readable_text(text: str) -> str:
    """A docstring with its formulas in Unicode letters."""
    lines = text.splitlines()
    return "\n".join(
        "".join(readable(piece.text) if piece.formula else piece.text for piece in pieces(line))
        for line in lines
    )


def html_text(text: str) -> str:
    """A docstring as HTML: formulas drawn, indented lines as they stand, the others as paragraphs."""
    rows: list[str] = []
    flowing = False
    for line in text.splitlines():
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        inner = "".join(
            svg(piece.text) if piece.formula else html.escape(piece.text).replace("  ", "&ensp;")
            for piece in pieces(bare)
        )
        inner = re.sub(r"`([^`]+)`", r"<code>\1</code>", inner)
        if not bare:
            rows.append('<div class="gap"></div>')
        elif not indent and flowing:
            rows[-1] = f"{rows[-1].removesuffix('</div>')} {inner}</div>"
        else:
            rows.append(f'<div class="line" style="padding-left:{indent / 2:g}em">{inner}</div>')
        flowing = bool(bare) and not indent and not bare.endswith(":")
    return f'<div class="derivation">{"".join(rows)}</div>'
