"""A build's result for people: one self-contained page, and its chart as PNG and SVG."""
