"""What stands beside this file can be imported by tests in the folders below."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# How long an example takes says something of the machine's load, and nothing of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
