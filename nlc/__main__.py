"""`python -m nlc`: the command line, for where the `nlc` command is not on the path."""

from nlc.cli import main

main()
