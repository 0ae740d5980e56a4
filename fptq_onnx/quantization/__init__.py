"""The sequential solver: layer groups, scheme search, weight rounding, mixed precision."""
