"""Tables, places and pages of results, and other formats of them."""

SHOWN = 40
"""Rows of each part on a cell's page, unless told otherwise."""
