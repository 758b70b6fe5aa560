"""`python -m subtone` is the command line."""

from subtone.cli import main

main()
