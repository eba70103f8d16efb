"""Many products of moderate size: each on one thread, and as many at once as BLAS has threads.

BLAS would divide each product among its threads, which then wait for each other at the end of every one.
Here a thread takes the next product when it is done with one, so they wait once. Tall products are cut into
pieces of ROWS rows, at which BLAS has reached its speed and after which no thread waits long for the last.
The pieces depend on the shapes alone, and each is computed by one thread: the number of threads changes
nothing.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

ROWS = 256
PARALLEL_FROM = 1 << 24  # multiplications, a quarter of a millisecond: below, waking threads costs too much

Product = tuple[np.ndarray, np.ndarray, np.ndarray]  # a, b and the result

_one_at_a_time = threading.Lock()  # the number of BLAS threads is the whole process's


def multiply_all(products: list[Product]) -> None:
    """out[...] = a b for all (a, b, out)."""
    pieces = list(_pieces(products))
    libraries = _blas_libraries()
    threads = min(max((library.num_threads for library in libraries), default=1), len(pieces))
    if threads < 2 or sum(out.size * a.shape[1] for a, _, out in pieces) < PARALLEL_FROM:
        _work(pieces)
        return
    pieces.reverse()  # they are taken from the end
    with _one_at_a_time:
        before = [library.num_threads for library in libraries]
        try:
            for library in libraries:
                library.set_num_threads(1)
            others = [_pool().submit(_work, pieces) for _ in range(threads - 1)]
            _work(pieces)
            for other in others:
                other.result()
        finally:
            for library, count in zip(libraries, before):
                library.set_num_threads(count)


def _pieces(products: list[Product]) -> Iterator[Product]:
    for a, b, out in products:
        for row in range(0, len(out), ROWS):
            yield a[row : row + ROWS], b, out[row : row + ROWS]


def _work(pieces: list[Product]) -> None:
    """Take pieces until none is left; other threads take from the same list."""
    while pieces:
        try:
            a, b, out = pieces.pop()
        except IndexError:  # another thread took the last one
            return
        np.matmul(a, b, out=out)


@cache
def _blas_libraries() -> list:
    return ThreadpoolController().select(user_api="blas").lib_controllers


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="products")
