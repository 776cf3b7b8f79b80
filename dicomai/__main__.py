"""`python -m dicomai`."""

import sys

from dicomai.cli import main

if __name__ == "__main__":
    sys.exit(main())
