"""Runs `aitraining` with as much memory beyond the libraries as is given: `limited_memory.py MIB ARGUMENTS`."""

from __future__ import annotations

import resource
import sys

import psutil

from trl_distill.cli import main

if __name__ == "__main__":
    addresses = psutil.Process().memory_info().vms + int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    main(sys.argv[2:])
