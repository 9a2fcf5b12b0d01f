"""Timing fastrnn's backends and other engines on the same cases; see cases.py, engines.py, race.py.

`fastrnn bench` runs the short form; the whole suite, with its report, is in the repository's bench/.
"""
