"""Layouts of files that images come in: each gives a listing of images, or the images."""
