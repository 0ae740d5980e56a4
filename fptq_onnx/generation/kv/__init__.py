"""Strategies for the key and value caches of a batch."""
