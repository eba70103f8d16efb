"""Who is told when a kernel is compiled: a first run takes some seconds for it, and should say so.

    from tinygrad_ds.kernels import progress
    progress.listener = print                   # compiling rmsnorm (float32) ...

Compiled kernels are kept on disk, so later runs have nothing to say.
"""

from collections.abc import Callable

listener: Callable[[str], None] | None = None
