"""Which fused twins exist: primitive -> module, for each device. Reading it imports no compiler."""

TWINS: dict[str, dict[str, str]] = {
    "cpu": {
        "attention": "attention",
        "concatenate": "shape",
        "cross_entropy": "loss",
        "embedding": "indexing",
        "log_softmax": "activation",
        "rmsnorm": "norm",
        "rope": "rope",
        "softmax": "activation",
        "split": "shape",
        "swiglu": "swiglu",
    },
    "cuda": {},
}
