"""`python -m distillchain_cli`."""

import sys

from distillchain_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
