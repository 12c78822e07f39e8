"""Readers of file layouts: each gives a listing of images."""
