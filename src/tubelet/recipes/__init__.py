"""A training procedure per model, each `main(config)`."""
