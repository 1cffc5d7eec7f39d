"""`python -m medley` is the `medley` command."""

from medley.cli.main import main

main()
