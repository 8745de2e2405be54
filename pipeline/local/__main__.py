"""The process behind `stack.up`."""

import sys

from pipeline.local.stack import own

sys.exit(own(sys.argv[1]))
