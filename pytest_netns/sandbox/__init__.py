"""Commands that nobody trusts, each in a box: see ``netns.sandbox()``.

The package is imported by the pytest process and by the process that makes boxes, so each loads what it needs only.
"""
