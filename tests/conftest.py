"""What stands beside this file can be imported by tests in the folders below."""

pytest_plugins = ["pytester"]
