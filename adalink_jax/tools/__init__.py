"""Tools around runs and models: cost, planning, reports, sweeps, serving, conversion."""
