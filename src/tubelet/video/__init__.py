"""The only door to PyAV, and the only place of 8- and 16-bit pixels."""
