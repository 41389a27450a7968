"""Teachers that give text only."""
