"""Every reference primitive is array-namespace code: on CuPy arrays it computes what it does on NumPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinygrad_ds as tg
from tests.cuda.arrays import on_device, same_on_device
from tests.tinygrad_ds.harness import STRATEGIES
from tests.tinygrad_ds.test_registry import OURS, cast, cotangents_for, outputs_of

pytestmark = pytest.mark.cuda
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


@pytest.mark.parametrize("name", OURS)
@settings(max_examples=10)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float64"]))
def test_reference_on_the_device_equals_reference_on_the_host(name, data, dtype):
    primitive = tg.primitives[name]
    case = data.draw(STRATEGIES[name])
    arrays = cast(case, dtype)
    result, saved = primitive.forward(*arrays, **case.options)
    options = {  # numbers stay numbers
        option: value if isinstance(value, np.floating) else on_device(value)
        for option, value in case.options.items()
    }
    result_there, saved_there = primitive.forward(*on_device(arrays), **options)
    same_on_device(outputs_of(result_there), outputs_of(result), TOLERANCE[dtype])
    g = cotangents_for(result)
    g_there = on_device(g)
    there = primitive.backward(saved_there, g_there)
    same_on_device(there, primitive.backward(saved, g), TOLERANCE[dtype])
