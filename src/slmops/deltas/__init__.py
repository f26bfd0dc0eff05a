"""Deltas between model files: what the old file knows is not sent again.

`make_delta` and `apply_delta` are the face. A delta is only transport and untrusted:
whoever applies one checks the digest of the result. Nothing here knows registries,
networks or devices; files are handed in. Applying needs numpy, so an agent does it in a
child process (``python -m slmops.deltas``).
"""
