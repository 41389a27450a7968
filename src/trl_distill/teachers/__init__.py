"""Teachers: local models, servers, text, stored targets, and several of them in one run."""
