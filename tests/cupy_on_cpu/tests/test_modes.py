"""The strict modes and the runner, in processes of their own."""
import os
import subprocess
import sys

import pytest

RACE = r'''
import cupy as cp, numpy as np
k = cp.RawKernel("""extern "C" __global__ void f(int* y) {
  __shared__ int s; if (threadIdx.x == 0) s = 5;
  y[threadIdx.x] = s; }""", "f")
y = cp.zeros(64, "i4"); k((1,), (64,), (y,)); print((y.get() == 5).all())
'''
OUTSIDE = r'''
import cupy as cp
k = cp.RawKernel("""extern "C" __global__ void f(float* y, int n) { if (threadIdx.x <= n) y[threadIdx.x] = 1; }""", "f")
y = cp.zeros(50, "f"); k((1,), (64,), (y, cp.int32(50))); print("unnoticed")
'''


def run(code, **settings):
    done = subprocess.run([sys.executable, '-m', 'tests.cupy_on_cpu', '-c', code], env={**os.environ, **settings},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def test_shuffle_shows_a_race():
    assert 'True' in run(RACE, CUPY_ON_CPU_SHUFFLE='')
    assert 'False' in run(RACE, CUPY_ON_CPU_SHUFFLE='1')


def test_guard_shows_a_write_outside():
    out = run(OUTSIDE, CUPY_ON_CPU_GUARD='1')
    assert 'kernel f wrote outside an allocation of 200 bytes' in out and 'CUDA_ERROR_ILLEGAL_ADDRESS' in out


def test_install_comes_first():
    assert 'must come before' in run('from tests import cupy_on_cpu as c; c._installed = False; c.install()')
