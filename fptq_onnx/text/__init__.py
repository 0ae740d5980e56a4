"""Text to windows of tokens, and token ids to text."""
