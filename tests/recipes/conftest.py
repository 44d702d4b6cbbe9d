from helpers.two_step_inputs import gratings, image_model

__all__ = ["gratings", "image_model"]
