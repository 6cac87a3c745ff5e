"""A SavedModel that TensorFlow Serving serves as text in, text out."""
