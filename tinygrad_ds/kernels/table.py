"""Which fused twins exist: primitive -> module, for each device. Reading it imports no compiler."""

TWINS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {},
}
