"""Makes the embedded model, which ships with the package: `python -m tools.embedded_model.train --output DIR`."""
