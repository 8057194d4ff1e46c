"""The library of systems and rules, written in the language."""
