"""`python -m controller.cli` is `mass`."""

from controller.cli import main

main()
