"""Reports of finished runs: tables, plots, and the command behind each number."""
