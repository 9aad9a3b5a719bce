"""Every test in a network of its own."""
