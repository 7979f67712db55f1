"""`python -m brainldm VERB`."""

import sys

from brainldm.cli import main

sys.exit(main())
