"""The files that a browser loads. No Python here: they are read as resources."""
