"""``python -m flowfactory`` is the command line too."""

from flowfactory.cli.main import main

main()
