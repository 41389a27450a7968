"""One completion under two tokenizers: which tokens cover the same bytes."""
