"""The commands of ``pytest-netns``, one module for each kind."""
