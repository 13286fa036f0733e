from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "pdd",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=int(os.environ.get("PDD_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("pdd")
