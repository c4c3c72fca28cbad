"""Runs this project's network and methods in T5X's launcher, where gin settings are not enough.

T5X is on no package registry. Only this package imports it, and only if the user has installed it.
"""
