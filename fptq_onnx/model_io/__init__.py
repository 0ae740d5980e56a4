"""Models, tokenizers and configurations on disk: read, checked, written."""
