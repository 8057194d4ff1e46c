"""Experiments without code: train a system on text, evaluate it, and generate from it.

In: a compiled system and a text. Out: a run folder. Knows nothing of how a system is compiled.
"""
