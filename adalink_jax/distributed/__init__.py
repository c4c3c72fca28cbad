"""Devices and hosts: the mesh, the table of logical axes, the hosts of one run."""
