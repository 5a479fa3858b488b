"""The public name of `lstm_fused.interop.convert`: imports weights of Keras and TensorFlow."""

from lstm_fused.interop.convert import from_keras, from_tensorflow

__all__ = ["from_keras", "from_tensorflow"]
