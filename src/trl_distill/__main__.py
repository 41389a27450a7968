"""`python -m trl_distill` is `aitraining`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main(prog_name="aitraining")
