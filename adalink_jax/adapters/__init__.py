"""Adapters in use: load with their base, inspect, stack, fold and export."""
