"""The commands bench and compare: timed worker processes, tables, the page."""
