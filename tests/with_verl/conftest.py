"""verl finds the plug-in by the environment, which has to be set before anybody imports verl."""

from __future__ import annotations

import os

from attnrl.verl.launch import installed_version, set_environment

if installed_version() is not None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    set_environment(cpu=True, nodes=1)
