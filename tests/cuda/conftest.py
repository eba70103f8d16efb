"""The path through CuPy: on a GPU by `make gpu-check`, without one by `make test-cuda`."""

from importlib.util import find_spec

HERE = find_spec("cupy") is not None
collect_ignore_glob = [] if HERE else ["test_*.py"]
