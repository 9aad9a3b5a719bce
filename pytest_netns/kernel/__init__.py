"""One typed wrapper for each kernel interface that the package uses."""
