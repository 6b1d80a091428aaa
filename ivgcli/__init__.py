"""Steer a large frozen language model at decoding time with the values of small ones."""

__version__ = "0.1.0"
