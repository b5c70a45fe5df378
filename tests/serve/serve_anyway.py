"""`packlight serve` with a page of one line: what is served is built elsewhere."""

from __future__ import annotations

import sys

from packlight.cli import main
from packlight.serve import page

if __name__ == "__main__":
    page.check_page = lambda: None  # type: ignore[assignment]
    sys.argv[0] = "packlight"
    main()
