"""Calling a model that TensorFlow Serving serves."""

from keras_gpt.tf_serving.client import Client, Completion
from keras_gpt.tf_serving.connection import ServingError, VersionStatus

__all__ = ["Client", "Completion", "ServingError", "VersionStatus"]
