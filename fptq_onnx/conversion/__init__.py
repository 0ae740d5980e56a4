"""The conversion: from options to written folders, with their check and report."""
