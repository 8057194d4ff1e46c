"""nlc: a compiler for Nested Learning systems."""
