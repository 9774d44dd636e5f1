"""The small built-in model: a rim camera's words, its renderer, its training and its weights."""
