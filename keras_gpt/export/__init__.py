"""A SavedModel that TensorFlow Serving serves as text in, text out."""

from keras_gpt.export.saved_model import export_saved_model

__all__ = ["export_saved_model"]
