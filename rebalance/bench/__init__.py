import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch: its profiler tells of memory older than itself
