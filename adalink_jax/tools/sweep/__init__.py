"""Many trainings: grids of command lines, run in parallel and summarized in a report."""
