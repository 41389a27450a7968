"""`tune(params, space)`: many runs that differ in some settings, judged on the same held-out rows."""
