"""From text and YAML to one syntax tree, and back.

`read` and `parse` give a `tree.Spec`; `print_text.print_text` and `print_yaml.print_yaml` write one.
Nothing here looks a name up or evaluates a number.
"""
