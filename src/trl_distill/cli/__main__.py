"""`python -m trl_distill.cli` is `aitraining`."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main(prog_name="aitraining")
