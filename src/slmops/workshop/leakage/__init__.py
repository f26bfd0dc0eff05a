"""Whether what is learnt from was kept apart from what is measured on."""
