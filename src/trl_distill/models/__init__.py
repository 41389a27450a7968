"""Models: loading, adapters, the LM head, the forward that ends at the completion, and how they generate."""
