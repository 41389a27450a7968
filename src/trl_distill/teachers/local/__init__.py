"""Teachers that are local models: a model of their own, or the student itself."""
