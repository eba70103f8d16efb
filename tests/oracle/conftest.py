"""Where torch and transformers are not installed, there is nothing to compare with and nothing to collect."""

from importlib.util import find_spec

HERE = all(find_spec(name) is not None for name in ("torch", "transformers"))
collect_ignore_glob = [] if HERE else ["test_*.py"]

if HERE:
    import torch

    torch.set_num_threads(1)
