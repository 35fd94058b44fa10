"""Generated names, files, captions and prompts, thrown at whatever reads a user's."""
