"""The list of every model: specs, recognition of checkpoints, published weights, and opening a model."""
