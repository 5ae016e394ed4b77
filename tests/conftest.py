"""Every test: one thread a process, no network, no display; hypothesis without deadlines, and without dice in CI."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is first imported
os.environ["MPLBACKEND"] = "Agg"

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# A deadline measures the machine, and the first example of a test pays for imports.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("house"), derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "house")
