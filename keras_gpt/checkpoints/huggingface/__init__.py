"""Folders in Hugging Face's format: read, and written."""
