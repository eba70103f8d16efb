"""Many products of moderate size: each on one thread, and as many at once as BLAS has threads.

BLAS would divide each product among its threads, wake them for it and let them wait for each other at the
end. Here a thread takes the next task when it is done with one, so they wait once, and what stands around a
product (rows gathered for it, results added up) is done by the same thread while its cache holds them.
How work is cut into tasks depends on the shapes alone, and each task is done by one thread: the number of
threads changes nothing. A single task, and little work, are left to BLAS and as many threads as it has.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

ROWS = 256  # pieces that tall products are cut into: BLAS has reached its speed, and nobody waits long
PARALLEL_FROM = 1 << 24  # multiplications, a quarter of a millisecond: below, waking threads costs too much

Product = tuple[np.ndarray, np.ndarray, np.ndarray]  # a, b and the result
Worker = Callable[[Any], Any]  # does one task

_one_at_a_time = threading.Lock()  # the number of BLAS threads is the whole process's


def take_turns(tasks: list[Any], make_worker: Callable[[], Worker], multiplications: int) -> None:
    """All tasks in their order, by threads with a worker each, which may keep a buffer of its own."""
    libraries = _blas_libraries()
    threads = min(max((library.num_threads for library in libraries), default=1), len(tasks))
    tasks = tasks[::-1]  # they are taken from the end
    if threads < 2 or multiplications < PARALLEL_FROM:
        _work(tasks, make_worker())
        return
    first, *others = [make_worker() for _ in range(threads)]
    with _one_at_a_time:
        before = [library.num_threads for library in libraries]
        try:
            for library in libraries:
                library.set_num_threads(1)
            running = [_pool().submit(_work, tasks, worker) for worker in others]
            _work(tasks, first)
            for other in running:
                other.result()
        finally:
            for library, count in zip(libraries, before):
                library.set_num_threads(count)


def multiply_all(products: list[Product]) -> None:
    """out[...] = a b for all (a, b, out)."""
    pieces = list(_pieces(products))
    take_turns(pieces, lambda: _multiply, sum(out.size * a.shape[1] for a, _, out in pieces))


def _multiply(piece: Product) -> None:
    a, b, out = piece
    np.matmul(a, b, out=out)


def _pieces(products: list[Product]) -> Iterator[Product]:
    for a, b, out in products:
        for row in range(0, len(out), ROWS):
            yield a[row : row + ROWS], b, out[row : row + ROWS]


def _work(tasks: list[Any], worker: Worker) -> None:
    """Take tasks until none is left; other threads take from the same list."""
    while tasks:
        try:
            task = tasks.pop()
        except IndexError:  # another thread took the last one
            return
        worker(task)


@cache
def _blas_libraries() -> list:
    return ThreadpoolController().select(user_api="blas").lib_controllers


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="products")
