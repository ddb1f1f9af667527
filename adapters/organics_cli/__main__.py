"""``python -m organics_cli``."""

from . import main

main()
