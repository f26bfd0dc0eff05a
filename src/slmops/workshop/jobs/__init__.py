"""Heavy work of the workshop, in processes of its own: what a job is and who runs it."""
