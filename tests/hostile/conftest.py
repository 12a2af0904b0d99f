"""The profile of all property tests: the same examples everywhere, however slow the machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("repeatable")
