"""
What every test shares: hypothesis explores the same examples on every machine and is never hurried, and Ctrl-C works.

A shell starts what it puts in the background with SIGINT and SIGQUIT ignored, and nohup does it with
SIGHUP; whatever the tests start inherits that.
"""

import signal

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

for number in (getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)):  # not on Windows
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
