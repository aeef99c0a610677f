"""`python -m vcjax.cli`, the same as `vcjax`."""

import sys

from vcjax.cli.dispatch import main

sys.exit(main())
