"""Searches without an index, in bounded slices of time and rows."""
