"""Reference pages made from the code: commands, blueprint, settings, HTTP API.

``python -m slmops.cli.reference docs`` writes them; tests hold them current.
"""
