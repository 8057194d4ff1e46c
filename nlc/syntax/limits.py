"""The limits a spec has to keep, so that every stage after this one is bounded.

Numbers only; the checks stand where the thing that is limited is met.
"""

MAX_BYTES = 1_000_000  # a whole file
MAX_NESTING = 100  # brackets within brackets, mappings within mappings
MAX_NAME = 64  # characters of a name
MAX_DEPTH = 200  # of an expression as a tree: calls within calls, terms of one sum
MAX_TOKENS = 5_000  # of one statement
MAX_NUMBER = 64  # characters of a number
MAX_ALIASES = 1_000  # `*name` in one YAML file
MAX_EXPANDED = 100_000  # YAML nodes once every alias is written out
MAX_ERRORS = 20  # after these, reading stops
