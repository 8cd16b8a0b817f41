"""`python -m privlm`, which is also what torchrun starts."""

import sys

from privlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
