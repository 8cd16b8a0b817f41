"""PrivLM: adapt and probe large models under privacy."""

__version__ = "0.1.0"
