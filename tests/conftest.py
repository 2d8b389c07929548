"""What every test shares: hypothesis explores the same examples on every machine and is never hurried."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "kilometers",
    deadline=None,
    derandomize=True,
    max_examples=80,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("kilometers")
