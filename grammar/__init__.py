"""The grammar of the language as data: Lark rules, JSON Schema, malformed examples."""
