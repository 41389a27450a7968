"""`from trl_distill.embedded import embedded_path`: the folder of the model that ships with the package."""

from .models.embedded import embedded_path

__all__ = ["embedded_path"]
