"""Many trainings: grids of command lines, trained side by side, then a report."""
