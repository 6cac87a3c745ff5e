"""A SavedModel that TensorFlow Serving serves, or a folder that OpenVINO opens."""

from keras_gpt.export.openvino_folder import export_openvino
from keras_gpt.export.saved_model import export_saved_model

__all__ = ["export_openvino", "export_saved_model"]
