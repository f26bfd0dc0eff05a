"""The device side: journal, slots, trial, rollback, and the local OpenAI-style endpoint."""
