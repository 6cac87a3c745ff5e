"""The earlier name of `keras_gpt.tf_serving`."""

from keras_gpt.tf_serving import Client, Completion, ServingError, VersionStatus

__all__ = ["Client", "Completion", "ServingError", "VersionStatus"]
