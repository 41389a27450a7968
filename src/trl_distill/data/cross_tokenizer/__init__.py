"""One completion under two tokenizers: which of their tokens cover the same bytes."""
