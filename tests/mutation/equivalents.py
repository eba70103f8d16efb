"""Mutants that no test can kill, because they compute the same: by name, with the reason.

A name is what `python -m tests.mutation` prints for a survivor; it holds no line number. A `*` at the end
stands for any rest.
"""

OPS = "tinygrad_ds/ops"
LAST = "the last axis of a matrix is axis 1"
OUT = f"{OPS}/experts.py:experts_out_backward_input"
EQUIVALENT: dict[str, str] = {
    f"{OPS}/activation.py:logistic: return xp.where(x >= 0, 1, e) / (1 + e)  ->  "
    "return xp.where(x > 0, 1, e) / (1 + e)": "at x = 0 both branches are 1, for e = e^0",
    f"{OPS}/elementwise.py:power_backward: grad_b = xp.where(a > 0, g * y * xp.log(xp.where(a > 0, a, 1)), 0)"
    "  ->  grad_b = xp.where(a > 0, g * y * xp.log(xp.where(a > 0, a, 2)), 0)": (
        "the inner constant stands only where the outer mask puts 0"
    ),
    f"{OPS}/elementwise.py:astype_backward: return (g.astype(saved.dtype, copy=False),)  ->  "
    "return (g.astype(saved.dtype, copy=True),)": "a copy has the same numbers",
    f"{OPS}/experts.py:experts_in_backward_input:   ->  x = 0 * x": "only shape and dtype of x are read",
    f"{OPS}/experts.py:experts_in_backward_weight:   ->  weight = 0 * weight": (
        "only shape and dtype of the weight are read"
    ),
    f"{OUT}: gate, up = xp.split(gate_up, 2, axis=-1)  ->  gate, up = xp.split(gate_up, 2, axis=1)": LAST,
    f"{OUT}: grad_weights = (u * gate * sigma * up).sum(axis=-1)[position]  ->  "
    "grad_weights = (u * gate * sigma * up).sum(axis=1)[position]": LAST,
    f"{OUT}: grad_gate_up = xp.concatenate([grad_gate, grad_h * gate * sigma], axis=-1)  ->  "
    "grad_gate_up = xp.concatenate([grad_gate, grad_h * gate * sigma], axis=1)": LAST,
    f"{OPS}/elementwise.py:_bound: return kind.type(bound) if isinstance(bound, int | float) and "
    "is_floating(kind) else bound  ->  return kind.type(bound) if isinstance(bound, float) and "
    "is_floating(kind) else bound": "NumPy keeps bfloat16 beside a whole number by itself",
    f'{OPS}/matmul.py:_contract: return namespace(arrays[0]).einsum(f"{",".join(terms)}->{result}", *arrays, '
    "optimize=True)  ->  return namespace(arrays[0]).einsum(f\"{','.join(terms)}->{result}\", *arrays, "
    "optimize=False)": "the order of the operands changes speed and last bits, not the sum",
}


def reason(name: str) -> str | None:
    """Why this mutant is equivalent, None if it is not listed."""
    for listed, why in EQUIVALENT.items():
        if name == listed or (listed.endswith("*") and name.startswith(listed[:-1])):
            return why
    return None
