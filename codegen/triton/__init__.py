"""Kernels: from the form of an update to the text of `kernels.py`."""
