"""Alignment of sequences with transcripts and with each other."""
