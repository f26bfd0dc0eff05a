"""``python -m slmops.cli.reference docs`` writes every reference page."""

import sys
from pathlib import Path

from slmops.cli.reference.pages import write_pages

if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
