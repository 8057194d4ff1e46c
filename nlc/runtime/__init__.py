"""The reference interpreter: a system run token by token, in float64, as the language says it."""
