"""`python -m relprop`: the command line."""

import sys

from relprop.cli import main

sys.exit(main())
