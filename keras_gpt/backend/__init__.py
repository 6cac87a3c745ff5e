"""Backend-specific functions."""
