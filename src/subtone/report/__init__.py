"""What a model is worth: words, bytes and seconds, always with their uncertainty."""
