"""`python -m controller` runs the service: the same as `mass controller`."""

import sys

from controller.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["controller"]
    main()
