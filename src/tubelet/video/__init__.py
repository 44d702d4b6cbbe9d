"""Read and write videos through PyAV; the only package that handles 8- and 16-bit pixels."""
