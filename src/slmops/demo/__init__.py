"""The whole loop as a story, on a real model, with real processes."""
