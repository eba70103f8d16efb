"""Fused twins of the reference primitives, loaded by the registry when first called."""
