"""How fast emitted code is, beside plain loops and published references; `python -m bench`."""
