"""Import paths of AutoTrain, for scripts written for its command: re-exports of `trl_distill`, nothing else."""

from __future__ import annotations

import warnings
from importlib.metadata import packages_distributions


def _warn_of_another() -> None:
    """Warn if another distribution installs a package of this name: which of the two is imported is chance."""
    others = sorted(set(packages_distributions().get("autotrain", [])) - {"trl-distill"})
    if others:
        warnings.warn(
            f"the package 'autotrain' is also installed by {', '.join(others)}; this is trl-distill's, and which of "
            "the two Python finds depends on the path: import from 'trl_distill' instead, or uninstall the other.",
            stacklevel=3,
        )


_warn_of_another()
