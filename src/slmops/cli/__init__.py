"""The `slmops` command: one file per noun; parse, call, render."""
