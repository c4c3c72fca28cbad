"""Finished runs, side by side, as one folder: tables, plots, and the command behind each number."""
