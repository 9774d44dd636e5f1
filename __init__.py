"""svrt: describe a sports clip in words, on a small computer."""
