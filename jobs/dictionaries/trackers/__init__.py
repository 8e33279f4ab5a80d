"""Trackers of training runs, one package a file."""
