"""The only place that knows JSON, YAML, TOML and environment variables."""
