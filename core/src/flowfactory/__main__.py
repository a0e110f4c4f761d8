"""``python -m flowfactory`` is the command line too."""

from flowfactory.cli import main

main()
