"""`python -m mmssl.stages`: what a recipe's run.sh calls, in the folder of the recipe's corpus."""

from __future__ import annotations

import sys

from mmssl.stages.recipe import main

if __name__ == "__main__":
    sys.exit(main())
