"""The fused loss: tiles of tokens, in which the gradient is formed with the value."""
