"""``python -m anonvma_inspect``: the command line."""

from __future__ import annotations

from anonvma_inspect.cli import main

if __name__ == "__main__":
    main()
