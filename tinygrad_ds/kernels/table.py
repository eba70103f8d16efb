"""Which fused twins exist: primitive -> module, for each device. Reading it imports no compiler."""

TWINS: dict[str, dict[str, str]] = {
    "cpu": {
        "attention": "attention",
        "combine": "moe",
        "concatenate": "shape",
        "cross_entropy": "loss",
        "dispatch": "moe",
        "embedding": "indexing",
        "experts_in": "experts",
        "experts_out": "experts",
        "fp8_experts_in": "fp8_experts",
        "fp8_experts_out": "fp8_experts",
        "fp8_linear": "fp8",
        "fp8_swiglu_linear": "fp8_experts",
        "grouped_linear": "moe",
        "linear_cross_entropy": "head",
        "log_softmax": "activation",
        "quantize": "quantize",
        "rmsnorm": "norm",
        "rope": "rope",
        "router_selection": "routing",
        "softmax": "activation",
        "split": "shape",
        "swiglu": "swiglu",
    },
    "cuda": {
        "attention": "attention",
        "combine": "moe",
        "cross_entropy": "loss",
        "dispatch": "moe",
        "embedding": "indexing",
        "experts_in": "experts",
        "experts_out": "experts",
        "fp8_experts_in": "fp8_experts",
        "fp8_experts_out": "fp8_experts",
        "fp8_linear": "fp8",
        "fp8_swiglu_linear": "fp8",
        "grouped_linear": "grouped",
        "linear_cross_entropy": "loss",
        "log_softmax": "activation",
        "quantize": "quantize",
        "rmsnorm": "norm",
        "rope": "rope",
        "router_selection": "routing",
        "softmax": "activation",
        "swiglu": "swiglu",
    },
}

# The same for the functions of tinygrad_ds/inference.py.
INFERENCE_TWINS: dict[str, dict[str, str]] = {
    "cpu": {
        "draw_tokens": "drawing",
        "linear_step": "decoding",
        "token_step": "decoding",
    },
    "cuda": {
        "count_numbers": "routing",
        "expert_order": "routing",
        "token_step": "decoding",
    },
}
