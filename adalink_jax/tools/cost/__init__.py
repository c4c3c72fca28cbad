"""Costs of methods: parameters, FLOPs, memory and time; and settings that match a budget."""
