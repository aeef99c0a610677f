"""Merge methods of the literature, one file for each."""
