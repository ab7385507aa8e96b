"""The `yolo` command of the package that comes first on the path."""

from ultralytics.cfg import entrypoint

entrypoint()
