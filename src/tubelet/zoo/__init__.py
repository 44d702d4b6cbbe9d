"""The model zoo: specs of all models, checkpoint recognition, published weights, and loading."""
