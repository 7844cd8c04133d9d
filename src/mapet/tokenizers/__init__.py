"""Tokenizers: what turns every patch of an image into one visual token."""
