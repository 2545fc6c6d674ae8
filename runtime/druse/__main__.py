"""``python -m druse``."""

from druse.cli import main

main()
