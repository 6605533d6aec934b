"""Texts to token ids, in files that are mapped into memory."""
