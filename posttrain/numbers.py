"""Reading an exact number out of an answer: a short grammar, no evaluation, no floats."""

from fractions import Fraction

LONGEST = 64  # characters; a longer text is no number that anybody asked for


def exact_number(text: str) -> Fraction | None:
    """The number that `text` is: digits, with a sign, one decimal point or one stroke; else None.

    `12`, `-0.75`, `7/2`, `- 7 / 2`; spaces may stand around the sign and the stroke. No exponents, no other
    bases, no digits but 0 to 9, no sums: `1e9`, `0x16`, `٣`, `1/0` and `3 + 4` are None.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return None
    sign = -1 if text.startswith("-") else 1
    if text.startswith(("-", "+")):
        text = text[1:].lstrip()
    if "/" in text:
        above, _, below = text.partition("/")
        numerator, denominator = digits(above.rstrip()), digits(below.lstrip())
        if numerator is None or not denominator:
            return None
        return Fraction(sign * numerator, denominator)
    whole, point, part = text.partition(".")
    if digits(whole) is None or (point and digits(part) is None):
        return None
    return sign * Fraction(int(whole + part), 10 ** len(part))


def digits(text: str) -> int | None:
    """The whole number of a row of the digits 0 to 9, else None."""
    return int(text) if text.isascii() and text.isdigit() else None
