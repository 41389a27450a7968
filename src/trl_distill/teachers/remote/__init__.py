"""Teachers behind OpenAI-compatible servers: `teacher` is the teacher, `client` sends its requests."""
