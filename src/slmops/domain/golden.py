"""The trial on the device: golden answers compared with the card and the old model."""
