"""Searches on Ray Tune: the space, the trials, the journal that lets one be resumed. Sees validation, never test."""
