"""What is built on runs and models: cost, planning, reports, sweeps, serving, conversion."""
