"""Exports of vectors to the formats of other tools.

A format is a module with its name and two functions: ``write`` writes the rows into a folder, and ``reading_line``
returns a line of Python that reads them.
"""
