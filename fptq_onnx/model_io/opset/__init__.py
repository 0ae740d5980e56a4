"""Models of old opsets, brought to the oldest that all else is written for."""
