"""The tool's tests are about the tool: nothing to collect where it is not in place."""

import os

collect_ignore_glob = [] if os.environ.get("CUPY_ON_CPU") else ["test_*.py"]
