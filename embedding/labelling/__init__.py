"""Annotations of people: labels with times, read from the files of other programs and from our own."""
