"""Set before torch and datasets are imported, and passed on to the processes that tests start."""

import os
import tempfile

# Test processes side by side, each with a thread a core, are many times slower than with one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="mapet-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
