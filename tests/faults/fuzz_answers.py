"""Changes answers of a server in one or two places at random, and has a teacher ask for them.

    python tests/faults/fuzz_answers.py [--long] [--folder DIR]

Each of six kinds is tried 60 times, 2,000 times with `--long`. The last line counts how many answers were kept, and
how many ended in a sentence.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults._changed_answers import KINDS, fuzz

from trl_distill.teachers.remote import request_pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="2,000 of each kind")
    parser.add_argument("--folder", help="not used: what is stored is in a temporary folder of each answer")
    given = parser.parse_args()
    request_pool.TRIES = 1
    logging.getLogger("trl_distill").setLevel(logging.ERROR)
    counted = {"answers": 0, "kept": 0, "named": 0}
    for kind in KINDS:
        found = fuzz(kind, 2000 if given.long else 60)
        print(f"{kind}: {found['kept']:,} kept, {found['named']:,} named", flush=True)
        for name, count in {"answers": found.total(), **found}.items():
            counted[name] += count
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
