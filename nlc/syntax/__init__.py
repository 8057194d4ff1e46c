"""From text and YAML to one syntax tree, and back.

`read.read` and `read.parse` give a `tree.Spec`; `print_text` and `print_yaml` write one.
Nothing here looks a name up or evaluates a number.
"""
