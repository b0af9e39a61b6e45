"""What has been made of a model, for a person to read."""
