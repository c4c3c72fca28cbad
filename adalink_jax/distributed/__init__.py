"""Devices and hosts: the mesh, the logical-axis rules, and the hosts of a run."""
